"""Writes a folded network as one .tflite: each integer layer is one operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import keras
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_metamix.graph.fold_bn import fold_batch_norm
from keras_metamix.graph.topology import Node, Topology
from keras_metamix.layers import integer
from keras_metamix.layers.grid import Grid, relu6_level
from metamix_tflite.containers import check_container, is_pointwise, weight_type
from metamix_tflite.flatbuffer import Fused, ModelBuilder, Op, Signature, TensorType
from metamix_tflite.metadata import METADATA_NAME, checksum, encode

_PADDING = {"same": schema.Padding.SAME, "valid": schema.Padding.VALID}
# XNNPACK leaves sums and products of smaller scale ratios to kernels that round in another way.
_LEAST_ADD, _LEAST_MUL = 2.0**-10, 2.0**-16
_WEIGHT_TYPES = {"INT4": TensorType.INT4, "INT8": TensorType.INT8}


def convert(
    model: Any,
    weight_container: Literal["fast", "smallest"] = "fast",
    io: Literal["float32", "int8"] = "float32",
) -> bytes:
    """The .tflite of a trained model; its integers are the trained ones.

    Args:
      model: a MetaMixModel in weight training, or what `fold_batch_norm` made of it.
      weight_container: "fast" keeps one XNNPACK partition (INT4 for pointwise and dense layers,
        the other low-bit integers in INT8); "smallest" holds every weight of at most 4 bits in
        INT4, which LiteRT runs outside XNNPACK for k x k and depthwise convolutions.
      io: type of the file's inputs and outputs.

    Raises:
      ValueError: an argument, or a layer that has no exact operator; names it.
    """
    check_container(weight_container)
    if io not in ("float32", "int8"):
        raise ValueError(f"io: expected 'float32' or 'int8', found {io!r}.")
    folded = model if _is_folded(model) else fold_batch_norm(model)
    return _Writer(folded, weight_container, io).run()


def _is_folded(model: Any) -> bool:
    layers = getattr(model, "layers", [])
    return any(isinstance(layer, integer.IntegerLayer) for layer in layers)


class _Tensor:
    """A tensor of the file."""

    def __init__(self, index: int, shape: tuple[int, ...], grid: Grid | None):
        self.index, self.shape, self.grid = index, shape, grid


class _Writer:
    """One conversion."""

    def __init__(self, folded: keras.Model, container: str, io: str):
        self.topology = Topology(folded)
        self.container, self.io = container, io
        self.model = ModelBuilder("keras-metamix")
        self.graph = self.model.subgraph("serving_default")
        self.values: dict[int, _Tensor] = {}
        self.declared: dict[str, Any] = {"layers": {}, "tensors": {}}
        self.inputs: dict[str, int] = {}

    def run(self) -> bytes:
        for tensor in self.topology.inputs:
            shape = _batch_one(tensor)
            index = -1
            if self.io == "float32":
                index = self.graph.tensor(tensor.name, shape, TensorType.FLOAT32)
                self.inputs[tensor.name] = index
            self.values[id(tensor)] = _Tensor(index, shape, None)
        for node in self.topology.nodes:
            self._emitter(node)(node)
        inputs = {t.name: self.inputs[t.name] for t in self.topology.inputs}
        outputs = {
            f"output_{number}": self.values[id(tensor)].index
            for number, tensor in enumerate(self.topology.outputs)
        }
        self.graph.finish(Signature(inputs, outputs))
        self.declared |= {"weight_container": self.container, "io": self.io}
        self.model.metadata(METADATA_NAME, encode(self.declared))
        return self.model.finish()

    def _emitter(self, node: Node) -> Callable[[Node], None]:
        emitters: dict[type, Callable[[Node], None]] = {
            integer.QuantizeInput: self._quantize_input,
            integer.Dequantize: self._dequantize,
            integer.IntegerMac: self._mac,
            integer.IntegerAdd: self._add,
            integer.IntegerMultiply: self._multiply,
            integer.Rescale: self._rescale,
            integer.IntegerMean: self._mean,
            keras.layers.MaxPooling2D: self._max_pool,
            keras.layers.ZeroPadding2D: self._pad,
            keras.layers.Flatten: self._reshape,
            keras.layers.Reshape: self._reshape,
            keras.layers.Dropout: self._same,
            keras.layers.SpatialDropout2D: self._same,
            keras.layers.Identity: self._same,
            keras.layers.Activation: self._same,  # linear: the fold leaves no other
        }
        for cls, emitter in emitters.items():
            if isinstance(node.operation, cls):
                return emitter
        raise ValueError(
            f"Layer {node.name!r} ({type(node.operation).__name__}) has no exact LiteRT operator."
        )

    # --- tensors ---------------------------------------------------------------------------

    def _read(self, node: Node) -> list[_Tensor]:
        return [self.values[id(t)] for t in node.inputs]

    def _output(self, node: Node, grid: Grid | None, activation: str = "NONE") -> int:
        """The INT8 tensor of a node's output, declared."""
        shape = _batch_one(node.output)
        if grid is None:
            raise TypeError(f"Layer {node.name!r}: its output has no integer grid.")
        index = self.graph.tensor(node.name, shape, TensorType.INT8, grid.scale, grid.zero_point)
        self.values[id(node.output)] = _Tensor(index, shape, grid)
        self.declared["tensors"][node.name] = {
            "scale": float(np.float32(grid.scale)),
            "zero_point": grid.zero_point,
            "activation": activation,
        }
        return index

    def _vector(self, name: str, values: list[Any]) -> int:
        data = np.asarray(values, np.int32)
        return self.graph.tensor(name, data.shape, TensorType.INT32, data=data)

    # --- operators -------------------------------------------------------------------------

    def _quantize_input(self, node: Node) -> None:
        layer, (source,) = node.operation, self._read(node)
        _require_unclipped(node, layer)
        target = self._output(node, layer.output_grid)
        name = node.inputs[0].name
        if self.io == "int8" and name in self.inputs:
            raise ValueError(f"Input {name!r} is quantized twice, which io='int8' cannot hold.")
        if self.io == "int8":
            self.inputs[name] = target
        else:
            self.graph.operator(Op.QUANTIZE, [source.index], [target])

    def _dequantize(self, node: Node) -> None:
        (source,) = self._read(node)
        if self.io == "int8":
            self.values[id(node.output)] = source
            return
        producer = self.topology.producer(node.inputs[0])
        if producer is None:
            raise ValueError(f"Output {node.name!r} is no layer's result.")
        # Not the node's own name: Keras numbers it anew in each process.
        index = self.graph.tensor(f"{producer.name}/float", source.shape, TensorType.FLOAT32)
        self.values[id(node.output)] = _Tensor(index, source.shape, None)
        self.graph.operator(Op.DEQUANTIZE, [source.index], [index], version=2)

    def _mac(self, node: Node) -> None:
        layer: integer.IntegerMac = node.operation
        (source,) = self._read(node)
        activation = _fused_activation(node, layer.output_grid, layer.low, layer.high)
        kernel, scale = np.asarray(layer.kernel), np.asarray(layer.weight_scale)
        bias = np.asarray(layer.bias)
        _check_multiplier(node, np.asarray(layer.multiplier))
        pointwise = is_pointwise(layer.kind, layer.kernel_shape, layer.strides)
        held = weight_type(self.container, pointwise, layer.weight_bits, kernel.shape[-2])
        matrix = layer.kind == "dense" or (pointwise and held == "INT4")
        if matrix:
            data, dimension = kernel.reshape(-1, kernel.shape[-1]).T, 0
        elif layer.kind == "conv":
            data, dimension = kernel.transpose(3, 0, 1, 2), 0
        else:
            data, dimension = kernel.reshape(1, *kernel.shape[:2], -1), 3
        weights = self.graph.tensor(
            f"{node.name}/weights", data.shape, _WEIGHT_TYPES[held], scale, 0, data, dimension
        )
        bias_scale = np.float32(layer.input_grid.scale) * scale
        biases = self.graph.tensor(
            f"{node.name}/bias", bias.shape, TensorType.INT32, bias_scale, 0, bias
        )
        target = self._output(node, layer.output_grid, activation)
        self.declared["layers"][node.name] = {
            "layer": layer.layer,
            "weight_bits": layer.weight_bits,
            "container": held,
            "weights": checksum(data.astype(np.int8)),
            "weight_scales": checksum(scale),
            "bias": checksum(bias.astype(np.int32)),
        }
        op, options, version = _mac_operator(layer, matrix, held, activation)
        self.graph.operator(op, [source.index, weights, biases], [target], options, version)

    def _add(self, node: Node) -> None:
        layer: integer.IntegerAdd = node.operation
        scales = np.array([grid.scale for grid in layer.input_grids], np.float32)
        _check_multiplier(node, scales / np.float32(layer.output_grid.scale), _LEAST_ADD)
        options = schema.AddOptionsT()
        self._combine(node, Op.ADD, options, [t.index for t in self._read(node)])

    def _multiply(self, node: Node) -> None:
        layer: integer.IntegerMultiply = node.operation
        product = np.prod([np.float32(grid.scale) for grid in layer.input_grids])
        _check_multiplier(node, product / np.float32(layer.output_grid.scale), _LEAST_MUL)
        options = schema.MulOptionsT()
        self._combine(node, Op.MUL, options, [t.index for t in self._read(node)])

    def _rescale(self, node: Node) -> None:
        layer: integer.Rescale = node.operation
        (source,) = self._read(node)
        product = np.float32(layer.input_grid.scale) * layer.factor
        _check_multiplier(node, product / np.float32(layer.output_grid.scale), _LEAST_MUL)
        one = self.graph.tensor(
            f"{node.name}/one", (1,), TensorType.INT8, float(layer.factor), 0, np.ones(1, np.int8)
        )
        self._combine(node, Op.MUL, schema.MulOptionsT(), [source.index, one])

    def _combine(self, node: Node, op: int, options: Any, inputs: list[int]) -> None:
        layer = node.operation
        activation = _fused_activation(node, layer.output_grid, layer.low, layer.high)
        options.fusedActivationFunction = getattr(Fused, activation)
        target = self._output(node, layer.output_grid, activation)
        self.graph.operator(op, inputs, [target], options, version=2)

    def _mean(self, node: Node) -> None:
        layer: integer.IntegerMean = node.operation
        (source,) = self._read(node)
        # MEAN has no fused activation, but a mean of levels >= 0 is >= 0.
        _require_unclipped(node, layer, positive=layer.input_grid.low >= 0)
        axes = self._vector(f"{node.name}/axes", [1, 2])
        options = schema.ReducerOptionsT()
        options.keepDims = layer.keepdims
        target = self._output(node, layer.output_grid)
        self.graph.operator(Op.MEAN, [source.index, axes], [target], options, version=2)

    def _max_pool(self, node: Node) -> None:
        layer, (source,) = node.operation, self._read(node)
        options = schema.Pool2DOptionsT()
        options.padding = _PADDING[layer.padding]
        options.filterHeight, options.filterWidth = layer.pool_size
        options.strideH, options.strideW = layer.strides
        target = self._output(node, source.grid)
        self.graph.operator(Op.MAX_POOL_2D, [source.index], [target], options, version=2)

    def _pad(self, node: Node) -> None:
        layer, (source,) = node.operation, self._read(node)
        amounts = [[0, 0], *[list(pair) for pair in layer.padding], [0, 0]]
        paddings = self._vector(f"{node.name}/paddings", amounts)
        target = self._output(node, source.grid)
        self.graph.operator(
            Op.PAD, [source.index, paddings], [target], schema.PadOptionsT(), version=2
        )

    def _reshape(self, node: Node) -> None:
        (source,) = self._read(node)
        shape = [-1, *_batch_one(node.output)[1:]]
        options = schema.ReshapeOptionsT()
        options.newShape = shape
        target = self._output(node, source.grid)
        vector = self._vector(f"{node.name}/shape", shape)
        self.graph.operator(Op.RESHAPE, [source.index, vector], [target], options)

    def _same(self, node: Node) -> None:
        self.values[id(node.output)] = self._read(node)[0]


def _mac_operator(
    layer: integer.IntegerMac, matrix: bool, held: str, activation: str
) -> tuple[int, Any, int]:
    """Operator, options and the lowest version that has the types."""
    version = 6 if held == "INT4" else 3
    if matrix:
        op, version, options = Op.FULLY_CONNECTED, 12, schema.FullyConnectedOptionsT()
        options.keepNumDims = True
    elif layer.kind == "conv":
        op, options = Op.CONV_2D, schema.Conv2DOptionsT()
    else:
        op, options = Op.DEPTHWISE_CONV_2D, schema.DepthwiseConv2DOptionsT()
        options.depthMultiplier = layer.kernel_shape[-1]
    if not matrix:
        options.padding = _PADDING[layer.padding]
        options.strideH, options.strideW = layer.strides
        options.dilationHFactor, options.dilationWFactor = layer.dilation_rate
    options.fusedActivationFunction = getattr(Fused, activation)
    return op, options, version


def _fused_activation(node: Node, grid: Grid, low: int, high: int) -> str:
    """The fused activation that, with INT8's saturation, clips to exactly [low, high]."""
    least, most = -128 - grid.zero_point, 127 - grid.zero_point
    unit = int(np.rint(np.float32(1.0) / np.float32(grid.scale)))
    ranges = {
        "NONE": (least, most),
        "RELU": (max(least, 0), most),
        "RELU6": (max(least, 0), min(most, relu6_level(grid))),
        "RELU_N1_TO_1": (max(least, -unit), min(most, unit)),
    }
    for activation, ends in ranges.items():
        if ends == (low, high):
            return activation
    raise ValueError(
        f"Layer {node.name!r}: no LiteRT activation clips to levels [{low}, {high}] at scale "
        f"{grid.scale} and zero-point {grid.zero_point}."
    )


def _require_unclipped(node: Node, layer: Any, positive: bool = False) -> None:
    """Raises unless INT8's saturation alone gives the layer's range."""
    zero_point = layer.output_grid.zero_point
    below = layer.low == -128 - zero_point or (positive and layer.low == 0)
    if not below or layer.high != 127 - zero_point:
        raise ValueError(
            f"Layer {node.name!r} ({type(layer).__name__}) would have to clip to levels "
            f"[{layer.low}, {layer.high}], which its operator cannot: give it 8 bits."
        )


def _check_multiplier(node: Node, multiplier: Any, least: float = 0.0) -> None:
    low, high = np.min(multiplier), np.max(multiplier)
    if not least <= low <= high < 256.0:
        raise ValueError(
            f"Layer {node.name!r}: requantization by {low} to {high} is outside what XNNPACK "
            f"takes (from {least}, below 256): a step size has run away, or a branch is dead."
        )


def _batch_one(tensor: Any) -> tuple[int, ...]:
    if None in tensor.shape[1:]:
        raise ValueError(f"Tensor {tensor.name!r}: expected a known shape, found {tensor.shape}.")
    return (1, *tensor.shape[1:])

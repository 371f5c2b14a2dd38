"""Operators that compute: each integer layer is one of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from keras_metamix.cost.containers import MacForm, mac_form
from keras_metamix.graph.topology import Node
from keras_metamix.layers import integer
from keras_metamix.layers.grid import Grid, clip_level
from metamix_tflite.encoding import Fused, Op, TensorType
from metamix_tflite.operators.moves import reshaped
from metamix_tflite.operators.patches import patches
from metamix_tflite.read.metadata import checksum
from metamix_tflite.write.signature_writer import PADDING, FileTensor, SignatureWriter, batch_one

# XNNPACK leaves sums and products of smaller scale ratios to kernels that round in another way.
_LEAST_ADD, _LEAST_MUL = 2.0**-10, 2.0**-16
_LARGEST_INT4_SUM = 2**27  # XNNPACK's kernels for ARM hold 16 times as much in an int32
_TABLES = {"sigmoid": Op.LOGISTIC, "tanh": Op.TANH}
_WEIGHT_TYPES = {"INT4": TensorType.INT4, "INT8": TensorType.INT8}


def quantize_input(file: SignatureWriter, node: Node) -> None:
    """QUANTIZE of an input of floats or bytes; with io="int8" the input itself."""
    layer, (source,) = node.operation, file.read(node)
    _require_unclipped(node, layer)
    target = file.output(node, layer.output_grid)
    name = node.inputs[0].name
    if file.io == "int8" and name in file.inputs:
        raise ValueError(f"Input {name!r} is quantized twice, which io='int8' cannot hold.")
    if file.io == "int8":
        file.inputs[name] = target
    else:
        file.graph.operator(Op.QUANTIZE, [source.index], [target])


def dequantize(file: SignatureWriter, node: Node) -> None:
    """DEQUANTIZE of an output; with io="int8" the output itself."""
    (source,) = file.read(node)
    if file.io == "int8":
        file.values[id(node.output)] = source
        return
    index = file.graph.tensor(node.name, source.shape, TensorType.FLOAT32)
    file.values[id(node.output)] = FileTensor(index, source.shape, None)
    file.graph.operator(Op.DEQUANTIZE, [source.index], [index], version=2)


def mac(file: SignatureWriter, node: Node) -> None:
    """CONV_2D, DEPTHWISE_CONV_2D or FULLY_CONNECTED, for some convolutions one of patches.

    A dense layer in a container without FULLY_CONNECTED is a CONV_2D between two RESHAPEs.
    """
    layer: integer.IntegerMac = node.operation
    (source,) = file.read(node)
    result = batch_one(node.output)
    form = mac_form(
        layer.kind,
        layer.kernel_shape,
        layer.strides,
        source.shape[-1],
        layer.weight_bits,
        file.container,
    )
    spread = layer.kind == "dense" and form.operator == "CONV_2D"
    if spread and len(result) != 4:
        height, width = 1, math.prod(result[1:-1])
        source = reshaped(file, f"{node.name}/image", source, (1, height, width, source.shape[-1]))
        result = (1, height, width, result[-1])
    activation = fused_activation(node, layer.output_grid, layer.low, layer.high)
    kernel, scale = np.asarray(layer.kernel), np.asarray(layer.weight_scale)
    bias = np.asarray(layer.bias)
    _check_multiplier(node, np.asarray(layer.multiplier))
    if form.patches:
        source = patches(file, node.name, source, layer, result)
    held = form.container
    if held == "INT4":
        _check_reach(node, layer)
    matrix = form.operator == "FULLY_CONNECTED"
    data, dimension = _layout(kernel, layer.kind, matrix)
    weights = file.graph.tensor(
        f"{node.name}/weights", data.shape, _WEIGHT_TYPES[held], scale, 0, data, dimension
    )
    bias_scale = np.float32(layer.input_grid.scale) * scale
    biases = file.graph.tensor(
        f"{node.name}/bias", bias.shape, TensorType.INT32, bias_scale, 0, bias
    )
    target = file.tensor(node.name, result, layer.output_grid, activation)
    file.values[id(node.output)] = target
    file.declared["layers"][node.name] = {
        "layer": layer.layer or "",  # constants have no trained layer
        "activation_bits": layer.input_grid.bits,
        "weight_bits": layer.weight_bits,
        "container": held,
        "weights": checksum(data.astype(np.int8)),
        "weight_scales": checksum(scale),
        "bias": checksum(bias.astype(np.int32)),
    }
    if layer.layer:  # constants have no bit-width
        macs = math.prod(result) * kernel.size // layer.channels
        file.declared["bops"] += macs * layer.input_grid.bits * layer.weight_bits
    op, options, version = _mac_operator(layer, form, activation)
    file.graph.operator(op, [source.index, weights, biases], [target.index], options, version)
    if result != batch_one(node.output):
        flat = reshaped(file, f"{node.name}/flat", target, batch_one(node.output))
        file.values[id(node.output)] = flat


def _layout(kernel: np.ndarray, kind: str, matrix: bool) -> tuple[np.ndarray, int]:
    """A kernel as LiteRT's operator has it, and the axis of its output channels."""
    if kind == "depthwise":
        return kernel.reshape(1, *kernel.shape[:2], -1), 3
    if matrix:
        return kernel.reshape(-1, kernel.shape[-1]).T, 0
    return kernel.reshape(*(1, 1)[: 4 - kernel.ndim], *kernel.shape).transpose(3, 0, 1, 2), 0


def add(file: SignatureWriter, node: Node) -> None:
    """ADD of two tensors."""
    layer: Any = node.operation
    scales = np.array([grid.scale for grid in layer.input_grids], np.float32)
    _check_multiplier(node, scales / np.float32(layer.output_grid.scale), _LEAST_ADD)
    options = schema.AddOptionsT()
    _combine(file, node, Op.ADD, options, [t.index for t in file.read(node)])


def multiply(file: SignatureWriter, node: Node) -> None:
    """MUL of two tensors."""
    layer: Any = node.operation
    product = np.prod([np.float32(grid.scale) for grid in layer.input_grids])
    _check_multiplier(node, product / np.float32(layer.output_grid.scale), _LEAST_MUL)
    options = schema.MulOptionsT()
    _combine(file, node, Op.MUL, options, [t.index for t in file.read(node)])


def rescale(file: SignatureWriter, node: Node) -> None:
    """MUL by the constant 1 of another scale."""
    layer: integer.Rescale = node.operation
    (source,) = file.read(node)
    product = np.float32(layer.input_grid.scale) * layer.factor
    _check_multiplier(node, product / np.float32(layer.output_grid.scale), _LEAST_MUL)
    one = file.graph.tensor(
        f"{node.name}/one", (1,), TensorType.INT8, float(layer.factor), 0, np.ones(1, np.int8)
    )
    _combine(file, node, Op.MUL, schema.MulOptionsT(), [source.index, one])


def _combine(file: SignatureWriter, node: Node, op: int, options: Any, inputs: list[int]) -> None:
    layer = node.operation
    activation = fused_activation(node, layer.output_grid, layer.low, layer.high)
    options.fusedActivationFunction = getattr(Fused, activation)
    target = file.output(node, layer.output_grid, activation)
    file.graph.operator(op, inputs, [target], options, version=2)


def mean(file: SignatureWriter, node: Node) -> None:
    """MEAN over height and width."""
    layer: Any = node.operation
    (source,) = file.read(node)
    # MEAN has no fused activation, but a mean of levels >= 0 is >= 0.
    _require_unclipped(node, layer, positive=layer.input_grid.low >= 0)
    axes = file.vector(f"{node.name}/axes", [1, 2])
    options = schema.ReducerOptionsT()
    options.keepDims = layer.keepdims
    target = file.output(node, layer.output_grid)
    file.graph.operator(Op.MEAN, [source.index, axes], [target], options, version=2)


def table(file: SignatureWriter, node: Node) -> None:
    """LOGISTIC or TANH."""
    layer: Any = node.operation
    (source,) = file.read(node)
    _require_unclipped(node, layer)
    target = file.output(node, layer.output_grid)
    file.graph.operator(_TABLES[layer.function], [source.index], [target], version=2)


def _mac_operator(
    layer: integer.IntegerMac, form: MacForm, activation: str
) -> tuple[int, Any, int]:
    """Operator, options and the lowest version that has the types."""
    op, version = getattr(Op, form.operator), 6 if form.container == "INT4" else 3
    if form.operator == "FULLY_CONNECTED":
        version, options = 12, schema.FullyConnectedOptionsT()
        options.keepNumDims = True
    elif form.operator == "CONV_2D":
        options = schema.Conv2DOptionsT()
    else:
        options = schema.DepthwiseConv2DOptionsT()
        options.depthMultiplier = layer.kernel_shape[-1]
    if form.operator != "FULLY_CONNECTED":
        options.padding = PADDING[layer.padding]
        options.strideH, options.strideW = layer.strides
        options.dilationHFactor, options.dilationWFactor = layer.dilation_rate
    options.fusedActivationFunction = getattr(Fused, activation)
    return op, options, version


def fused_activation(node: Node, grid: Grid, low: int, high: int) -> str:
    """The fused activation that, with INT8's saturation, clips to exactly [low, high]."""
    least, most = -128 - grid.zero_point, 127 - grid.zero_point
    unit = int(np.rint(np.float32(1.0) / np.float32(grid.scale)))
    ranges = {
        "NONE": (least, most),
        "RELU": (max(least, 0), most),
        "RELU6": (max(least, 0), min(most, clip_level(grid, 6.0))),
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


def _check_reach(node: Node, layer: integer.IntegerMac) -> None:
    """Raises unless the largest sum that INT4 weights can give fits XNNPACK's kernels for ARM."""
    if layer.largest_sum() >= _LARGEST_INT4_SUM:
        raise ValueError(
            f"Layer {node.name!r}: sums may reach {layer.largest_sum():,}, and INT4 weights take "
            f"less than {_LARGEST_INT4_SUM:,} on ARM: give it more than 4 bits."
        )


def _check_multiplier(node: Node, multiplier: Any, least: float = 0.0) -> None:
    low, high = np.min(multiplier), np.max(multiplier)
    if not least <= low <= high < 256.0:
        raise ValueError(
            f"Layer {node.name!r}: requantization by {low} to {high} is outside what XNNPACK "
            f"takes (from {least}, below 256): a step size has run away, or a branch is dead."
        )

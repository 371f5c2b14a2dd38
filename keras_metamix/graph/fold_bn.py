"""Folds a trained network into integer layers: what the device computes, as a Keras model."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_metamix.graph.operations import Kind, kind
from keras_metamix.graph.topology import Node, Topology
from keras_metamix.layers.activation_quantizer import ActivationQuantizer
from keras_metamix.layers.batch_norm import FoldableBatchNormalization, folded_terms
from keras_metamix.layers.grid import Grid, relu6_level
from keras_metamix.layers.integer import (
    Dequantize,
    IntegerAdd,
    IntegerLayer,
    IntegerMac,
    IntegerMean,
    IntegerMultiply,
    QuantizeInput,
    Rescale,
)
from keras_metamix.layers.mac import QuantizedDense, QuantizedDepthwiseConv2D


def fold_batch_norm(model: Any) -> keras.Model:
    """A plain Keras model that computes what the .tflite computes, float in and float out.

    Batch norm folds into the scale of each output channel and an int32 bias, never into the
    trained integers (which change sign where a channel's scale is negative). A softmax at the
    end is left out: the outputs are the quantized logits.

    Args:
      model: a MetaMixModel in weight training with `stream_bits=8`.

    Raises:
      ValueError: the model is not ready, or a layer has no exact integer form; names it.
    """
    if getattr(model, "space", None) is None:
        raise TypeError(f"fold_batch_norm takes a MetaMixModel, found {type(model).__name__}.")
    if model.space.stream_bits is None:
        raise ValueError(
            "SearchSpace(stream_bits=None) leaves residual sums and logits in float, which the "
            "device cannot hold: train with stream_bits=8 to export."
        )
    if model.phase != "weight_training":
        raise ValueError(
            f"The model is in phase {model.phase!r}: its weights are not quantized yet. Finish "
            "the search, or fix an assignment with set_bits, before folding."
        )
    if not model.calibrated:
        raise ValueError(
            "The model has no step sizes yet: fit it, or call keras_metamix.calibrate."
        )
    return _Fold(Topology(model.network), model.network.name).run()


@dataclasses.dataclass(frozen=True)
class _Levels:
    """A tensor of levels and its grid."""

    tensor: Any
    grid: Grid


@dataclasses.dataclass(frozen=True)
class _Pending:
    """An operation whose result has not met its quantizer yet.

    `inputs` are levels, or one float tensor of the model's input; `after` are layers that only
    move values, run behind the requantization.
    """

    node: Node | None
    inputs: tuple[Any, ...]
    batch_norm: FoldableBatchNormalization | None = None
    relu: Kind = Kind.PASS
    after: tuple[Any, ...] = ()


class _Fold:
    """One walk over a network."""

    def __init__(self, topology: Topology, name: str):
        self.topology, self.name = topology, name
        self.inputs = [
            keras.Input(batch_shape=t.shape, dtype=t.dtype, name=t.name) for t in topology.inputs
        ]
        self.values: dict[int, _Levels | _Pending] = {
            id(old): _Pending(None, (new,))
            for old, new in zip(topology.inputs, self.inputs, strict=True)
        }

    def run(self) -> keras.Model:
        for node in self.topology.nodes:
            self.values[id(node.output)] = self._visit(node)
        outputs = []
        for tensor in self.topology.outputs:
            levels = self.values[id(tensor)]
            if isinstance(levels, _Pending):
                raise ValueError(f"Output {tensor.name!r} of {self.name!r} carries no quantizer.")
            name = f"{self.topology.producer(tensor).name}_output"  # pyright: ignore
            outputs.append(Dequantize(levels.grid, name=name)(levels.tensor))
        inputs = self.inputs if len(self.inputs) > 1 else self.inputs[0]
        outputs = outputs if len(outputs) > 1 else outputs[0]
        return keras.Model(inputs, outputs, name=f"{self.name}_folded")

    def _visit(self, node: Node) -> _Levels | _Pending:
        operation = node.operation
        values = [self.values[id(t)] for t in node.inputs]
        first = values[0]
        if isinstance(operation, ActivationQuantizer):
            return self._quantize(operation, node, first)
        found = kind(operation)
        if isinstance(operation, FoldableBatchNormalization) and isinstance(first, _Pending):
            return dataclasses.replace(first, batch_norm=operation)
        if found in (Kind.RELU, Kind.RELU6):
            return self._relu(node, first, found)
        if found is Kind.PASS:
            return self._pass(node, first)
        if found is Kind.SOFTMAX and self.topology.is_output(node.output):
            return first
        if found in (Kind.MAC, Kind.ADD, Kind.MULTIPLY, Kind.MEAN):
            levels = tuple(self._require_levels(node, v) for v in values)
            if found in (Kind.ADD, Kind.MULTIPLY) and len(levels) != 2:
                raise ValueError(
                    f"Layer {node.name!r}: a {found.value} of {len(levels)} tensors has no "
                    "integer form yet, expected 2."
                )
            return _Pending(node, levels)
        raise ValueError(
            f"Layer {node.name!r} ({type(operation).__name__}) has no exact integer form: it "
            "trains, but cannot be folded."
        )

    def _require_levels(self, node: Node, value: _Levels | _Pending) -> _Levels:
        if isinstance(value, _Pending):
            raise ValueError(f"Layer {node.name!r} reads a tensor that carries no quantizer.")
        return value

    def _relu(self, node: Node, value: _Levels | _Pending, found: Kind) -> _Pending:
        if isinstance(value, _Levels):
            return _Pending(node, (value,), relu=found)
        relu = Kind.RELU6 if Kind.RELU6 in (found, value.relu) else found
        return dataclasses.replace(value, relu=relu)

    def _pass(self, node: Node, value: _Levels | _Pending) -> _Levels | _Pending:
        layer = type(node.operation).from_config(
            node.operation.get_config() | {"name": _call_name(node)}
        )
        if isinstance(value, _Levels):
            return _Levels(layer(value.tensor), value.grid)
        return dataclasses.replace(value, after=(*value.after, layer))

    def _quantize(
        self, quantizer: ActivationQuantizer, node: Node, value: _Levels | _Pending
    ) -> _Levels:
        step, low, high = (float(t) for t in quantizer.assigned_grid())
        grid = Grid.of(step, int(low), int(high))
        pending = _Pending(node, (value,)) if isinstance(value, _Levels) else value
        if quantizer.activation != "linear":
            pending = self._relu(node, pending, Kind[quantizer.activation.upper()])
        levels = self._finish(pending, grid, _call_name(node))
        for layer in pending.after:
            levels = layer(levels)
        return _Levels(levels, grid)

    def _finish(self, pending: _Pending, grid: Grid, name: str) -> Any:
        """The integer layer of a pending operation, now that its output grid is known."""
        clip: dict[str, Any] = {}
        if pending.relu is not Kind.PASS:
            clip["low"] = max(grid.low, 0)
        if pending.relu is Kind.RELU6:
            if grid.scale != grid.step:
                raise ValueError(f"{name!r}: a ReLU6 before a signed quantizer is not supported.")
            clip["high"] = min(grid.high, relu6_level(grid))
        if pending.node is None:
            return QuantizeInput(grid, name=name, **clip)(pending.inputs[0])
        node, inputs = pending.node, pending.inputs
        grids, tensors = [v.grid for v in inputs], [v.tensor for v in inputs]
        found = kind(node.operation)
        if found is Kind.MAC:
            return self._mac(node, pending.batch_norm, grids[0], grid, clip)(tensors[0])
        layer: IntegerLayer
        if found is Kind.ADD:
            layer = IntegerAdd(grids, grid, name=node.name, **clip)
            return layer(tensors)
        if found is Kind.MULTIPLY:
            layer = IntegerMultiply(grids, grid, name=node.name, **clip)
            return layer(tensors)
        if found is Kind.MEAN:
            keepdims = node.operation.keepdims
            return IntegerMean(grids[0], grid, keepdims, name=node.name, **clip)(tensors[0])
        if grids[0] == grid and not clip:
            return tensors[0]
        return Rescale(grids[0], grid, name=name, **clip)(tensors[0])

    def _mac(
        self,
        node: Node,
        norm: FoldableBatchNormalization | None,
        input_grid: Grid,
        grid: Grid,
        clip: dict[str, Any],
    ) -> IntegerMac:
        layer = node.operation
        if getattr(layer, "groups", 1) != 1:
            raise ValueError(
                f"Layer {layer.name!r}: groups={layer.groups} has no integer form yet."
            )
        dense = isinstance(layer, QuantizedDense)
        depthwise = isinstance(layer, QuantizedDepthwiseConv2D)
        geometry = {}
        if not dense:
            geometry = {
                "strides": layer.strides,
                "padding": layer.padding,
                "dilation_rate": layer.dilation_rate,
            }
        integer = IntegerMac(
            "dense" if dense else "depthwise" if depthwise else "conv",
            layer.weight_quantizer.bits,
            layer.kernel.shape,
            input_grid,
            grid,
            name=_call_name(node),
            layer=layer.name,
            **geometry,
            **clip,
        )
        scale, bias = _channel_terms(layer, norm)
        kernel = layer.integer_kernel()
        sign = np.where(scale < 0, -1, 1)
        kernel = kernel * (sign.reshape(kernel.shape[-2:]) if depthwise else sign)
        weight_step = np.asarray(layer.weight_quantizer.step(), np.float64).reshape(-1)
        labels = (input_grid.step / input_grid.scale) * (grid.scale / grid.step)
        integer.set_integers(kernel, bias, weight_step * np.abs(scale) * labels)
        return integer


def _call_name(node: Node) -> str:
    """A name for each call of a shared layer."""
    return f"{node.name}_{node.occurrence}" if node.occurrence else node.name


def _channel_terms(layer: Any, norm: FoldableBatchNormalization | None) -> tuple[Any, Any]:
    if norm is not None:
        terms = norm.fold()
    else:
        step = layer.accumulator_step()
        ones = np.ones(step.shape, np.float32)
        bias = layer.bias if layer.use_bias else 0 * ones
        terms = folded_terms(ones, 0 * ones, 0 * ones, ones, 0.0, bias, step)
    scale, bias = (ops.convert_to_numpy(t) for t in terms)
    return scale.astype(np.float64), bias

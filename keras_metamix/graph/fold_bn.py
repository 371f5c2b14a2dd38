"""Folds a trained network into integer layers: what the device computes, as a Keras model."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
from keras import tree

from keras_metamix.checks import shown
from keras_metamix.graph.fold_data_movement import data_movement_layer
from keras_metamix.graph.fold_mac import fold_constants, fold_mac, four_dimensional
from keras_metamix.graph.group import Group, Stage
from keras_metamix.graph.io_names import named_outputs
from keras_metamix.graph.kinds import ENDINGS, RELU_ENDS, Kind
from keras_metamix.graph.operations import activation_kind, kind
from keras_metamix.graph.operators.base import Operator, require_levels
from keras_metamix.graph.requantize import Levels, clip_ends, rescaled
from keras_metamix.graph.topology import Node, Topology, inputs_like
from keras_metamix.layers.activation_quantizer import ActivationQuantizer
from keras_metamix.layers.grid import Grid
from keras_metamix.layers.integer import (
    Dequantize,
    QuantizeInput,
)
from keras_metamix.layers.mac import QuantizedMac
from keras_metamix.network_model import require_quantized_model

_SCALES = (Kind.MAC, Kind.BATCH_NORM, Kind.AFFINE, Kind.HARD_SIGMOID)


def fold_batch_norm(model: Any) -> keras.Model:
    """A plain Keras model that computes what the .tflite computes, floats or bytes in, floats out.

    Batch norm folds into the scale of each output channel and an int32 bias, never into the
    trained integers (which change sign where a channel's scale is negative). A softmax or an L2
    normalization at the end is left out: that output gives the quantized tensor before it, under
    its own name, even where that is an output as well. Inputs and outputs have the structure of the
    model's.

    Args:
      model: a MetaMixModel in weight training, or a BitMixerModel with quantized weights, at the
        bit-widths assigned, with `stream_bits=8`.

    Raises:
      ValueError: the model is not ready, or a layer has no exact integer form; names it.
    """
    require_foldable(model)
    model.require_quantized()
    if not model.calibrated:
        raise ValueError(
            "The model has no step sizes yet: fit it, or call keras_metamix.calibrate."
        )
    _require_sound(model.network)
    return fold_network(model.network)


def fold_network(network: keras.Model, distinct: bool = False) -> keras.Model:
    """`fold_batch_norm` of a network at its present steps and bits, trained or not.

    Args:
      network: of a quantized model.
      distinct: makes all step sizes differ a little, as training does: the same layers then, with
        nothing left out because two grids happen to be equal.
    """
    return _Fold(network, distinct).run()


def require_foldable(model: Any) -> None:
    """Raises TypeError or ValueError for a model that no training makes one for a device."""
    require_quantized_model("fold_batch_norm", model)
    if model.space is not None and model.space.stream_bits is None:
        raise ValueError(
            "SearchSpace(stream_bits=None) leaves residual sums and logits in float, which the "
            "device cannot hold: train with stream_bits=8 to export."
        )
    if model.float_layers:
        raise ValueError(
            f"Layers {shown(list(model.float_layers))} were left in float: no integer form."
        )


def _require_sound(network: keras.Model) -> None:
    """Raises ValueError for weights that are NaN or Inf, or bits that are none; names them."""
    for variable in network.weights:
        values = keras.ops.convert_to_numpy(variable)
        if np.issubdtype(values.dtype, np.floating) and not np.all(np.isfinite(values)):
            count = int(np.sum(~np.isfinite(values)))
            raise ValueError(
                f"{variable.path}: expected finite weights, found {count} NaN or Inf of "
                f"{values.size}."
            )
    for layer in network.layers:
        if isinstance(layer, QuantizedMac):
            _ = layer.input_quantizer.choice.bits, layer.weight_quantizer.choice.bits


class _Fold:
    """One walk over a network."""

    def __init__(self, network: keras.Model, distinct: bool):
        self.network, self.topology, self.distinct = network, Topology(network), distinct
        self.names = self.topology.names
        self.numbers: dict[int, int] = {}  # of quantizers, where their steps are to differ
        self.inputs = inputs_like(network.input)
        self.values: dict[int, Levels | Group] = {
            id(old): Group(inputs=(new,))
            for old, new in zip(self.topology.inputs, tree.flatten(self.inputs), strict=True)
        }

    def run(self) -> keras.Model:
        for node in self.topology.nodes:
            self.values[id(node.output)] = self._visit(node)
        outputs = [self._output(name, tensor) for name, tensor in named_outputs(self.network)]
        structure = tree.pack_sequence_as(self.network.output, outputs)
        return keras.Model(self.inputs, structure, name=f"{self.network.name}_folded")

    def _output(self, name: str, tensor: Any) -> Any:
        levels = self.values[id(tensor)]
        if isinstance(levels, Group):
            raise ValueError(
                f"Output {name!r} of {self.network.name!r} has no quantizer: put an "
                "ActivationQuantizer(8, role='stream') behind it."
            )
        producer: Any = self.topology.producer(tensor)
        layer = Dequantize(levels.grid, name, name=self.names.new(f"{producer.name}_output"))
        return layer(levels.tensor)

    # --- one operation ---------------------------------------------------------------------

    def _visit(self, node: Node) -> Levels | Group:
        operation = node.operation
        values = [self.values[id(t)] for t in node.inputs]
        first = values[0]
        if isinstance(operation, ActivationQuantizer):
            return self._quantize(operation, node.call_name, first)
        if isinstance(operation, QuantizedMac):
            return self._mac(operation, node, first)
        found = kind(operation, node)
        if found is Kind.ROUND:
            first = require_levels(node, first)
        if found in (Kind.PASS, Kind.ROUND) and isinstance(first, Levels):
            return Levels(data_movement_layer(node, first.grid)(first.tensor), first.grid)
        if found in ENDINGS and self.topology.is_output(node.output):
            return first
        joined = first.joined(node, found) if isinstance(first, Group) else None
        if joined is not None:
            return joined
        if isinstance(found, Operator):
            return found.begin(node, values)
        if found is None or found in (Kind.FLOAT, *ENDINGS):
            raise ValueError(
                f"Layer {node.name!r} ({type(operation).__name__}) has no exact integer form: it "
                "trains, but cannot be folded."
            )
        return Group.begun(node, found, (require_levels(node, first),))

    def _mac(self, layer: Any, node: Node, value: Levels | Group) -> Group:
        quantizer = layer.input_quantizer
        levels = self._quantize(quantizer, self.names.new(quantizer.name), value)
        # The layer owns its batch norm: one behind it is another's.
        group = dataclasses.replace(Group.begun(node, Kind.MAC, (levels,)), stage=Stage.SCALED)
        found = activation_kind(layer.activation)
        if found is Kind.PASS:
            return group
        joined = group.joined(node, found)
        if joined is None:
            raise ValueError(
                f"Layer {layer.name!r}: expected activation=None, 'relu', 'relu6' or "
                "'hard_sigmoid'; put another one into a layer of its own behind it."
            )
        return joined

    def _quantize(self, quantizer: ActivationQuantizer, name: str, value: Levels | Group) -> Levels:
        step, low, high = (float(t) for t in quantizer.assigned_grid())
        leader = quantizer.leader()
        if self.distinct and leader.fixed_step is None:
            step *= 1 + 1e-4 * self.numbers.setdefault(id(leader), len(self.numbers) + 1)
        grid = Grid.of(step, int(low), int(high))
        group = value if isinstance(value, Group) else Group()
        if quantizer.activation != "linear":
            group = group.clipped(0.0, RELU_ENDS[Kind[quantizer.activation.upper()]])
        if isinstance(value, Levels):
            return Levels(rescaled(value, grid, clip_ends(group, grid, name), name), grid)
        return Levels(self.finish(group, grid, name), grid)

    # --- one group, now that its output grid is known --------------------------------------

    def finish(self, group: Group, grid: Grid, name: str) -> Any:
        """The levels of a group on the grid of its quantizer."""
        levels = self._integers(group, grid, name)
        for node in group.data_movement:
            levels = data_movement_layer(node, grid)(levels)
        return levels

    def _integers(self, group: Group, grid: Grid, name: str) -> Any:
        clip = clip_ends(group, grid, name)
        node, inputs, found = group.head, group.inputs, group.kind
        if node is None:
            return QuantizeInput(grid, name=name, **clip)(inputs[0])
        if isinstance(found, Operator):
            return found.finish(group, grid, clip, self)
        if found in _SCALES:
            layer = fold_mac if found is Kind.MAC else fold_constants
            mac = layer(group, inputs[0].grid, grid, clip)
            return four_dimensional(mac, inputs[0].tensor, self.names)
        return rescaled(inputs[0], grid, clip, node.call_name)

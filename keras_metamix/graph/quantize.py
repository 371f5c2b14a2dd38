"""Rewrites a float model: quantized MAC layers, and a quantizer on every tensor between groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import keras
from keras import tree

from keras_metamix.assignment import SearchSpace, require_space
from keras_metamix.checks import found_model
from keras_metamix.graph.copying import copy_kernel, copy_of, copy_sets, copy_state
from keras_metamix.graph.expand import float_names
from keras_metamix.graph.inspection import Inspection, accepted
from keras_metamix.graph.kinds import Kind
from keras_metamix.graph.names import Names
from keras_metamix.graph.operators import Operator
from keras_metamix.graph.sameness import require_same_outputs
from keras_metamix.graph.topology import Node, as_functional, inputs_like
from keras_metamix.graph.transitions import TransitionRule, transitions
from keras_metamix.layers.activation_quantizer import ActivationQuantizer
from keras_metamix.layers.batch_norm import FoldableBatchNormalization
from keras_metamix.layers.mac import (
    QuantizedConv2D,
    QuantizedConv2DTranspose,
    QuantizedDense,
    QuantizedDepthwiseConv2D,
    QuantizedMac,
)
from keras_metamix.layers.on_grid import OnGrid
from keras_metamix.layers.parts import activation_quantizers, batch_norms
from keras_metamix.layers.resize import GridResize
from keras_metamix.layers.transitional_batch_norm import TransitionalBatchNormalization


def quantize(
    model: keras.Model,
    space: SearchSpace,
    float_layers: Iterable[str] = (),
    rule: TransitionRule | None = None,
) -> tuple[keras.Model, frozenset[str]]:
    """The searchable network of a float model: same weights, same inputs and outputs.

    Its inputs and its `output_names` are called as the float model's.

    Args:
      model: functional or Sequential.
      space: the candidates.
      float_layers: names of layers to leave in float; such a network cannot be exported.
      rule: Bit-Mixer's: batch norms are transitional, keyed so, and weights nested.

    Returns:
      The network, and the names that the layers left in float have there.

    Raises:
      TypeError: the model has no graph, or `space` or `float_layers` is of another type.
      ValueError: an operation that cannot be wrapped, or is not in float32, or a method of the
        model's own class that the wrapped one would not call; names it.
    """
    require_space(space)
    functional = as_functional(model)
    found = accepted(model, space, float_names(float_layers))
    network = _Rewrite(found, space, rule).run()
    network.output_names = list(functional.output_names)
    connect(network)
    require_same_outputs(functional, network)
    return network, found.kept


def connect(network: keras.Model) -> None:
    """Gives layers what they read of others: bit choices, and the step or grid of their input.

    What they read is in their config, by name; a layer that is loaded holds no other layer.
    """
    choices = {
        x.name: x.input_quantizer.choice for x in network.layers if isinstance(x, QuantizedMac)
    }
    for norm in batch_norms(network):
        if isinstance(norm, TransitionalBatchNormalization):
            norm.follow(choices)
        if norm.input_quantizer is not None:
            norm.connect(network.get_layer(norm.input_quantizer).step)
    for quantizer in activation_quantizers(network):
        if quantizer.follows is not None:
            quantizer.follow(network.get_layer(quantizer.follows))
    for layer in network.layers:
        if isinstance(layer, OnGrid) and layer.input_quantizer is not None:
            layer.connect(network.get_layer(layer.input_quantizer).acting_grid)


def require_network(network: Any, space: SearchSpace | None, name: str) -> None:
    """Checks what a file or a user gives as the network of a quantized model.

    Raises:
      ValueError: a network without quantized layers, or not of this space; names the layer.
    """
    macs = [x for x in getattr(network, "layers", ()) if isinstance(x, QuantizedMac)]
    if not macs:
        raise ValueError(
            f"{name}: expected a network of quantized layers, as from_float makes it, found "
            f"{found_model(network)}."
        )
    ends = {space.layer_candidates(edge) for edge in (True, False)} if space else set()
    for mac in macs:
        found = mac.input_quantizer.candidates, mac.weight_quantizer.candidates
        if space and found not in ends:
            raise ValueError(
                f"Layer {mac.name!r}: expected the bit-widths of {space}, found {found}."
            )


class _Rewrite:
    """One run of `keras.models.clone_model` by a plan."""

    def __init__(self, found: Inspection, space: SearchSpace, rule: TransitionRule | None):
        self.model, self.space, self.rule = found.model, space, rule
        self.topology, self.plan = found.topology, found.plan
        self.macs, self.edges = found.macs, found.edges
        self.keys = transitions(self.topology, self.macs, rule) if rule else {}
        self.nodes = {(node.name, node.occurrence): node for node in self.topology.nodes}
        self.calls: Counter[str] = Counter()
        self.names = Names(operation.name for operation in self.model.operations)
        self.streamed_inputs: dict[int, Any] = {}
        self.streams: dict[int, str] = {}  # names of stream quantizers, by the tensor before

    def run(self) -> keras.Model:
        tensors = inputs_like(self.model.input)
        for old, new in zip(self.topology.inputs, tree.flatten(tensors), strict=True):
            if self.plan[old].stream:
                self.streamed_inputs[id(new)] = self._stream(old, f"{old.name}_stream")(new)
        network = keras.models.clone_model(
            keras.Model(self.model.input, self.model.output, name=self.model.name),
            input_tensors=tensors,
            clone_function=self._clone,
            call_function=self._call,
        )
        outputs = tree.map_structure(  # an input may be an output too
            lambda t: self.streamed_inputs.get(id(t), t), network.output
        )
        return keras.Model(network.input, outputs, name=network.name)

    def _clone(self, operation: Any) -> Any:
        config = operation.get_config() | {"name": operation.name}
        found = self.plan.kind(self.nodes[operation.name, 0])
        if found is Kind.BATCH_NORM:
            if self._is_owned(self.nodes[operation.name, 0]):
                return operation  # the clone of its MAC layer owns its own
            clone = self._batch_norm(operation, config)
        elif found is Kind.MAC:
            clone = self._quantized_mac(operation, config)
        elif found is Kind.ROUND:
            return operation  # each call has a layer of its own
        else:
            return self._copied(operation, config, found)
        _copy(operation, clone)
        if found is Kind.MAC and clone.norm is not None:
            _copy(self._norm_behind(operation.name), clone.norm)
        return clone

    def _copied(self, operation: Any, config: dict[str, Any], found: Any) -> Any:
        """A copy of an operation, or what computes it on the grid of its input."""
        node = self.nodes[operation.name, 0]
        cls = found.trained(node) if isinstance(found, Operator) else None
        if cls is None or self.space.stream_bits is None:
            return copy_of(operation, operation.name)
        config |= {"input_quantizer": self._stream_before(node)}
        return copy_of(operation, operation.name, cls, config)

    def _norm_behind(self, name: str) -> Any:
        """The batch norm that folds into a MAC layer, if any."""
        norm = self.plan.whole_group(self.macs[name][0]).norm
        return norm and norm.operation

    def _is_owned(self, node: Node) -> bool:
        """Whether a node is a batch norm that folds into the MAC layer before it."""
        return self.plan[node.output].group.norm is node

    def _batch_norm(self, operation: Any, config: dict[str, Any]) -> Any:
        node = self.nodes[operation.name, 0]
        if not self._is_owned(node) and self.plan.called_once(node):
            config |= {"input_quantizer": self._stream_before(node)}
        if self.rule is None:
            return FoldableBatchNormalization.from_config(config)
        transition = self.keys[operation.name]
        sets = [1 if mac is None else len(self._candidates(mac.name)[0]) for mac in transition]
        return TransitionalBatchNormalization.from_config(
            config
            | {
                "sets": sets,
                "own": 0 if self.rule == "following" else 1,
                "transition": [mac and mac.name for mac in transition],
            }
        )

    def _stream_before(self, node: Node) -> str:
        """The name of the quantizer of a node's input, behind layers that only move values."""
        tensor = node.inputs[0]
        while id(tensor) not in self.streams:
            before: Any = self.topology.producer(tensor)
            tensor = before.inputs[0]
        return self.streams[id(tensor)]

    def _candidates(self, name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self.space.layer_candidates(name in self.edges)

    def _quantized_mac(self, operation: Any, config: dict[str, Any]) -> Any:
        name, edge = operation.name, operation.name in self.edges
        norm = self._norm_behind(name)
        config |= {
            "weight_bits": "same" if self.space.tied(edge) else self._candidates(name)[1],
            "input_quantizer": self._input_quantizer(name),
            "norm": norm and self._batch_norm(norm, norm.get_config()),
            "nested_weights": self.rule is not None,
            "edge": edge,
        }
        for cls, quantized in (
            (keras.layers.DepthwiseConv2D, QuantizedDepthwiseConv2D),
            (keras.layers.Conv2DTranspose, QuantizedConv2DTranspose),
            (keras.layers.Conv2D, QuantizedConv2D),
            (keras.layers.Dense, QuantizedDense),
        ):
            if isinstance(operation, cls):
                return quantized.from_config(config)
        raise TypeError(f"Layer {operation.name!r} is no MAC layer.")

    def _call(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
        node = self.nodes[operation.name, self.calls[operation.name]]
        self.calls[operation.name] += 1
        args, kwargs = tree.map_structure(
            lambda t: self.streamed_inputs.get(id(t), t), (args, kwargs)
        )
        if self.plan.kind(node) is Kind.MAC:
            outputs = operation(args[0])
        elif self.plan.kind(node) is Kind.ROUND:
            outputs = self._resize(node)(args[0])
        elif (
            self.plan.kind(node) is Kind.SYMMETRIC
            or self._is_owned(node)
            or self._absorbed(node.output) != "linear"
        ):
            outputs = args[0]
        else:
            outputs = operation(*args, **kwargs)
        if self.plan[node.output].stream:
            outputs = self._stream(node.output, f"{node.call_name}_stream")(outputs)
        return outputs

    def _resize(self, node: Node) -> GridResize:
        """The layer of one call of a bilinear resize."""
        return GridResize(
            node.output.shape[1:3],
            input_quantizer=self._stream_before(node) if self.space.stream_bits else None,
            whole=self._holds_bytes(node.inputs[0]),
            name=node.call_name,
        )

    def _holds_bytes(self, tensor: Any) -> bool:
        """Whether a tensor is an input of bytes, moved or not, which no Cast has made floats."""
        node = self.topology.producer(tensor)
        if node is None:
            return "float" not in tensor.dtype
        moved = self.plan.kind(node) in (Kind.PASS, Kind.ROUND)
        cast = type(node.operation).__name__ == "Cast"
        return moved and not cast and self._holds_bytes(node.inputs[0])

    def _absorbed(self, tensor: Any) -> str:
        """The ReLU of a tensor's producer that the quantizer behind the tensor computes."""
        if self.plan[tensor].stream:
            return self._stream_absorbs(tensor)
        only = self.topology.only_consumer(tensor)
        if only is None or self.plan.kind(only) is not Kind.MAC:
            return "linear"
        return self._direct_absorbs(only.name, tensor)

    def _stream_absorbs(self, tensor: Any) -> Any:
        return self.plan.absorbable(tensor) if self.space.stream_bits else "linear"

    def _direct_absorbs(self, name: str, tensor: Any) -> Any:
        if self.plan[tensor].stream or len(self.macs[name]) > 1:
            return "linear"
        return self.plan.absorbable(tensor)

    def _input_quantizer(self, name: str) -> ActivationQuantizer:
        candidates, _ = self._candidates(name)
        tensors = [node.inputs[0] for node in self.macs[name]]
        groups = [self.plan[t].group for t in tensors]
        grids = {(group.sign, group.minimum) for group in groups}
        sign: Any = "signed"
        minimum = None
        if len(grids) == 1:
            sign, minimum = grids.pop()
        absorbed = self._direct_absorbs(name, tensors[0])
        direct = not self.plan[tensors[0]].on_grid
        shares = not direct and len(tensors) == 1 and candidates == (self.space.stream_bits,)
        return ActivationQuantizer(
            candidates,
            sign,
            absorbed,
            minimum=minimum,
            sign_from_data=all(group.kind is None for group in groups),
            maximum=groups[0].maximum if direct else None,
            follows=self._stream_before(self.macs[name][0]) if shares else None,
            name=self.names.new(f"{name}_input"),
        )

    def _stream(self, tensor: Any, name: str) -> Any:
        name = self.streams[id(tensor)] = self.names.new(name)
        if self.space.stream_bits is None:
            return keras.layers.Identity(name=name)
        plan, group = self.plan[tensor], self.plan[tensor].group
        return ActivationQuantizer(
            (self.space.stream_bits,),
            group.sign,
            self._stream_absorbs(tensor),
            role="stream",
            minimum=group.minimum,
            fixed_step=plan.fixed_step,
            sign_from_data=group.kind is None and plan.fixed_step is None,
            maximum=None if plan.fixed_step else group.maximum,
            name=name,
        )


def _copy(source: Any, target: Any) -> None:
    if isinstance(target, TransitionalBatchNormalization):
        copy_sets(source, target)
    elif isinstance(target, QuantizedMac):
        copy_kernel(source, target)
    else:
        copy_state(source, target)

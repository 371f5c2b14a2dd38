"""Rewrites a float model: quantized MAC layers, and a quantizer on every tensor between layers.

Where quantizers stand (contract of the device, see `fold_batch_norm`):
  - a tensor that exactly one MAC layer reads, and nothing else, carries that layer's input
    quantizer ("direct");
  - any other tensor that leaves a group of fused operations carries a stream quantizer, and
    the MAC layers that read it have their own input quantizers behind it;
  - batch norm, and a ReLU behind an operation that computes it, stand inside a group.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import keras
from keras import tree

from keras_metamix.assignment import SearchSpace
from keras_metamix.graph.layer_costs import mac_nodes
from keras_metamix.graph.operations import (
    ACTIVATIONS,
    FUSES_RELU,
    Kind,
    fused_activation,
    kind,
    require_kind,
)
from keras_metamix.graph.topology import Node, Topology, as_functional
from keras_metamix.layers.activation_quantizer import ActivationQuantizer
from keras_metamix.layers.batch_norm import FoldableBatchNormalization
from keras_metamix.layers.grid import Sign
from keras_metamix.layers.mac import (
    QuantizedConv2D,
    QuantizedDense,
    QuantizedDepthwiseConv2D,
    QuantizedMac,
)

_RELUS = {Kind.RELU: "relu", Kind.RELU6: "relu6"}


def quantize(model: keras.Model, space: SearchSpace) -> keras.Model:
    """The searchable network of a float model: same weights, same inputs and outputs.

    Raises:
      ValueError: an operation that cannot be wrapped; names it.
    """
    model = as_functional(model)
    rewrite = _Rewrite(model, space)
    network = rewrite.run()
    _carry_weights(model, network)
    link(network)
    return network


def link(network: keras.Model) -> None:
    """Tells MAC layers their input quantizer and batch norms the MAC layer they fold into.

    These references follow from the graph, so they are not saved with it.
    """
    topology = Topology(network)
    for node in topology.nodes:
        operation = node.operation
        before = topology.producer(node.inputs[0])
        if isinstance(operation, QuantizedMac):
            after = topology.only_consumer(node.output)
            object.__setattr__(operation, "input_quantizer", before and before.operation)
            has_norm = after is not None and isinstance(after.operation, FoldableBatchNormalization)
            object.__setattr__(operation, "has_batch_norm", has_norm)
        elif isinstance(operation, FoldableBatchNormalization) and before is not None:
            fused = isinstance(before.operation, QuantizedMac)
            object.__setattr__(operation, "producer", before.operation if fused else None)


class _Plan:
    """Which tensors of a float model carry which quantizer."""

    def __init__(self, topology: Topology, exact_inputs: set[str]):
        self.topology, self.exact_inputs = topology, exact_inputs
        self.kinds = {id(node): require_kind(node) for node in topology.nodes}
        self._signs: dict[int, Sign] = {}
        self._on_grid: dict[int, bool] = {}
        self.streams: list[Any] = []
        for tensor in topology.inputs:
            self._visit(tensor, None)
        for node in topology.nodes:
            for tensor in node.outputs:
                self._visit(tensor, node)

    def sign(self, tensor: Any) -> Sign:
        return self._signs[id(tensor)]

    def has_stream(self, tensor: Any) -> bool:
        return any(tensor is stream for stream in self.streams)

    def absorbable(self, tensor: Any) -> str:
        """The ReLU that the operation before a tensor ends with, else "linear"."""
        node = self.topology.producer(tensor)
        return _RELUS.get(self._activation(node), "linear") if node else "linear"

    def _activation(self, node: Node) -> Kind:
        found = self.kinds[id(node)]
        if found is Kind.MAC:
            return fused_activation(node.operation) or Kind.PASS
        return found if found in ACTIVATIONS else Kind.PASS

    def _visit(self, tensor: Any, node: Node | None) -> None:
        self._signs[id(tensor)] = self._infer_sign(node)
        on_grid = (
            node is not None
            and self.kinds[id(node)] is Kind.PASS
            and self._on_grid[id(node.inputs[0])]
        )
        if not on_grid and not self._inside_group(tensor, node):
            only = self.topology.only_consumer(tensor)
            if not self._is_direct(tensor, only) and not self._leaves_in_float(node):
                self.streams.append(tensor)
                on_grid = True
        self._on_grid[id(tensor)] = on_grid

    def _is_direct(self, tensor: Any, only: Node | None) -> bool:
        """Whether the one reader's own quantizer will do.

        A signed tensor of fewer than 8 bits is clipped by a label that its producer has to take
        into its weight scales: only a MAC layer can. What an 8-bit end reads needs no clip.
        """
        if only is None or self.kinds[id(only)] not in (Kind.MAC, Kind.PASS):
            return False
        if self._reader_behind_moves(only) in self.exact_inputs:
            return True
        root = self._group_operation(tensor)
        if root is None:
            return False
        return self.kinds[id(root)] is Kind.MAC or self.sign(tensor) == "unsigned"

    def _reader_behind_moves(self, node: Node | None) -> str | None:
        """The name of the one operation that reads a tensor in the end."""
        while node is not None and self.kinds[id(node)] is Kind.PASS:
            node = self.topology.only_consumer(node.output)
        return node.name if node is not None else None

    def _group_operation(self, tensor: Any) -> Node | None:
        """The operation that computes a tensor, behind batch norm, ReLU and moves."""
        node = self.topology.producer(tensor)
        while node is not None and (
            self.kinds[id(node)] in (Kind.BATCH_NORM, Kind.PASS) or self.kinds[id(node)] in _RELUS
        ):
            node = self.topology.producer(node.inputs[0])
        return node

    def _leaves_in_float(self, node: Node | None) -> bool:
        return node is not None and self._activation(node) is Kind.SOFTMAX

    def _inside_group(self, tensor: Any, node: Node | None) -> bool:
        only = self.topology.only_consumer(tensor)
        if node is None or only is None:
            return False
        here, after = self.kinds[id(node)], self.kinds[id(only)]
        if self._activation(node) is not Kind.PASS:
            return False
        if after is Kind.BATCH_NORM:
            return here is Kind.MAC
        return after in _RELUS and here in FUSES_RELU

    def _infer_sign(self, node: Node | None) -> Sign:
        if node is None:
            return "signed"
        activation = self._activation(node)
        if activation is Kind.HARD_SWISH:
            return "offset"
        if activation is not Kind.PASS:
            return "unsigned"
        here = self.kinds[id(node)]
        if here in (Kind.PASS, Kind.MEAN):
            before = self._signs[id(node.inputs[0])]
            return "signed" if here is Kind.MEAN and before == "offset" else before
        if here in (Kind.ADD, Kind.MULTIPLY):
            signs = {self._signs[id(t)] for t in node.inputs}
            return "unsigned" if signs == {"unsigned"} else "signed"
        return "signed"


class _Rewrite:
    """One run of `keras.models.clone_model` by a plan."""

    def __init__(self, model: keras.Model, space: SearchSpace):
        self.model, self.space = model, space
        self.topology = Topology(model)
        self.macs = mac_nodes(self.topology)
        if not self.macs:
            raise ValueError(
                f"Model {model.name!r} has no MAC layer: there is nothing to quantize."
            )
        self.edges = {next(iter(self.macs)), next(reversed(self.macs))}
        exact = self.edges if space.edge_bits == 8 else set()
        self.plan = _Plan(self.topology, exact)
        self._check_batch_norms()
        self.nodes = {(node.name, node.occurrence): node for node in self.topology.nodes}
        self.calls: Counter[str] = Counter()
        self.input_quantizers = {name: self._input_quantizer(name) for name in self.macs}
        self.streamed_inputs: dict[int, Any] = {}

    def _check_batch_norms(self) -> None:
        for node in self.topology.nodes:
            if self.plan.kinds[id(node)] is not Kind.BATCH_NORM:
                continue
            before = self.topology.producer(node.inputs[0])
            if (
                before is None
                or self.plan.kinds[id(before)] is not Kind.MAC
                or fused_activation(before.operation) is not Kind.PASS
                or self.topology.only_consumer(node.inputs[0]) is not node
                or len(self.macs[before.name]) > 1
                or node.occurrence > 0
            ):
                raise ValueError(
                    f"Layer {node.name!r} (BatchNormalization) does not directly follow a linear "
                    "MAC layer that nothing else reads, each called once: it cannot be folded."
                )

    def run(self) -> keras.Model:
        tensors = tree.map_structure(
            lambda t: keras.Input(batch_shape=t.shape, dtype=t.dtype, name=t.name),
            self.model.input,
        )
        for old, new in zip(self.topology.inputs, tree.flatten(tensors), strict=True):
            if self.plan.has_stream(old):
                self.streamed_inputs[id(new)] = self._stream(old, f"{old.name}_stream")(new)
        return keras.models.clone_model(
            keras.Model(self.model.input, self.model.output, name=self.model.name),
            input_tensors=tensors,
            clone_function=self._clone,
            call_function=self._call,
        )

    def _clone(self, operation: Any) -> Any:
        config = operation.get_config()
        if kind(operation) is Kind.BATCH_NORM:
            return FoldableBatchNormalization.from_config(config)
        if kind(operation) is not Kind.MAC:
            return type(operation).from_config(config)
        _, weights = self.space.layer_candidates(operation.name in self.edges)
        config |= {"activation": None, "weight_candidates": weights}
        for cls, quantized in (
            (keras.layers.DepthwiseConv2D, QuantizedDepthwiseConv2D),
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
        found = self.plan.kinds[id(node)]
        absorbed = self._absorbed(node.output) != "linear"
        if found is Kind.MAC:
            outputs = operation(self.input_quantizers[operation.name](args[0]))
            if not absorbed:
                outputs = self._fused_activation(node, outputs)
        elif absorbed:
            outputs = args[0]
        else:
            outputs = operation(*args, **kwargs)
        if self.plan.has_stream(node.output):
            outputs = self._stream(node.output, _call_name(f"{node.name}_stream", node))(outputs)
        return outputs

    def _fused_activation(self, node: Node, outputs: Any) -> Any:
        """The activation of a MAC layer, as a layer of its own behind it."""
        found = fused_activation(node.operation)
        if found is Kind.PASS:
            return outputs
        if found not in _RELUS and self.space.stream_bits:
            outputs = self._stream_quantizer(
                "signed", "linear", _call_name(f"{node.name}_sum", node)
            )(outputs)
        activation = node.operation.activation
        name = _call_name(f"{node.name}_activation", node)
        return keras.layers.Activation(activation, name=name)(outputs)

    def _absorbed(self, tensor: Any) -> str:
        """The ReLU of a tensor's producer that the quantizer behind the tensor computes."""
        if self.plan.has_stream(tensor):
            return self._stream_absorbs(tensor)
        only = self.topology.only_consumer(tensor)
        if only is None or self.plan.kinds[id(only)] is not Kind.MAC:
            return "linear"
        return self.plan.absorbable(tensor) if len(self.macs[only.name]) == 1 else "linear"

    def _stream_absorbs(self, tensor: Any) -> str:
        return self.plan.absorbable(tensor) if self.space.stream_bits else "linear"

    def _input_quantizer(self, name: str) -> ActivationQuantizer:
        candidates, _ = self.space.layer_candidates(name in self.edges)
        tensors = [node.inputs[0] for node in self.macs[name]]
        signs: set[Sign] = {self.plan.sign(t) for t in tensors}
        return ActivationQuantizer(
            candidates,
            sign=next(iter(signs)) if len(signs) == 1 else "signed",
            activation=self._direct_absorbs(name, tensors[0]),  # pyright: ignore[reportArgumentType]
            name=f"{name}_input",
        )

    def _direct_absorbs(self, name: str, tensor: Any) -> str:
        if self.plan.has_stream(tensor) or len(self.macs[name]) > 1:
            return "linear"
        return self.plan.absorbable(tensor)

    def _stream(self, tensor: Any, name: str) -> Any:
        if self.space.stream_bits is None:
            return keras.layers.Identity(name=name)
        return self._stream_quantizer(self.plan.sign(tensor), self._stream_absorbs(tensor), name)

    def _stream_quantizer(self, sign: Sign, activation: Any, name: str) -> ActivationQuantizer:
        bits = self.space.stream_bits or 8
        return ActivationQuantizer((bits,), sign, activation, role="stream", name=name)


def _call_name(name: str, node: Node) -> str:
    """A name for each call of a shared layer."""
    return f"{name}_{node.occurrence}" if node.occurrence else name


def _carry_weights(source: keras.Model, target: keras.Model) -> None:
    for layer in source.layers:
        if not layer.weights:
            continue
        try:
            twin = target.get_layer(layer.name)
        except ValueError:  # a ReLU that a quantizer absorbed has no weights; others must exist
            raise ValueError(f"Layer {layer.name!r} was lost in the rewrite.") from None
        if isinstance(twin, QuantizedMac):
            twin.kernel.assign(layer.kernel)  # pyright: ignore[reportAttributeAccessIssue]
            if layer.use_bias:
                twin.bias.assign(layer.bias)  # pyright: ignore[reportAttributeAccessIssue]
            twin.weight_quantizer.initialize_steps(layer.kernel)
        else:
            twin.set_weights(layer.get_weights())

"""A read-only view of a functional Keras model: which operation reads which tensor."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from typing import Any

import keras
from keras import tree

from keras_metamix.checks import found_model
from keras_metamix.graph.names import Names
from keras_metamix.keras_internals import calls_in, graph_of_sequential, has_graph, operation_of
from keras_metamix.network_model import NetworkModel


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """One call of an operation (a layer or a raw `keras.ops` operation).

    Attributes:
      operation: the Keras operation.
      occurrence: which of the operation's calls in this model, from 0.
      call_name: the operation's name; of its second call on one that is nothing else's.
      inputs, outputs: the symbolic tensors, in order.
      arguments: positional and keyword arguments of the call, constants included.
    """

    operation: Any
    occurrence: int
    call_name: str
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    arguments: tuple[Any, Any] = ((), {})

    @property
    def name(self) -> str:
        return self.operation.name

    @property
    def output(self) -> Any:
        """The only output tensor."""
        return self.outputs[0]


class Topology:
    """Nodes of a functional model in the order in which Keras runs them.

    Args:
      model: a functional or Sequential Keras model.

    Attributes:
      nodes, inputs, outputs: of the model, in order.
      names: those of its operations and calls.

    Raises:
      TypeError: the model is subclassed, so that it has no graph.
    """

    def __init__(self, model: keras.Model):
        model = as_functional(model)
        counts: Counter[int] = Counter()
        self.nodes: list[Node] = []
        self.inputs: list[Any] = list(model.inputs)
        self.outputs: list[Any] = list(model.outputs)
        self.names: Names = Names(operation.name for operation in model.operations)
        self._producer: dict[int, Node] = {}
        self._consumers: defaultdict[int, list[Node]] = defaultdict(list)
        for call in calls_in(model):
            operation = call.operation
            number, name = counts[id(operation)], operation.name
            node = Node(
                operation,
                number,
                self.names.new(f"{name}_{number}") if number else name,
                tuple(call.input_tensors),
                tuple(call.outputs),
                (call.arguments.args, call.arguments.kwargs),
            )
            counts[id(operation)] += 1
            self._add(node)

    def _add(self, node: Node) -> None:
        self.nodes.append(node)
        for tensor in node.outputs:
            self._producer[id(tensor)] = node
        for tensor in node.inputs:
            self._consumers[id(tensor)].append(node)

    def producer(self, tensor: Any) -> Node | None:
        """The node that computes a tensor; None for a model input."""
        return self._producer.get(id(tensor))

    def consumers(self, tensor: Any) -> list[Node]:
        """The nodes that read a tensor, once for each read."""
        return self._consumers.get(id(tensor), [])

    def is_output(self, tensor: Any) -> bool:
        """Whether a tensor is an output of the model."""
        return any(tensor is output for output in self.outputs)

    def only_consumer(self, tensor: Any) -> Node | None:
        """The one node that reads a tensor; None when several do or it leaves the model."""
        consumers = self.consumers(tensor)
        if len(consumers) != 1 or self.is_output(tensor):
            return None
        return consumers[0]


def as_functional(model: keras.Model) -> keras.Model:
    """The same layers as a functional model, with the structure of inputs and outputs that it has.

    Raises:
      TypeError: neither functional nor Sequential, or of a class with a `call` of its own.
      ValueError: a Sequential that does not know its input shape yet.
    """
    if isinstance(model, NetworkModel):
        raise TypeError(
            f"Expected a float Keras model, found {type(model).__name__} {model.name!r}, which is "
            "quantized already: give the float model that it was made of."
        )
    own = _graph_of(model)
    for method in ("call", "__call__"):
        if getattr(type(model), method) is not getattr(_keras_class(model), method):
            raise TypeError(
                f"Model {model.name!r} ({type(model).__name__}) has a {method} of its own, so that "
                "its layers do not show what it computes: expected a keras.Model(inputs, outputs) "
                "that computes all of it by layers."
            )
    return own


def inputs_like(structure: Any) -> Any:
    """New inputs of the names, shapes and types of a model's, in its structure.

    Raises:
      ValueError: a sparse or ragged one; names it.
    """
    return tree.map_structure(_input_like, structure)


def _input_like(tensor: Any) -> Any:
    if tensor.sparse or getattr(tensor, "ragged", False):
        raise ValueError(f"Input {tensor.name!r}: expected a dense one, found a sparse or ragged.")
    layer = operation_of(tensor)
    return keras.Input(
        batch_shape=tensor.shape,
        dtype=tensor.dtype,
        name=tensor.name,
        optional=getattr(layer, "optional", False),
    )


def _graph_of(model: Any) -> keras.Model:
    if isinstance(model, keras.Sequential):
        graph = graph_of_sequential(model)
        if graph is None:
            raise ValueError(
                f"Sequential model {model.name!r} has no input shape: add a keras.Input first."
            )
        return keras.Model(graph.input, graph.output, name=model.name)
    if not has_graph(model):
        why = (
            ", which has no graph to read: give keras.Model(x, model.call(x)) of "
            "x = keras.Input(...), which has the same layers and weights"
            if isinstance(model, keras.Model)
            else ""
        )
        raise TypeError(
            f"Expected a functional or Sequential Keras model, found {found_model(model)}{why}."
        )
    return model


def _keras_class(model: Any) -> type:
    """The class of Keras' own that a model's class is made of."""
    return next(c for c in type(model).__mro__ if c.__module__.startswith("keras."))

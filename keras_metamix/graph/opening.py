"""The graph inside a layer that calls other layers, read off its own `call`."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers, tree

from keras_metamix.checks import shown
from keras_metamix.graph.ownership import activation_name, is_keras_own, overrides
from keras_metamix.graph.topology import Topology
from keras_metamix.graph.training_only import CALL_ERRORS
from keras_metamix.keras_internals import layers_inside, takes_training

_UNREADABLE = (
    "could not be opened; its call has to consist of Keras layers and keras.ops, without "
    "TensorFlow, NumPy or values"
)


class NotOpenedError(Exception):
    """A layer whose graph cannot be read; the message is the reason."""


def opened(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, list[Any]]:
    """The graph of one call of a composite layer.

    Its `call` runs on symbolic tensors as in evaluation and as in training, which has to give one
    graph: a functional model hands its own `training` to every layer, and keeps no branch.

    Args:
      layer: it calls layers that it owns, and keras.ops.
      args, kwargs: of the call, symbolic tensors among them.

    Returns:
      A functional model, and the tensors of the call that are its inputs.

    Raises:
      NotOpenedError: weights of its own, a call that is not symbolic, or that branches.
    """
    if own := _own_weights(layer):
        raise NotOpenedError(_of_own_weights(layer, own))
    kwargs = {key: value for key, value in kwargs.items() if key != "training"}
    if not takes_training(layer):
        graph = _trace(layer, args, kwargs, {})
        _require_handed_on(graph, graph)
    else:
        graph = _trace(layer, args, kwargs, {"training": False})
        try:
            training = _trace(layer, args, kwargs, {"training": True})
        except NotOpenedError:
            training = None
        if training is None or _signature(training) != _signature(graph):
            raise NotOpenedError(
                "computes something else in training than in evaluation, of which a functional "
                "model keeps one; put what acts in training alone into a layer of its own that "
                "returns its input in evaluation"
            )
        _require_handed_on(graph, training)
    return graph, [t for t in tree.flatten((args, kwargs)) if keras.utils.is_keras_tensor(t)]


def _own_weights(layer: Any) -> list[str]:
    held = {id(v) for inner in layers_inside(layer) for v in inner.weights}
    return [v.name for v in layer.weights if id(v) not in held]


def _of_own_weights(layer: Any, names: list[str]) -> str:
    base = next((cls for cls in type(layer).__mro__ if is_keras_own(cls)), layers.Layer)
    changed = overrides(layer)
    if changed and base is not layers.Layer:
        return (
            f"a {base.__name__} with {', '.join(changed)} of its own, which may compute anything; "
            f"use {base.__name__} itself"
        )
    return (
        f"computes with weights of its own, {shown(names)}; put them into layers that it calls, "
        "such as Dense, Conv2D or BatchNormalization"
    )


def _trace(
    layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], flag: dict[str, bool]
) -> keras.Model:
    """The graph of `layer.call` on fresh inputs."""
    tensors = [t for t in tree.flatten((args, kwargs)) if keras.utils.is_keras_tensor(t)]
    fresh = [keras.Input(batch_shape=t.shape, dtype=t.dtype) for t in tensors]
    twins = {id(t): f for t, f in zip(tensors, fresh, strict=True)}
    args, kwargs = tree.map_structure(lambda t: twins.get(id(t), t), (args, kwargs))
    try:
        return keras.Model(fresh, layer.call(*args, **kwargs, **flag))
    except CALL_ERRORS as error:
        raise NotOpenedError(_unreadable(layer)) from error


def _unreadable(layer: Any) -> str:
    function = getattr(layer, "activation", None)
    if str(getattr(function, "__module__", "")).startswith("tensorflow."):
        return "a function of TensorFlow's; give the Keras activation by its name"
    if isinstance(layer, layers.Activation) and activation_name(function) is None:
        return "a function that could not be opened; write it with keras.ops alone"
    return _UNREADABLE


def _signature(graph: keras.Model) -> list[Any]:
    """What a graph computes, comparable: operations, and which tensors they read."""
    numbers: dict[int, int] = {}

    def number(tensor: Any) -> int:
        return numbers.setdefault(id(tensor), len(numbers))

    def comparable(value: Any) -> Any:
        if keras.utils.is_keras_tensor(value):
            return f"tensor {number(value)}"
        if isinstance(value, keras.Variable):
            return f"variable {id(value)}"
        if hasattr(value, "shape"):
            array = np.asarray(value)
            return f"array {array.shape} {array.tobytes().hex()}"
        return repr(value)

    topology = Topology(graph)
    found: list[Any] = [[number(tensor) for tensor in topology.inputs]]
    for node in topology.nodes:
        args, kwargs = node.arguments
        kwargs = {key: value for key, value in kwargs.items() if key != "training"}
        read = [comparable(leaf) for leaf in tree.flatten((args, kwargs))]
        found.append((_identity(node.operation), read, [number(t) for t in node.outputs]))
    return [*found, [number(tensor) for tensor in topology.outputs]]


def _identity(operation: Any) -> Any:
    if isinstance(operation, layers.Layer):
        return id(operation)
    attributes = {k: repr(v) for k, v in vars(operation).items() if k[0] != "_" and k != "name"}
    return type(operation).__name__, attributes


def _require_handed_on(evaluation: keras.Model, training: keras.Model) -> None:
    """Raises NotOpenedError where a layer inside is called with a `training` of its own."""
    pairs = zip(Topology(evaluation).nodes, Topology(training).nodes, strict=True)
    for first, second in pairs:
        flags = [node.arguments[1].get("training") for node in (first, second)]
        if flags[0] == flags[1] and flags[0] is not None:
            raise NotOpenedError(
                f"calls {first.name!r} with training={flags[0]}, which a functional model does not "
                "keep; hand the training argument on, and freeze a batch norm by trainable=False"
            )

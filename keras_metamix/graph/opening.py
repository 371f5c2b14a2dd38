"""The graph inside a layer that calls other layers, read off its own `call`."""

from __future__ import annotations

import linecache
import pathlib
import traceback
from typing import Any

import keras
import numpy as np
from keras import layers, tree

from keras_metamix.checks import shown
from keras_metamix.graph.ownership import is_keras_own, overrides
from keras_metamix.graph.reasons import reason_of
from keras_metamix.graph.topology import Topology
from keras_metamix.graph.training_only import CALL_ERRORS
from keras_metamix.keras_internals import layers_inside, takes_training

_LIBRARIES = ("keras.", "tensorflow.", "numpy", "keras_metamix.")
_RANDOM = ("keras.src.random.", "keras.src.backend.tensorflow.random")
# By the method of a symbolic tensor that a call ends in.
_LONGEST = 80  # characters of a line that a message repeats
_VALUES = "which depends on the values of a tensor; a file's graph is the same for all of them"
_CONVERSIONS = {
    **dict.fromkeys(("__bool__", "__iter__", "__float__", "__int__", "__index__"), _VALUES),
    "__array__": "which calls NumPy; use the function of keras.ops",
    "__tf_tensor__": "which calls TensorFlow; use the function of keras.ops",
}


class NotOpenedError(Exception):
    """A layer whose graph cannot be read; the message is the reason."""


def opened(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, list[Any]]:
    """The graph of one call of a composite layer.

    Its `call` runs on symbolic tensors as in evaluation and as in training, which has to give one
    graph: a functional model passes its own `training` to every layer, and keeps no branch.

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
        _require_passed_on(graph, graph)
    else:
        graph = _trace(layer, args, kwargs, {"training": False})
        try:
            training = _trace(layer, args, kwargs, {"training": True})
        except NotOpenedError as error:
            if not _draws(_frames(error.__cause__)):
                raise
            training = None
        if training is None or _signature(training) != _signature(graph):
            raise NotOpenedError(
                "computes something else in training than in evaluation, of which a functional "
                "model keeps one; put what acts in training alone into a layer of its own that "
                "returns its input in evaluation"
            )
        _require_passed_on(graph, training)
    _require_held(layer, graph)
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
            f"use {base.__name__} itself, and layers for what is added to it"
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
        raise NotOpenedError(_unreadable(layer, error)) from error


def _unreadable(layer: Any, error: BaseException) -> str:
    """What in a call cannot be read: the line of the user's own that stops it, and why."""
    function = getattr(layer, "activation", None)
    if str(getattr(function, "__module__", "")).startswith("tensorflow."):
        why = reason_of(getattr(function, "__name__", ""))
        return f"a function of TensorFlow's; {why or 'give the Keras activation by its name'}"
    frames = _frames(error)
    users = [n for n, (frame, _) in enumerate(frames) if not _module(frame).startswith(_LIBRARIES)]
    if not users:
        return "could not be opened; use layers and keras.ops for what it computes"
    frame, line = frames[users[-1]]
    path = frame.f_code.co_filename
    text = linecache.getline(path, line).strip()
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    where = f"{text!r} ({pathlib.Path(path).name}, line {line})" if text else f"line {line}"
    return f"could not be opened at {where}, {_obstacle(frames[users[-1] + 1 :])}"


def _frames(error: BaseException | None) -> list[Any]:
    return list(traceback.walk_tb(error.__traceback__)) if error else []


def _module(frame: Any) -> str:
    return frame.f_globals.get("__name__", "")


def _draws(frames: list[Any]) -> bool:
    """Whether a call ended where Keras draws random numbers."""
    return any(_module(frame).startswith(_RANDOM) for frame, _ in frames)


def _obstacle(frames: list[Any]) -> str:
    """Why a call ended, by what the user's last line called."""
    if not frames:
        return "which does not run on a symbolic tensor; use the functions of keras.ops"
    first, last = frames[0][0], frames[-1][0]
    if first.f_code.co_name == "add_loss":
        return (
            "which adds a loss; give a layer an activity_regularizer for it, or put it into "
            "compile(loss=...)"
        )
    if _module(first).startswith("keras.src.metrics."):
        return "which updates a metric; give metrics to compile(metrics=...)"
    if _draws(frames):
        return (
            "which draws random numbers in evaluation too; draw them in training alone, as "
            "GaussianNoise does, which returns its input in evaluation, or give the model without "
            "the layer"
        )
    held = first.f_locals.get("self")
    if isinstance(held, layers.Layer) and first.f_code.co_name == "call":
        base = next(cls for cls in type(held).__mro__ if is_keras_own(cls)).__name__
        why = reason_of(base) or ""
        if not why.startswith("no"):  # the layer itself is exported, if not with all arguments
            why = f"make a {base} in __init__, and call that"
        return f"which runs Keras' own call of {base}; {why}"
    conversion = _CONVERSIONS.get(last.f_code.co_name)
    if conversion is None and _module(first).startswith("tensorflow."):
        conversion = _CONVERSIONS["__tf_tensor__"]
    return conversion or "which does not run on a symbolic tensor; use the functions of keras.ops"


def _require_held(layer: Any, graph: keras.Model) -> None:
    """Raises NotOpenedError where a call makes new layers, with other weights each time."""
    held = {id(inner) for inner in (layer, *layers_inside(layer))}
    for inner in layers_inside(graph):
        if id(inner) not in held and inner.weights:
            raise NotOpenedError(
                f"makes a {type(inner).__name__} in its call, with new weights each time; make it "
                "in __init__, and call it"
            )


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


def _require_passed_on(evaluation: keras.Model, training: keras.Model) -> None:
    """Raises NotOpenedError where a layer inside is called with a `training` of its own."""
    pairs = zip(Topology(evaluation).nodes, Topology(training).nodes, strict=True)
    for first, second in pairs:
        flags = [node.arguments[1].get("training") for node in (first, second)]
        if flags[0] == flags[1] and flags[0] is not None:
            raise NotOpenedError(
                f"calls {first.name!r} with training={flags[0]}, which a functional model does not "
                "keep; pass the training argument on, and freeze a batch norm by trainable=False"
            )

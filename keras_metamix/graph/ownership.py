"""Whose arithmetic a layer or a function has: Keras' own, or a user's, which may be anything."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Iterable
from typing import Any

import keras
from keras import layers

# What a subclass may define without computing anything else than its base.
_HARMLESS = {"__init__", "get_config", "from_config", "__doc__", "__annotations__"}
_HARMLESS |= {*vars(type("Empty", (), {})), "__qualname__", "__static_attributes__"}
# TensorFlow's functions that compute what the Keras activation of this name does.
_TENSORFLOW = {
    **{name: name for name in ("relu", "relu6", "sigmoid", "tanh")},
    "swish": "silu",
    "softmax_v2": "softmax",
    "identity": "linear",
}


def is_keras_own(cls: type) -> bool:
    """Whether a class is Keras' own or ours."""
    return cls.__module__.startswith(("keras.", "keras_metamix."))


def keras_class(operation: Any) -> type | None:
    """The class of Keras (or of ours) whose arithmetic an operation has, None for a user's own.

    A user's subclass that overrides nothing but its constructor and config computes what its
    base does.
    """
    mro = type(operation).__mro__
    base = next((cls for cls in mro if is_keras_own(cls)), None)
    if base is None or "call" in vars(operation):
        return None
    return None if _overridden(mro, base) else base


def config_of(operation: Any, replaced: Iterable[str] = ()) -> dict[str, Any]:
    """The config of an operation as its `keras_class` has it.

    Args:
      operation: a layer or a raw operation.
      replaced: keys that the caller gives other values; a function of a user's, which Keras cannot
        always write down, is none of the caller's concern there.
    """
    cls, held = keras_class(operation) or type(operation), {}
    if "activation" in replaced:
        held["activation"] = operation.activation
        operation.activation = keras.activations.linear
    try:
        with warnings.catch_warnings():
            # A lambda is opened, never loaded.
            warnings.filterwarnings("ignore", "The object being serialized includes a `lambda`")
            return cls.get_config(operation)
    finally:
        for name, value in held.items():
            setattr(operation, name, value)


def overrides(operation: Any) -> list[str]:
    """Methods of Keras' that a user's class defines anew, sorted; the constructor is none."""
    mro = type(operation).__mro__
    base = next((cls for cls in mro if is_keras_own(cls)), object)
    return sorted(_overridden(mro, base))


def activation_name(function: Any) -> str | None:
    """The Keras name of an activation function, "linear" for None; None for a user's own.

    A function goes by what it is, never by what it is called: `relu` is the function that Keras
    or TensorFlow has under that name.
    """
    if function is None:
        return "linear"
    name, module = (getattr(function, key, "") for key in ("__name__", "__module__"))
    if getattr(sys.modules.get(module), name or " ", None) is not function:
        return None
    if module.startswith("tensorflow."):
        return _TENSORFLOW.get(name)
    known = getattr(keras.activations, name, None) or getattr(keras.ops, name, None)
    return name if module.startswith("keras.") and known is not None else None


def negative_slope(operation: Any, cls: type) -> float | None:
    """The slope of a leaky ReLU below 0, None for what is none.

    Args:
      operation: a layer or a raw operation.
      cls: whose arithmetic it has.
    """
    if issubclass(cls, layers.Activation):
        function = operation.activation
        leaky = activation_name(function) == "leaky_relu"
        arguments = inspect.signature(function).parameters if leaky else {}
        return arguments["negative_slope"].default if leaky else None
    slope = getattr(operation, "negative_slope", None)
    if cls.__name__ in ("LeakyReLU", "LeakyRelu"):
        return slope
    plain = cls.__name__ == "ReLU" and operation.max_value is None and not operation.threshold
    return slope if plain and slope else None


def _overridden(mro: tuple[type, ...], base: type) -> set[str]:
    users = [cls for cls in mro if not is_keras_own(cls) and _is_written_by_a_user(cls)]
    return {
        name for cls in users for name in vars(cls) if hasattr(base, name) and name not in _HARMLESS
    }


def _is_written_by_a_user(cls: type) -> bool:
    """Keras' classes have bases of TensorFlow's and Python's."""
    return cls.__module__.partition(".")[0] not in ("tensorflow", "builtins", "abc")

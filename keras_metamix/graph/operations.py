"""What each Keras operation is to a quantized network: the one table that says so."""

from __future__ import annotations

import enum
from typing import Any

import keras

from keras_metamix.graph.topology import Node


class Kind(enum.Enum):
    """What an operation does to the grid of its input."""

    MAC = "multiply-accumulate"
    BATCH_NORM = "batch normalization"
    RELU = "relu"
    RELU6 = "relu6"
    HARD_SWISH = "hard-swish"
    SOFTMAX = "softmax"
    ADD = "sum"
    MULTIPLY = "product"
    MEAN = "mean over space"
    PASS = "moves or selects values"


MAC_LAYERS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.Dense)
_KINDS: dict[type, Kind] = {
    **dict.fromkeys(MAC_LAYERS, Kind.MAC),
    keras.layers.BatchNormalization: Kind.BATCH_NORM,
    keras.layers.Add: Kind.ADD,
    keras.layers.Multiply: Kind.MULTIPLY,
    keras.layers.GlobalAveragePooling2D: Kind.MEAN,
    keras.layers.Softmax: Kind.SOFTMAX,
    **dict.fromkeys(
        (
            keras.layers.MaxPooling2D,
            keras.layers.Flatten,
            keras.layers.Reshape,
            keras.layers.ZeroPadding2D,
            keras.layers.Dropout,
            keras.layers.SpatialDropout2D,
            keras.layers.Identity,
        ),
        Kind.PASS,
    ),
}
_RAW_OPERATIONS = {
    "Add": Kind.ADD,
    "Multiply": Kind.MULTIPLY,
    "Relu": Kind.RELU,
    "Relu6": Kind.RELU6,
    "HardSilu": Kind.HARD_SWISH,
}
_FUNCTIONS = {
    "linear": Kind.PASS,
    "relu": Kind.RELU,
    "relu6": Kind.RELU6,
    "hard_silu": Kind.HARD_SWISH,
    "softmax": Kind.SOFTMAX,
}
ACTIVATIONS = (Kind.RELU, Kind.RELU6, Kind.HARD_SWISH, Kind.SOFTMAX)
# A ReLU behind one of these is computed by it, without a tensor between them.
FUSES_RELU = (Kind.MAC, Kind.BATCH_NORM, Kind.ADD, Kind.MULTIPLY, Kind.MEAN)


def kind(operation: Any) -> Kind | None:
    """The kind of an operation, None for one that this project does not know."""
    for cls in type(operation).__mro__:
        if cls in _KINDS and _is_plain(operation, cls):
            return _KINDS[cls]
    if isinstance(operation, keras.layers.ReLU):
        return _relu_kind(operation)
    if isinstance(operation, keras.layers.Activation):
        return _FUNCTIONS.get(_function_name(operation.activation))
    if not isinstance(operation, keras.layers.Layer):
        return _RAW_OPERATIONS.get(type(operation).__name__)
    return None


def fused_activation(operation: Any) -> Kind | None:
    """The activation that a MAC layer computes itself; Kind.PASS when it is linear."""
    return _FUNCTIONS.get(_function_name(operation.activation))


def require_kind(node: Node) -> Kind:
    """`kind`, checked for what from_float can wrap.

    Raises:
      ValueError: names the layer, and what about it is not supported.
    """
    operation = node.operation
    label = f"Layer {operation.name!r} ({type(operation).__name__})"
    if isinstance(operation, keras.Model):
        raise ValueError(
            f"{label} is a model inside a model: call its layers directly, or pass it alone."
        )
    found = kind(operation)
    if found is None:
        raise ValueError(
            f"{label} is not supported: expected Conv2D, DepthwiseConv2D, Dense, "
            "BatchNormalization, ReLU, ReLU6, hard-swish, Add, Multiply, "
            "GlobalAveragePooling2D, MaxPooling2D, Flatten, Reshape, ZeroPadding2D or Dropout."
        )
    if getattr(operation, "data_format", "channels_last") == "channels_first":
        raise ValueError(f"{label}: expected data_format='channels_last', found 'channels_first'.")
    if found is Kind.MAC and fused_activation(operation) is None:
        raise ValueError(
            f"{label}: its activation {_function_name(operation.activation)!r} is not supported, "
            f"expected one of {sorted(_FUNCTIONS)}."
        )
    if found is Kind.BATCH_NORM and operation.axis not in (-1, len(node.output.shape) - 1):
        raise ValueError(f"{label}: expected the channel axis -1, found {operation.axis}.")
    return found


def _is_plain(operation: Any, cls: type) -> bool:
    """Whether a subclass is Keras' own or ours: a user's may compute anything."""
    module = type(operation).__module__
    return type(operation) is cls or module.startswith(("keras.", "keras_metamix."))


def _relu_kind(layer: Any) -> Kind | None:
    if layer.negative_slope or layer.threshold:
        return None
    return {None: Kind.RELU, 6.0: Kind.RELU6}.get(layer.max_value)


def _function_name(function: Any) -> str:
    if function is None:
        return "linear"
    return getattr(function, "__name__", type(function).__name__)

"""What each Keras operation is to a quantized network: the one table that says so."""

from __future__ import annotations

import enum
from typing import Any

from keras import layers

from keras_metamix.graph.affine import affine_terms
from keras_metamix.graph.topology import Node


class UnsupportedLayerError(ValueError):
    """A layer that from_float cannot wrap; `layer` is its name."""

    def __init__(self, layer: str, message: str):
        super().__init__(message)
        self.layer = layer


class Kind(enum.Enum):
    """What an operation does to the grid of its input."""

    MAC = "multiply-accumulate"
    BATCH_NORM = "batch normalization"
    AFFINE = "scale and shift by constants"
    RELU = "relu"
    RELU6 = "relu6"
    HARD_SIGMOID = "hard sigmoid"
    SIGMOID = "sigmoid"
    TANH = "tanh"
    SOFTMAX = "softmax"
    ADD = "sum"
    MULTIPLY = "product"
    MEAN = "mean over space"
    AVERAGE = "average pooling"
    CONCAT = "concatenation"
    PASS = "moves or selects values"
    FLOAT = "computes in float"


MAC_LAYERS = (layers.Conv2D, layers.DepthwiseConv2D, layers.Dense)
# They train, in float between two stream quantizers, and have no exact integer form.
FLOAT_LAYERS = (
    layers.LayerNormalization,
    layers.GroupNormalization,
    layers.LeakyReLU,
    layers.PReLU,
    layers.ELU,
    layers.Activation,
    layers.ReLU,
    layers.Maximum,
    layers.Minimum,
    layers.Subtract,
    layers.UpSampling2D,
    layers.Permute,
)
_SCALES = ("LayerScale",)  # keras.applications' ConvNeXt has it, Keras does not export it
_DROPS = ("StochasticDepth",)
_KINDS: dict[type, Kind] = {
    **dict.fromkeys(MAC_LAYERS, Kind.MAC),
    layers.BatchNormalization: Kind.BATCH_NORM,
    layers.Rescaling: Kind.AFFINE,
    layers.Normalization: Kind.AFFINE,
    layers.Add: Kind.ADD,
    layers.Multiply: Kind.MULTIPLY,
    layers.Concatenate: Kind.CONCAT,
    layers.GlobalAveragePooling2D: Kind.MEAN,
    layers.AveragePooling2D: Kind.AVERAGE,
    layers.Softmax: Kind.SOFTMAX,
    **dict.fromkeys(
        (
            layers.MaxPooling2D,
            layers.GlobalMaxPooling2D,
            layers.Flatten,
            layers.Reshape,
            layers.ZeroPadding2D,
            layers.Cropping2D,
            layers.Dropout,
            layers.SpatialDropout2D,
            layers.Identity,
        ),
        Kind.PASS,
    ),
}
_RAW_OPERATIONS = {
    "Relu": Kind.RELU,
    "Relu6": Kind.RELU6,
    "HardSigmoid": Kind.HARD_SIGMOID,
    "Sigmoid": Kind.SIGMOID,
    "Tanh": Kind.TANH,
    "Softmax": Kind.SOFTMAX,
    "Gelu": Kind.FLOAT,
    "Reshape": Kind.PASS,
    "Identity": Kind.PASS,
}
_RAW_COMBINATIONS = {"Add": Kind.ADD, "Multiply": Kind.MULTIPLY}
_FUNCTIONS = {
    "linear": Kind.PASS,
    "relu": Kind.RELU,
    "relu6": Kind.RELU6,
    "hard_sigmoid": Kind.HARD_SIGMOID,
    "sigmoid": Kind.SIGMOID,
    "tanh": Kind.TANH,
    "softmax": Kind.SOFTMAX,
}
RELUS = {Kind.RELU: "relu", Kind.RELU6: "relu6"}
SUPPORTED = (
    "Conv2D, SeparableConv2D, DepthwiseConv2D, Dense, BatchNormalization, Rescaling, "
    "Normalization, activations, Add, Multiply, Concatenate, Average, max, average and global "
    "pooling, Flatten, Reshape, ZeroPadding2D, Cropping2D or Dropout"
)


def kind(operation: Any, node: Node | None = None) -> Kind | None:
    """The kind of an operation, None for one that this project does not know.

    Args:
      operation: a layer or a raw operation.
      node: its call; a raw sum or product with a constant is told from one of two tensors by it.
    """
    if not isinstance(operation, layers.Layer):
        return _raw_kind(operation, node)
    if isinstance(operation, layers.Activation):
        return _FUNCTIONS.get(function_name(operation.activation))
    if isinstance(operation, layers.ReLU):
        return _relu_kind(operation)
    if is_keras_own(operation) and type(operation).__name__ in _SCALES:
        return Kind.AFFINE
    if is_keras_own(operation) and type(operation).__name__ in _DROPS:
        return Kind.PASS
    for cls in type(operation).__mro__:
        if cls in _KINDS and (type(operation) is cls or is_keras_own(operation)):
            return _KINDS[cls]
    return None


def require_kind(node: Node, float_layers: frozenset[str] = frozenset()) -> Kind:
    """`kind`, checked for what from_float can wrap.

    Args:
      node: a call of an expanded model.
      float_layers: names of layers that the caller wants in float.

    Raises:
      UnsupportedLayerError: names the layer, and what about it is not supported.
    """
    operation = node.operation
    if operation.name in float_layers:
        return Kind.FLOAT
    found = kind(operation, node)
    if found is None and isinstance(operation, FLOAT_LAYERS) and is_keras_own(operation):
        return Kind.FLOAT
    problem = _problem(node, found)
    if problem or found is None:
        label = f"Layer {operation.name!r} ({type(operation).__name__})"
        raise UnsupportedLayerError(operation.name, f"{label}{problem}.")
    return found


def _problem(node: Node, found: Kind | None) -> str:
    """What about a call is not supported, "" for nothing."""
    operation = node.operation
    if found is None:
        return (
            f" is not supported: expected {SUPPORTED}. Name it in float_layers to leave it in "
            "float, which cannot be exported"
        )
    if getattr(operation, "data_format", "channels_last") == "channels_first":
        return ": expected data_format='channels_last', found 'channels_first'"
    if found is Kind.BATCH_NORM and operation.axis not in (-1, len(node.output.shape) - 1):
        return f": expected the channel axis -1, found {operation.axis}"
    if found is Kind.AFFINE and affine_terms(node) is None:
        return ": expected one constant for all values, or one for each channel"
    return ""


def is_keras_own(operation: Any) -> bool:
    """Whether a class is Keras' own or ours: a user's may compute anything."""
    return type(operation).__module__.startswith(("keras.", "keras_metamix."))


def function_name(function: Any) -> str:
    """The name of an activation function; "linear" for None."""
    if function is None:
        return "linear"
    return getattr(function, "__name__", type(function).__name__)


def _raw_kind(operation: Any, node: Node | None) -> Kind | None:
    name = type(operation).__name__
    if name in _RAW_OPERATIONS:
        return _RAW_OPERATIONS[name]
    if name == "Cast" and operation.dtype == "float32":  # of an input of bytes
        return Kind.PASS
    if name == "Concatenate":
        return Kind.CONCAT
    if name == "Mean":
        axis = operation.axis if isinstance(operation.axis, (tuple, list)) else (operation.axis,)
        return Kind.MEAN if tuple(axis) in ((1, 2), (-3, -2)) else None
    if name in _RAW_COMBINATIONS and (node is None or len(node.inputs) == 2):
        return _RAW_COMBINATIONS[name]
    if name in ("Add", "Subtract", "Multiply", "Divide", "TrueDivide"):
        return Kind.AFFINE if node is None or len(node.inputs) == 1 else Kind.FLOAT
    return None


def _relu_kind(layer: Any) -> Kind | None:
    if layer.negative_slope or layer.threshold:
        return None
    return {None: Kind.RELU, 6.0: Kind.RELU6}.get(layer.max_value)

"""What each Keras operation is to a quantized network: the one table that says so."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import layers, tree

from keras_metamix.graph.affine import affine_terms
from keras_metamix.graph.kinds import RELU_ENDS, Kind
from keras_metamix.graph.operators import DATA_MOVEMENT, OPERATORS, Operator
from keras_metamix.graph.operators.base import DataMovementOperator
from keras_metamix.graph.ownership import activation_name, is_keras_own, keras_class
from keras_metamix.graph.topology import Node
from keras_metamix.graph.training_only import acts_in_training_alone
from keras_metamix.keras_internals import calls_of, operation_of
from keras_metamix.layers.symmetric import Symmetric

MAC_LAYERS = (layers.Conv2D, layers.Conv2DTranspose, layers.DepthwiseConv2D, layers.Dense)
# Layers that only move or select data, and LiteRT's operator for them.
DATA_MOVEMENT_LAYERS: dict[type, str] = {
    layers.MaxPooling2D: "MAX_POOL_2D",
    layers.GlobalMaxPooling2D: "MAX_POOL_2D",
    layers.ZeroPadding2D: "PAD",
    layers.Flatten: "RESHAPE",
    layers.Reshape: "RESHAPE",
}
# They can be kept as they are, in float between two stream quantizers; no integer form is exported.
_FLOAT_LAYERS = (
    layers.LayerNormalization,
    layers.GroupNormalization,
)
# The identity in evaluation. Others are found out by what they compute: `acts_in_training_alone`.
_DROPS = (layers.Dropout, layers.SpatialDropout2D, layers.Identity)
_SCALES = ("LayerScale",)  # keras.applications' ConvNeXt has it, Keras does not export it
_KINDS: dict[type, Kind | Operator] = {
    **dict.fromkeys(MAC_LAYERS, Kind.MAC),
    layers.BatchNormalization: Kind.BATCH_NORM,
    layers.Rescaling: Kind.AFFINE,
    layers.Normalization: Kind.AFFINE,
    layers.Softmax: Kind.SOFTMAX,
    layers.UnitNormalization: Kind.UNIT_NORM,
    Symmetric: Kind.SYMMETRIC,
    **dict.fromkeys((*DATA_MOVEMENT_LAYERS, *_DROPS), Kind.PASS),
    **dict.fromkeys(_FLOAT_LAYERS, Kind.FLOAT),
    **{cls: operator for operator in OPERATORS for cls in operator.layers},
}
_RAW_OPERATIONS = {
    "Relu": Kind.RELU,
    "Relu6": Kind.RELU6,
    "HardSigmoid": Kind.HARD_SIGMOID,
    "Softmax": Kind.SOFTMAX,
    "Reshape": Kind.PASS,
    "Identity": Kind.PASS,
}
_FUNCTIONS: dict[str, Kind | Operator] = {
    "linear": Kind.PASS,
    "relu": Kind.RELU,
    "relu6": Kind.RELU6,
    "hard_sigmoid": Kind.HARD_SIGMOID,
    "softmax": Kind.SOFTMAX,
    **{name: operator for operator in OPERATORS for name in operator.functions},
}


def kind(operation: Any, node: Node | None = None) -> Kind | Operator | None:
    """The kind of an operation, None for one that this project does not know.

    Args:
      operation: a layer or a raw operation.
      node: its call; a raw sum or product with a constant is told from one of two tensors by it,
        and a layer that acts in training alone from one that computes.
    """
    if not isinstance(operation, layers.Layer):
        return _raw_kind(operation, node) if is_keras_own(type(operation)) else None
    found = _layer_kind(operation, node)
    if found is None and node is not None and acts_in_training_alone(operation, node.inputs):
        return Kind.PASS
    return found


def problem(node: Node, found: Kind | Operator) -> str:
    """What about a call of a known kind is not supported, "" for nothing."""
    operation = node.operation
    if getattr(operation, "data_format", "channels_last") == "channels_first":
        return (
            "expected data_format='channels_last', found 'channels_first': build the model with it "
            "and copy the weights; kernels have one layout, unless a Dense follows a Flatten"
        )
    if found is Kind.BATCH_NORM and operation.axis not in (-1, len(node.output.shape) - 1):
        return f"expected the channel axis -1, found {operation.axis}"
    if found is Kind.AFFINE and affine_terms(node) is None:
        return _not_affine(node)
    return _transposed_problem(node) if isinstance(operation, layers.Conv2DTranspose) else ""


def cannot_run(node: Node) -> str:
    """Why Keras builds a call, but does not run it, "" where it does."""
    operation, found = node.operation, kind(node.operation, node)
    if type(operation).__name__ == "Reshape" and None in getattr(operation, "newshape", ()):
        return (
            f"expected a shape without None, found {tuple(operation.newshape)}, which Keras does "
            "not run either; use the layer Reshape, or -1 for the size of the batch"
        )
    if found and any(map(_is_of_bytes, node.inputs)) and not _reads_bytes(operation, found):
        return (
            "reads the bytes of an input as they are; put Rescaling(1 / 255), or "
            "ops.cast(x, 'float32'), behind the input"
        )
    return ""


def _not_affine(node: Node) -> str:
    """What keeps an operation with constants from being one scale and one shift per channel."""
    constants = [v for v in tree.flatten(node.arguments) if not keras.utils.is_keras_tensor(v)]
    if any(isinstance(value, keras.Variable) for value in constants):
        return (
            "reads a variable that belongs to no layer; use BatchNormalization or "
            "DepthwiseConv2D(1), whose weights train"
        )
    if "Divide" in type(node.operation).__name__:
        return "no exact integer form with the tensor as divisor; gate by Multiply and sigmoid"
    shapes = [tuple(v.shape) for v in constants if getattr(v, "shape", ())]
    found = f", found {shapes[0]}" if shapes else ""
    return (
        f"expected one constant for all values, or one for each channel{found}; give others to the "
        "model as an input of their own, and use Add or Multiply"
    )


def _is_of_bytes(tensor: Any) -> bool:
    """Whether a tensor is a model's input of bytes, or its values in another place.

    KerasTensors do not tell: layers promise float32, and return what they are given.
    """
    operation = operation_of(tensor)
    if isinstance(operation, layers.InputLayer):
        return tensor.dtype == "uint8"
    moved = (
        isinstance(operation, tuple(DATA_MOVEMENT_LAYERS)) or type(operation).__name__ == "Reshape"
    )
    moved = moved or data_movement_of(operation) is not None
    return moved and _is_of_bytes(calls_of(operation)[0].input_tensors[0])


def _reads_bytes(operation: Any, found: Kind | Operator) -> bool:
    """Whether Keras runs an operation on bytes, and gives floats, or the bytes that it moves."""
    dense = isinstance(operation, layers.Dense)
    return found in (Kind.PASS, Kind.ROUND, Kind.AFFINE, Kind.BATCH_NORM) or dense


def _transposed_problem(node: Node) -> str:
    """What LiteRT's TRANSPOSE_CONV, or XNNPACK's, lacks for a call."""
    layer: Any = node.operation
    if set(layer.dilation_rate) != {1}:
        return "no exact integer form with a dilation; use UpSampling2D and a dilated Conv2D"
    sizes = node.inputs[0].shape[1:3], layer.kernel_size, layer.strides
    same = layer.padding == "same"
    whole = [n * s if same else (n - 1) * s + max(k, s) for n, k, s in zip(*sizes, strict=True)]
    if whole != list(node.output.shape[1:3]):
        return (
            "no exact integer form with an output_padding that changes the size; leave it out, and "
            "use ZeroPadding2D or Cropping2D behind the layer"
        )
    longer = {(k > s) - (k < s) for _, k, s in zip(*sizes, strict=True)}
    if same and longer == {-1, 1}:
        return (
            "no exact integer form where its kernel is larger than the stride in one direction "
            "and smaller in the other; use padding='valid', and Cropping2D behind the layer"
        )
    return ""


def data_movement_of(operation: Any) -> DataMovementOperator | None:
    """The family of data-movement operations that an operation is of."""
    cls = keras_class(operation)
    if cls is None:
        return None
    if not issubclass(cls, layers.Layer):
        return next((found for found in DATA_MOVEMENT if cls.__name__ in found.raw), None)
    return next((found for found in DATA_MOVEMENT if issubclass(cls, found.layers)), None)


def _layer_kind(layer: Any, node: Node | None) -> Kind | Operator | None:
    cls = keras_class(layer)
    if cls is None:
        return None
    if (found := data_movement_of(layer)) is not None:
        return found.kind(layer, node)
    if issubclass(cls, layers.Activation):
        return activation_kind(layer.activation)
    if issubclass(cls, layers.ReLU):
        return _relu_kind(layer)
    if cls.__name__ in _SCALES:
        return Kind.AFFINE
    return next((_KINDS[base] for base in cls.__mro__ if base in _KINDS), None)


def activation_kind(function: Any) -> Kind | Operator | None:
    """The kind of an activation function, None for one that this project does not know."""
    name = activation_name(function)
    return _FUNCTIONS.get(name, Kind.FLOAT) if name else None


def _raw_kind(operation: Any, node: Node | None) -> Kind | Operator | None:
    name = type(operation).__name__
    if name in _RAW_OPERATIONS:
        return _RAW_OPERATIONS[name]
    if name == "ReLU":  # what keras.activations.relu makes
        return _relu_kind(operation)
    if name == "Normalize":
        return Kind.UNIT_NORM if operation.order == 2 else Kind.FLOAT
    if name == "Clip" or (name == "Maximum" and node is not None and len(node.inputs) == 1):
        return _clip_kind(operation, node)
    if name == "Cast" and operation.dtype == "float32":  # of an input of bytes
        return Kind.PASS
    if (found := data_movement_of(operation)) is not None:
        return found.kind(operation, node)
    for operator in OPERATORS:
        if name in operator.raw and operator.takes(operation, node):
            return operator
    if name in ("Add", "Subtract", "Multiply", "Divide", "TrueDivide"):
        return Kind.AFFINE if node is None or len(node.inputs) == 1 else Kind.FLOAT
    return None


def _relu_kind(layer: Any) -> Kind:
    if layer.negative_slope or layer.threshold:
        return Kind.FLOAT
    return Kind.RELU if layer.max_value is None else _capped(layer.max_value)


def _capped(end: float) -> Kind:
    """A ReLU that ends at a number."""
    if end == RELU_ENDS[Kind.RELU6]:
        return Kind.RELU6
    return Kind.CLIP if 0 < end < math.inf else Kind.FLOAT


def _clip_kind(operation: Any, node: Node | None) -> Kind:
    """A ReLU that is written as a maximum or a clip."""
    if node is None:
        return Kind.FLOAT
    low, high = getattr(operation, "x_min", None), getattr(operation, "x_max", None)
    if isinstance(low, (int, float)) and isinstance(high, (int, float)):
        return _capped(high) if low == 0 else Kind.FLOAT
    args, kwargs = node.arguments
    constants = [v for v in (*args, *kwargs.values()) if isinstance(v, (int, float))]
    return Kind.RELU if type(operation).__name__ == "Maximum" and constants == [0] else Kind.FLOAT

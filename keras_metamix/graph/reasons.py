"""Why operations have no integer form, and what does instead: the one table that says so."""

from __future__ import annotations

import inspect
import re
from typing import Any

import keras
from keras import layers

from keras_metamix.graph.ownership import activation_name, config_of, keras_class
from keras_metamix.graph.training_only import CALL_ERRORS

_PIPELINE = "; put it into the data pipeline, and into the app that runs the file"
_RELU = "not exported yet; use ReLU(), also with a max_value, or LeakyReLU"
_SWISH = "not exported yet; use hard_silu or silu"
_NORM = "no exact integer form; use BatchNormalization"
_IN_2D = "not exported yet; use the 2-D layer on Reshape((1, time, channels))"
_NEAREST = (
    "not exported yet; Concatenate()([x, x]) and Reshape((height, 2 * width, channels)) repeat "
    "each column, and each row alike"
)
_TRANSPOSED = "not exported yet; enlarge by Concatenate and Reshape, and use Conv2D"
_ATTENTION = (
    "no exact integer form that holds on every CPU, for its softmax; gate by Multiply and sigmoid"
)
_RECURRENT = "not exported yet; use dilated Conv2D over time"
_3D = "no exact integer form; use the 2-D layer on each slice"
_ONE_TENSOR = "not exported yet; use Add, Multiply or Concatenate, and ReLU for max(x, 0)"
_LOOKUP = "no exact integer form; look values up outside the model"
# What is said of an operation, by its name in lower case without underscores: of a layer's class,
# of a raw operation's class, and of an activation function.
_REASONS: dict[str, str] = {
    **dict.fromkeys(("relu", "leakyrelu", "prelu", "elu", "selu", "celu", "clip"), _RELU),
    "gelu": (
        "no exact integer form within XNNPACK; use x * ops.sigmoid(1.702 * x), which is GELU to "
        "within 0.021, or silu"
    ),
    **dict.fromkeys(("glu", "softplus", "squareplus"), _SWISH),
    "mish": "no exact integer form; use hard_silu or silu",
    "softmax": (
        "no exact integer form that holds on every CPU; a softmax at the end of the model is left "
        "out of the file, inside it use sigmoid"
    ),
    **dict.fromkeys(
        (
            "layernormalization",
            "groupnormalization",
            "rmsnormalization",
            "spectralnormalization",
            "layernorm",
            "rmsnorm",
        ),
        _NORM,
    ),
    **dict.fromkeys(
        ("unitnormalization", "normalize"),
        "no exact integer form; at the end of the model it is left out of the file (cosine "
        "similarity is the same without), inside it use BatchNormalization",
    ),
    **dict.fromkeys(("maximum", "minimum", "dot", "divide", "truedivide"), _ONE_TENSOR),
    "upsampling2d": _NEAREST,
    **dict.fromkeys(("repeat", "tile"), _NEAREST),
    **dict.fromkeys(("permute", "transpose"), "not exported yet; keep the order of the axes"),
    **dict.fromkeys(
        ("getitem", "slice", "split", "take", "unstack"),
        "not exported yet; give each part a Conv2D or Dense of its own, or use Cropping2D for "
        "height and width",
    ),
    **dict.fromkeys(("conv2dtranspose", "convtranspose"), _TRANSPOSED),
    **dict.fromkeys(
        (
            "conv1d",
            "separableconv1d",
            "depthwiseconv1d",
            "conv1dtranspose",
            "maxpooling1d",
            "averagepooling1d",
            "globalaveragepooling1d",
            "globalmaxpooling1d",
            "zeropadding1d",
            "cropping1d",
            "upsampling1d",
        ),
        _IN_2D,
    ),
    **dict.fromkeys(
        (
            "conv3d",
            "conv3dtranspose",
            "maxpooling3d",
            "averagepooling3d",
            "globalaveragepooling3d",
            "globalmaxpooling3d",
            "upsampling3d",
        ),
        _3D,
    ),
    **dict.fromkeys(("multiheadattention", "groupedqueryattention"), _ATTENTION),
    **dict.fromkeys(("attention", "additiveattention"), _ATTENTION),
    **dict.fromkeys(
        ("einsumdense", "einsum", "matmul", "tensordot"),
        "not exported yet; use Dense or a 1x1 Conv2D where the second factor is a weight",
    ),
    **dict.fromkeys(
        ("lstm", "gru", "simplernn", "rnn", "convlstm1d", "convlstm2d", "convlstm3d"), _RECURRENT
    ),
    "bidirectional": _RECURRENT,
    "timedistributed": "not exported yet; Dense acts on each step without it",
    **dict.fromkeys(("embedding", "stringlookup", "integerlookup", "onehot"), _LOOKUP),
    **dict.fromkeys(
        ("hashing", "discretization", "categoryencoding", "textvectorization"), _LOOKUP
    ),
    **dict.fromkeys(("resizing", "centercrop", "resize"), "not exported yet" + _PIPELINE),
    **dict.fromkeys(("autocontrast", "equalization"), "no exact integer form" + _PIPELINE),
    "randomcrop": (
        "changes the size in training alone; put it into the data pipeline, and train on images of "
        "the size of the crop"
    ),
    "averagepooling2d": (
        "no exact integer form where windows of this size reach over the border, of 2x2 or 3x3 it "
        "has; use padding='valid', behind ZeroPadding2D where the size has to stay"
    ),
}
_OTHERWISE = (
    "not exported yet; Conv2D, Dense, BatchNormalization, Add, Multiply, Concatenate, relu, "
    "hard_sigmoid, sigmoid, tanh, pooling, Reshape, padding and cropping are"
)
# What raw operations are in plain words; the others go by their name in keras.ops.
_WORDS = {
    "GetItem": "a slice",
    "Add": "a sum",
    "Multiply": "a product",
    "Subtract": "a difference",
    "Divide": "a quotient",
    "TrueDivide": "a quotient",
    "Maximum": "a maximum",
    "Minimum": "a minimum",
    "Transpose": "a transpose",
    "Split": "a split",
    "Matmul": "a matrix product",
    "Mean": "a mean (of other axes than height and width)",
    "Sum": "a sum over axes",
    "Max": "a maximum over axes",
    "Clip": "a clip",
    "ReLU": "a relu with a threshold",
    "Power": "a power",
    "Resize": "a resize",
}


RELU_ARGUMENTS = ("max_value", "negative_slope", "threshold")


def reason(operation: Any) -> str | None:
    """What the table says of an operation of Keras' own, None where it says nothing."""
    return _REASONS.get(_key(operation))


def reason_or_default(operation: Any) -> str:
    """What is said of an operation that cannot be opened."""
    return reason(operation) or _OTHERWISE


def described(operation: Any) -> str:
    """An operation for a message: its class, or what it does in plain words."""
    cls = type(operation)
    if not isinstance(operation, layers.Layer):
        snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()
        return _WORDS.get(cls.__name__, f"keras.ops.{snake}")
    if isinstance(operation, layers.Activation):
        function = operation.activation
        known = activation_name(function) or str(function.__module__).startswith("tensorflow.")
        own = "" if known else " of your own"
        return f"activation {getattr(function, '__name__', type(function).__name__)!r}{own}"
    if isinstance(operation, layers.ReLU) and keras_class(operation) is layers.ReLU:
        return _relu(operation)
    return cls.__name__


def _relu(layer: Any) -> str:
    arguments = {key: getattr(layer, key) for key in RELU_ARGUMENTS}
    text = ", ".join(f"{key}={value:g}" for key, value in arguments.items() if value)
    return f"ReLU({text})" if text else "ReLU"


def _key(operation: Any) -> str:
    cls = keras_class(operation) or type(operation)
    name = cls.__name__
    if issubclass(cls, layers.Activation):
        name = activation_name(operation.activation) or ""
    return name.replace("_", "").lower()


def changed_by_keras(operation: Any) -> str:
    """Why a layer that Keras itself has quantized or adapted is none of float weights."""
    if mode := getattr(operation, "quantization_mode", None):
        return (
            f"quantized by Keras already ({mode}), which rounded its weights; give the float "
            "model from before model.quantize()"
        )
    if getattr(operation, "lora_enabled", False):
        return (
            "computes with LoRA; save its weights, which merges LoRA into them, and load them into "
            "the model built without enable_lora()"
        )
    return ""


def not_copied(operation: Any) -> str:
    """Why Keras neither copies nor loads a layer, "" where it does."""
    function = getattr(operation, "function", getattr(operation, "activation", None))
    if getattr(function, "__name__", "") == "<lambda>":
        return (
            "holds a Python lambda, which Keras neither copies nor loads; use a layer class, or a "
            "named function"
        )
    if isinstance(operation, layers.Layer) and not isinstance(operation, keras.Model):
        try:
            copy = (keras_class(operation) or type(operation)).from_config(config_of(operation))
        except CALL_ERRORS:
            return (
                "cannot be copied; from_config(get_config()) has to make the layer again, so give "
                "it a get_config with what its constructor takes"
            )
        names = [name for name in vars(operation) if name.endswith(("activation", "function"))]
        pairs = ((getattr(operation, name), getattr(copy, name, None)) for name in names)
        if any(inspect.isfunction(first) and first is not second for first, second in pairs):
            return (
                "cannot be copied, since Keras does not find its function by name; decorate that "
                "with keras.saving.register_keras_serializable()"
            )
    return ""

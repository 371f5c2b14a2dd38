"""Why operations have no integer form, and what does instead: the one table that says so."""

from __future__ import annotations

import inspect
import re
from typing import Any

import keras
from keras import layers, ops

from keras_metamix.graph.ownership import activation_name, config_of, keras_class
from keras_metamix.graph.training_only import CALL_ERRORS

_PIPELINE = "put it into the data pipeline, and into the app that runs the file"
_APP = "leave it to the app that reads the outputs"
_RELU = "not exported yet; use ReLU(), also with a max_value, or LeakyReLU"
_NORM = "no exact integer form; use BatchNormalization"
_UNIT = (
    "no exact integer form; at the end of the model it is left out of the file (cosine "
    "similarity is the same without), inside it use BatchNormalization"
)
_IN_TIME = "exported with data_format='channels_last' and without a mask; use it so"
_NEAREST = "not exported yet; UpSampling2D and keras.ops.image.resize repeat rows and columns"
_RESIZE = (
    "exported as bilinear, or nearest by whole factors, with antialias=False and without keeping "
    "the aspect ratio; use one of these"
)
_TRANSPOSED = "not exported yet; use the layer Conv2DTranspose"
_ATTENTION = (
    "no exact integer form that holds on every CPU, for its softmax; build it of ops.matmul or "
    "ops.einsum with a ReLU in the softmax's place, or gate by Multiply and sigmoid"
)
_RECURRENT = "not exported yet; use Conv1D with padding='causal', dilated layer by layer"
_3D = "no exact integer form; use the 2-D layer on each slice"
_MATRIX = "not exported yet; use Dense or a 1x1 Conv2D where the second factor is a weight"
_PRODUCT = (
    "exported for each image of matrices of two tensors whose other axes are equal, as ops.matmul, "
    "ops.einsum('bij,bjk->bik') and layers.Dot(axes=(2, 1)) compute it of three axes; use Dense or "
    "a 1x1 Conv2D where the second factor is a weight"
)
_LOOKUP = "no exact integer form; look values up outside the model"
_CURVE = "no exact integer form; put a ReLU, hard_sigmoid, sigmoid or tanh in its place"
_GATE = "not exported yet; gate by Multiply and sigmoid, or by ReLU"
_RESHAPE = "not exported as this operation; use the layer Reshape"
_CHOICE = f"not exported; {_APP}"
_REDUCED = "exported along axes behind the batch's, without initial; give these"
# Raw operations that have no form themselves, and the layer that has.
_LAYERS = {
    "maxpool": "MaxPooling2D or MaxPooling1D",
    "averagepool": "AveragePooling2D or AveragePooling1D",
    "adaptiveaveragepool": "GlobalAveragePooling2D or AveragePooling2D",
    "adaptivemaxpool": "GlobalMaxPooling2D or MaxPooling2D",
    "pad": "ZeroPadding2D, whose border is of zeros",
    "padimages": "ZeroPadding2D",
    "cropimages": "Cropping2D",
    "conv": "Conv2D or Conv1D",
    "depthwiseconv": "DepthwiseConv2D or DepthwiseConv1D",
    "separableconv": "SeparableConv2D or SeparableConv1D",
    "batchnorm": "BatchNormalization",
}
# The reason for refusing an operation, by its name in lower case without underscores: of a layer's
# class, of a raw operation's class, and of an activation function.
_REASONS: dict[str, str] = {
    **{
        name: f"not exported as a function; use the layer {layer}"
        for name, layer in _LAYERS.items()
    },
    **dict.fromkeys(("relu", "leakyrelu", "prelu", "elu", "selu", "celu", "clip"), _RELU),
    "threshold": _RELU,
    "glu": "not exported as this function; use ops.split, sigmoid and Multiply",
    **dict.fromkeys(("softplus", "squareplus"), "no exact integer form; use ReLU()"),
    "mish": "no exact integer form; use silu or hard_silu",
    **dict.fromkeys(
        ("exponential", "exp", "expm1", "exp2", "log", "log1p", "log2", "log10", "softsign"),
        _CURVE,
    ),
    **dict.fromkeys(("sqrt", "rsqrt", "reciprocal", "sin", "cos", "erf", "logsigmoid"), _CURVE),
    **dict.fromkeys(("hardtanh", "hardshrink", "softshrink", "tanhshrink"), _CURVE),
    **dict.fromkeys(("sparsesigmoid", "sparseplus", "round", "floor", "sign"), _CURVE),
    "softmax": (
        "no exact integer form that holds on every CPU; a softmax at the end of the model is left "
        "out of the file, inside it use sigmoid"
    ),
    **dict.fromkeys(
        ("logsoftmax", "logsumexp", "sparsemax"),
        "no exact integer form; at the end of the model leave it to the app, and train the logits "
        "with from_logits=True, inside it use sigmoid",
    ),
    **dict.fromkeys(("layernormalization", "groupnormalization", "rmsnormalization"), _NORM),
    **dict.fromkeys(("layernorm", "rmsnorm", "var", "std", "moments"), _NORM),
    "spectralnormalization": (
        "not exported yet; build the model with the layer that it wraps, and copy the weights of "
        "that, whose kernel is normalized already"
    ),
    **dict.fromkeys(("unitnormalization", "normalize", "norm"), _UNIT),
    "maximum": (
        "exported of tensors of one shape, and of a tensor and 0; ReLU()(x - c) + c is the maximum "
        "of x and a constant c"
    ),
    "minimum": (
        "exported of tensors of one shape, and of a ReLU and a constant; c - ReLU()(c - x) is the "
        "minimum of x and a constant c"
    ),
    "average": "not exported yet; use Add and Rescaling",
    **dict.fromkeys(
        ("divide", "truedivide"),
        "no exact integer form; use Multiply, with a sigmoid or another gate of the divisor",
    ),
    "negative": "not exported as this operation; use Rescaling(-1.0)",
    **dict.fromkeys(
        ("power", "square"), "not exported as this operation; Multiply()([x, x]) is the square"
    ),
    "absolute": "not exported yet; Add()([ReLU()(x), ReLU()(Rescaling(-1.0)(x))]) is |x|",
    "ravel": _RESHAPE,
    **dict.fromkeys(("hstack", "vstack", "dstack", "append"), "not exported; use Concatenate"),
    **dict.fromkeys(("mean", "sum", "max", "amax", "min", "amin"), _REDUCED),
    **dict.fromkeys(
        ("prod", "median", "any", "all"), "no exact integer form; use a mean, a sum or a maximum"
    ),
    **dict.fromkeys(("argmax", "argmin", "topk", "argsort", "sort", "intopk"), _CHOICE),
    **dict.fromkeys(("where", "greater", "greaterequal", "less", "lessequal", "equal"), _GATE),
    **dict.fromkeys(("notequal", "logicaland", "logicalor", "logicalnot", "select"), _GATE),
    **dict.fromkeys(("upsampling2d", "resizing", "resize"), _RESIZE),
    **dict.fromkeys(("broadcastto",), _NEAREST),
    "repeatvector": (
        "not exported yet; Concatenate()(n * [x]) and Reshape((n, features)) are the same"
    ),
    "permute": "exported of up to 6 axes; join axes that stay together by Reshape",
    **dict.fromkeys(
        ("flip", "fliplr", "flipud", "rot90"),
        "no form within XNNPACK; turn the data, or the weights behind it, before the model",
    ),
    "roll": "not exported yet; Concatenate of both slices does the same",
    **dict.fromkeys(
        ("extractpatches",),
        "not exported yet; use a Conv2D with the block as kernel_size and strides",
    ),
    "convtranspose": _TRANSPOSED,
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
        _IN_TIME,
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
            "zeropadding3d",
            "cropping3d",
        ),
        _3D,
    ),
    **dict.fromkeys(("multiheadattention", "groupedqueryattention"), _ATTENTION),
    **dict.fromkeys(("attention", "additiveattention", "dotproductattention"), _ATTENTION),
    **dict.fromkeys(("einsumdense", "tensordot", "inner"), _MATRIX),
    **dict.fromkeys(("einsum", "matmul", "dot"), _PRODUCT),
    **dict.fromkeys(
        ("lstm", "gru", "simplernn", "rnn", "convlstm1d", "convlstm2d", "convlstm3d"), _RECURRENT
    ),
    "bidirectional": _RECURRENT,
    "timedistributed": (
        "not exported yet; Dense acts on each step without it; of other layers build the model of "
        "one step, and run its file for each"
    ),
    **dict.fromkeys(("embedding", "stringlookup", "integerlookup", "onehot"), _LOOKUP),
    **dict.fromkeys(
        ("hashing", "discretization", "categoryencoding", "textvectorization"), _LOOKUP
    ),
    "centercrop": f"not exported yet where it resizes; {_PIPELINE}",
    **dict.fromkeys(("autocontrast", "equalization"), f"no exact integer form; {_PIPELINE}"),
    **dict.fromkeys(
        ("rfft", "stft", "melspectrogram", "stftspectrogram", "fft"),
        (f"no exact integer form; {_PIPELINE}"),
    ),
    "randomcrop": (
        "changes the size in training alone; put it into the data pipeline, and train on images of "
        "the size of the crop"
    ),
    "averagepooling2d": (
        "no exact integer form where windows of this size reach over the border, of 2x2 or 3x3 it "
        "has; use padding='valid', behind ZeroPadding2D where the size has to stay"
    ),
    "cast": "not exported yet; cast the data before the model, to float32 or uint8",
    "stopgradient": "not exported yet; freeze the layers before it by trainable=False",
}
OTHERWISE = (
    "no exact integer form here; at the start of the model put it into the data pipeline, at its "
    "end into the app, and build what is between from other layers"
)
# What raw operations are in plain words; the others go by their name in keras.ops.
_WORDS = {
    "GetItem": "a slice",
    "Add": "a sum",
    "Multiply": "a product",
    "Subtract": "a difference",
    "Negative": "a minus sign",
    "Divide": "a quotient",
    "TrueDivide": "a quotient",
    "Maximum": "a maximum",
    "Minimum": "a minimum",
    "Transpose": "a transpose",
    "Split": "a split",
    "Matmul": "a matrix product",
    "Mean": "a mean over axes",
    "Sum": "a sum over axes",
    **dict.fromkeys(("Max", "Amax"), "a maximum over axes"),
    **dict.fromkeys(("Min", "Amin"), "a minimum over axes"),
    "Clip": "a clip",
    "ReLU": "a relu with a threshold",
    "Power": "a power",
    "Resize": "a resize",
    "Cast": "a cast",
    # Those whose class is not called as the function of keras.ops.
    "BatchNorm": "keras.ops.batch_normalization",
    "LayerNorm": "keras.ops.layer_normalization",
    "RMSNorm": "keras.ops.rms_normalization",
    "RFFT": "keras.ops.rfft",
    "STFT": "keras.ops.stft",
}


RELU_ARGUMENTS = ("max_value", "negative_slope", "threshold")


def reason(operation: Any) -> str | None:
    """What the table says of an operation of Keras' own, None where it says nothing."""
    return _REASONS.get(_key(operation))


def reason_of(name: str) -> str | None:
    """What the table says of a Keras class or function of this name, None where it says nothing."""
    return _REASONS.get(name.replace("_", "").lower())


def on_input(operation: Any) -> str:
    """The reason for refusing an operation that acts on the model's input before all weights."""
    part = type(operation).__name__ in ("GetItem", "Stack", "Flip", "Take", "Transpose")
    whole = ", with all of preprocess_input if it is of that" if part else ""
    return f"not exported; it acts on the model's input alone: {_PIPELINE}{whole}"


def described(operation: Any) -> str:
    """An operation for a message: its class, or what it does in plain words."""
    cls = type(operation)
    if not isinstance(operation, layers.Layer):
        return _WORDS.get(cls.__name__) or _function(cls.__name__)
    if isinstance(operation, layers.Activation):
        function = operation.activation
        known = activation_name(function) or str(function.__module__).startswith("tensorflow.")
        own = "" if known else " of your own"
        return f"activation {getattr(function, '__name__', type(function).__name__)!r}{own}"
    if isinstance(operation, layers.ReLU) and keras_class(operation) is layers.ReLU:
        return _relu(operation)
    return cls.__name__


def _function(cls: str) -> str:
    """The function of keras.ops that makes a raw operation of a class."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", cls).lower()
    module = "image." if not hasattr(ops, name) and hasattr(ops.image, name) else ""
    return f"keras.ops.{module}{name}"


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
    if not isinstance(operation, layers.Layer) or isinstance(operation, keras.Model):
        return ""
    names = [name for name in vars(operation) if name.endswith(("activation", "function"))]
    held = {name: function for name in names if callable(function := getattr(operation, name))}
    if any(getattr(function, "__name__", "") == "<lambda>" for function in held.values()):
        return f"holds a Python lambda, which Keras neither copies nor loads; use {_NAMED}"
    copy = None
    try:
        copy = (keras_class(operation) or type(operation)).from_config(config_of(operation))
    except CALL_ERRORS:
        if not any(map(inspect.isfunction, held.values())):
            return (
                "cannot be copied; from_config(get_config()) has to make the layer again, so give "
                "it a get_config with what its constructor takes"
            )
    if any(
        inspect.isfunction(f) and f is not getattr(copy, name, None) for name, f in held.items()
    ):
        return (
            "holds a function that Keras does not find by name when it copies or loads; use "
            f"{_NAMED}"
        )
    return ""


_NAMED = "a function with a name, decorated with @keras.saving.register_keras_serializable()"

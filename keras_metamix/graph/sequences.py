"""1-D layers as the 2-D ones that compute the same: a sequence is an image of one row.

Keras computes both by the same kernels, so that their outputs are equal to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from keras import layers, ops

from keras_metamix.graph.canonical import GATES
from keras_metamix.graph.kinds import RELUS, Kind
from keras_metamix.graph.operations import kind
from keras_metamix.graph.operators import Operator
from keras_metamix.graph.ownership import activation_name, config_of, keras_class

_Config = dict[str, Any]

# What computes each value of its result from the values at its place: on a row as on a sequence.
# So do operators that are `placewise`, and these kinds.
_PLACEWISE = (Kind.AFFINE, *RELUS, Kind.HARD_SIGMOID)
_LAYERS_PLACEWISE = (
    layers.Average,
    layers.ActivityRegularization,
    layers.Identity,
    layers.GaussianNoise,
    layers.GaussianDropout,
)
_RAW_PLACEWISE = {"ReLU", "LeakyRelu", "Silu", "HardSilu", "Clip", "Maximum", "Identity", "Cast"}
_FUNCTIONS = {"linear", "leaky_relu", *GATES}


def _convolution(config: _Config) -> _Config:
    sizes = {key: (1, *config[key]) for key in ("kernel_size", "strides", "dilation_rate")}
    padding = "valid" if config["padding"] == "causal" else config["padding"]
    return config | sizes | {"padding": padding}


def _depthwise(config: _Config) -> _Config:
    (stride,) = config["strides"]  # one row has one stride; TensorFlow wants both alike
    return _convolution(config) | {"strides": (stride, stride)}


def _transposed(config: _Config) -> _Config:
    more = config["output_padding"]
    return _convolution(config) | {"output_padding": more if more is None else (0, *_pair(more))}


def _pool(config: _Config) -> _Config:
    return config | {key: (1, *_pair(config[key])) for key in ("pool_size", "strides")}


def _pair(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _borders(key: str) -> Callable[[_Config], _Config]:
    return lambda config: config | {key: ((0, 0), tuple(config[key]))}


def _same(config: _Config) -> _Config:
    return config


# The 2-D layer of each, and its config from that of the 1-D layer.
_LAYERS: dict[type, tuple[type, Callable[[_Config], _Config]]] = {
    layers.SeparableConv1D: (layers.SeparableConv2D, _depthwise),
    layers.DepthwiseConv1D: (layers.DepthwiseConv2D, _depthwise),
    layers.Conv1DTranspose: (layers.Conv2DTranspose, _transposed),
    layers.Conv1D: (layers.Conv2D, _convolution),
    layers.MaxPooling1D: (layers.MaxPooling2D, _pool),
    layers.AveragePooling1D: (layers.AveragePooling2D, _pool),
    layers.GlobalAveragePooling1D: (layers.GlobalAveragePooling2D, _same),
    layers.GlobalMaxPooling1D: (layers.GlobalMaxPooling2D, _same),
    layers.ZeroPadding1D: (layers.ZeroPadding2D, _borders("padding")),
    layers.Cropping1D: (layers.Cropping2D, _borders("cropping")),
    layers.UpSampling1D: (
        layers.UpSampling2D,
        lambda config: config | {"size": (1, *_pair(config["size"]))},
    ),
}
IN_TIME = tuple(_LAYERS)


def on_row(operation: Any, shape: tuple[Any, ...]) -> Any:
    """The operation on rows that an operation on sequences is, None where it has none.

    The result of a row is the row of the result, or of fewer dimensions where the operation's is.

    Args:
      operation: a layer or a raw operation, of which all tensors are sequences, (batch, time,
        channels).
      shape: of its first tensor as a row, (batch, 1, time, channels).

    Returns:
      The operation itself where it takes either; else one of the same name and state.
    """
    cls = keras_class(operation)
    if cls is None:
        return None
    if not issubclass(cls, layers.Layer):
        return _raw(operation, cls)
    config = config_of(operation, ["activation"] if hasattr(operation, "activation") else ())
    found = next((base for base in _LAYERS if issubclass(cls, base)), None)
    if found is not None:
        if getattr(operation, "data_format", "channels_last") == "channels_first":
            return None
        made, converted = _LAYERS[found]
        return _made(operation, made, converted(config), shape)
    if issubclass(cls, layers.SpatialDropout1D):
        return _made(operation, layers.SpatialDropout2D, config, shape)
    if issubclass(cls, layers.Concatenate):
        return _made(operation, cls, config | {"axis": _axis(operation.axis)}, shape)
    if issubclass(cls, layers.PReLU):
        shared = operation.shared_axes or ()
        config |= {"shared_axes": [1, *(axis + 1 for axis in shared)]}
        return _made(operation, cls, config, shape) if 1 in shared else None
    if issubclass(cls, (layers.BatchNormalization, layers.Normalization)):
        axes = _pair(config["axis"] if config["axis"] is not None else ())
        config |= {"axis": None if config["axis"] is None else -1}
        return _made(operation, cls, config, shape) if set(axes) <= {-1, 2} else None
    if issubclass(cls, layers.Dense):  # its activation may be a layer of a shape
        return _made(operation, cls, config, shape)
    return operation if _is_placewise(operation, cls) else None


def _raw(operation: Any, cls: type) -> Any:
    """The raw operation on rows."""
    if cls.__name__ == "Concatenate":
        return _with(operation, axis=_axis(operation.axis))
    if cls.__name__ == "Mean" and _pair(operation.axis) in ((1,), (-2,)):
        return _with(operation, axis=(1, 2))
    return operation if _is_placewise(operation, cls) else None


def _with(operation: Any, **changes: Any) -> Any:
    copy = type(operation).from_config(operation.get_config() | changes)
    copy.name = operation.name
    return copy


def _is_placewise(operation: Any, cls: type) -> bool:
    if issubclass(cls, layers.Dropout):
        return operation.noise_shape is None
    found = kind(operation)
    if found in _PLACEWISE or (isinstance(found, Operator) and found.placewise):
        return True
    if issubclass(cls, layers.Activation):
        return activation_name(operation.activation) in _FUNCTIONS
    return issubclass(cls, _LAYERS_PLACEWISE) or cls.__name__ in _RAW_PLACEWISE


def _axis(axis: int) -> int:
    """An axis of a sequence as a row has it."""
    return axis if axis < 0 else axis + 1


def _made(operation: Any, cls: Any, config: _Config, shape: tuple[Any, ...]) -> Any:
    """A layer of the name and the state of another one."""
    layer = cls.from_config(_with_axes(config) | {"name": operation.name})
    function = getattr(operation, "activation", None)
    if function is not None:
        given = isinstance(function, layers.Layer)
        inner = on_row(function, layer.compute_output_shape(shape)) if given else None
        layer.activation = inner or function
    if operation.variables and not layer.built:
        layer.build(shape)
    if not operation.variables:  # or not built yet
        return layer
    for original, copy in zip(operation.variables, layer.variables, strict=True):
        copy.assign(ops.reshape(original, copy.shape))
        copy.trainable = original.trainable
    if hasattr(layer, "finalize_state"):
        layer.finalize_state()
    return layer


def _with_axes(config: _Config) -> _Config:
    """A config whose constraints speak of the axes of a 2-D layer's kernel."""
    found = dict(config)
    for key, value in config.items():
        inner = value.get("config") if isinstance(value, dict) and "constraint" in key else None
        if inner and "axis" in inner and "class_name" in value and "bias" not in key:
            axes = [_axis(axis) for axis in _pair(inner["axis"])]
            found[key] = value | {"config": inner | {"axis": axes}}
    return found

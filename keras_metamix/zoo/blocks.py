"""What the zoo's ImageNet networks are built from."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from keras import layers

WIDEST = 4.0


def make_divisible(channels: float, divisor: int = 8) -> int:
    """The multiple of `divisor` nearest to `channels`, and never less than 0.9 of it.

    The rounding rule of MobileNet's reference implementations.
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def check_shape_arguments(width: float, stem_strides: int) -> None:
    """Checks two arguments that every ImageNet network takes.

    Raises:
      ValueError: names the argument, what was expected and what was found.
    """
    if not 0 < width <= WIDEST:  # the small networks' width is a channel count: easily mistaken
        raise ValueError(
            "width: expected a channel multiplier such as 0.35 or 1.0 (at most "
            f"{WIDEST:g}), found {width!r}."
        )
    if stem_strides not in (1, 2):
        raise ValueError(
            f"stem_strides: expected 2, or 1 for small images, found {stem_strides!r}."
        )


def batch_norm(momentum: float, epsilon: float) -> Callable[..., layers.Layer]:
    """BatchNormalization with the settings of one network; call it with a name."""
    return functools.partial(layers.BatchNormalization, momentum=momentum, epsilon=epsilon)


def activate(x: Any, activation: str, name: str) -> Any:
    """A layer for "relu", "relu6", "hard_silu" or "hard_sigmoid", none for ""."""
    if not activation:
        return x
    name = f"{name}_{activation}"
    if activation in ("relu", "relu6"):
        return layers.ReLU(6.0 if activation == "relu6" else None, name=name)(x)
    return layers.Activation(activation, name=name)(x)


def conv_norm(
    x: Any,
    filters: int,
    size: int,
    strides: int,
    name: str,
    norm: Callable[..., layers.Layer],
    activation: str = "",
    padding: str = "same",
) -> Any:
    """Convolution without bias, batch norm, activation."""
    x = layers.Conv2D(
        filters, size, strides, padding, use_bias=False, kernel_initializer="he_normal", name=name
    )(x)
    return activate(norm(name=f"{name}_bn")(x), activation, name)


def inverted_residual(
    x: Any,
    expanded: int,
    filters: int,
    size: int,
    strides: int,
    name: str,
    norm: Callable[..., layers.Layer],
    activation: str,
    squeeze: int = 0,
) -> Any:
    """A pointwise expansion, a depthwise and a linear pointwise convolution, and the sum.

    Args:
      x: the input; it is added to the output where both have one shape.
      expanded: channels of the depthwise convolution; no expansion where the input has as many.
      filters: channels of the output.
      size, strides: of the depthwise convolution. "same" padding is what keras.applications
        spells as ZeroPadding2D before a "valid" convolution: the same rows and columns.
      name: prefix of the layers' names.
      norm: from `batch_norm`.
      activation: behind the expansion and the depthwise convolution.
      squeeze: channels between squeeze and excitation, 0 for neither.
    """
    shortcut = x
    if expanded != x.shape[-1]:
        x = conv_norm(x, expanded, 1, 1, f"{name}_expand", norm, activation)
    depthwise = f"{name}_depthwise"
    x = layers.DepthwiseConv2D(
        size,
        strides,
        "same",
        use_bias=False,
        depthwise_initializer="he_normal",
        name=depthwise,
    )(x)
    x = activate(norm(name=f"{depthwise}_bn")(x), activation, depthwise)
    if squeeze:
        x = _squeeze_excite(x, squeeze, f"{name}_se")
    x = conv_norm(x, filters, 1, 1, f"{name}_project", norm)
    if strides == 1 and shortcut.shape[-1] == filters:
        x = layers.Add(name=f"{name}_add")([shortcut, x])
    return x


def _squeeze_excite(x: Any, channels: int, name: str) -> Any:
    """Scales each channel by a number in [0, 1] that depends on the means of all channels."""
    scale = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_squeeze")(x)
    scale = layers.Conv2D(channels, 1, name=f"{name}_reduce")(scale)
    scale = activate(scale, "relu", f"{name}_reduce")
    scale = layers.Conv2D(x.shape[-1], 1, name=f"{name}_expand")(scale)
    scale = activate(scale, "hard_sigmoid", f"{name}_expand")
    return layers.Multiply(name=f"{name}_scale")([x, scale])

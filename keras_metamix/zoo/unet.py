"""U-Net (Ronneberger et al., MICCAI 2015), small: segmentation of small images in minutes."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from keras_metamix.zoo.small import MOMENTUM


def small_unet(
    input_shape: tuple[int, int, int] = (64, 64, 1),
    classes: int = 5,
    width: int = 8,
    depth: int = 4,
) -> keras.Model:
    """A contracting and an expanding path, joined by concatenations; logits of each pixel.

    Args:
      input_shape: height and width are multiples of `2**depth`.
      classes: channels of the logits.
      width: channels of the first level; each level below has twice as many.
      depth: how often the image is halved.

    Raises:
      ValueError: an image that cannot be halved so often.
    """
    height, breadth, _ = input_shape
    if height % 2**depth or breadth % 2**depth:
        raise ValueError(
            f"small_unet: expected height and width as multiples of {2**depth} (depth={depth} "
            f"halves them {depth} times), found {height} x {breadth}."
        )
    x = inputs = keras.Input(input_shape, name="image")
    skips = []
    for level in range(depth):
        x = _double_conv(x, width * 2**level, f"down{level + 1}")
        skips.append(x)
        x = layers.MaxPooling2D(name=f"down{level + 1}_pool")(x)
    x = _double_conv(x, width * 2**depth, "bottom")
    for level in reversed(range(depth)):
        filters, name = width * 2**level, f"up{level + 1}"
        x = layers.Conv2DTranspose(filters, 2, strides=2, name=name)(x)
        x = layers.Concatenate(name=f"{name}_join")([skips[level], x])
        x = _double_conv(x, filters, name)
    return keras.Model(inputs, layers.Conv2D(classes, 1, name="logits")(x), name="small_unet")


def _double_conv(x: Any, filters: int, name: str) -> Any:
    for number in (1, 2):
        x = layers.Conv2D(
            filters,
            3,
            padding="same",
            use_bias=False,
            kernel_initializer="he_normal",
            name=f"{name}_conv{number}",
        )(x)
        x = layers.BatchNormalization(momentum=MOMENTUM, name=f"{name}_bn{number}")(x)
        x = layers.ReLU(name=f"{name}_relu{number}")(x)
    return x

"""MobileNetV2 (Sandler et al., CVPR 2018)."""

from __future__ import annotations

import itertools

import keras
from keras import layers

from keras_metamix.zoo import pretrained
from keras_metamix.zoo.blocks import (
    batch_norm,
    check_shape_arguments,
    conv_norm,
    inverted_residual,
    make_divisible,
)

# Expansion, channels, blocks, strides of the first of them (the paper's Table 2).
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
PUBLISHED_WIDTHS = (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)
PUBLISHED_SIZES = (96, 128, 160, 192, 224)  # each has weights of its own


def mobilenet_v2(
    input_shape: tuple[int, int, int] = (224, 224, 3),
    classes: int = 1000,
    width: float = 1.0,
    stem_strides: int = 2,
    momentum: float = 0.99,
    weights: str | None = None,
) -> keras.Model:
    """MobileNetV2: 17 inverted residuals with linear bottlenecks and ReLU6.

    Args:
      input_shape: height, width and channels of an image. Pixels lie in [-1, 1].
      classes: number of logits.
      width: multiplies the channels, rounded to multiples of 8; the last convolution keeps 1280
        below 1.0, as published.
      stem_strides: strides of the first convolution; 1 suits images of about 32 pixels.
      momentum: of the batch norms. keras.applications' 0.999 needs more steps than a short
        schedule has.
      weights: None (random), or "imagenet": those of `keras.applications.MobileNetV2`, for
        square images of 96, 128, 160, 192 or 224 pixels the ones trained at that size.

    Returns:
      A functional model (batch, height, width, channels) -> (batch, classes) of logits.

    Raises:
      ValueError: an argument out of range, or with no ImageNet weights; names it.
      OSError: the weights could not be downloaded.
    """
    check_shape_arguments(width, stem_strides)
    pretrained.check_weights_argument(weights, input_shape, classes, width, PUBLISHED_WIDTHS)
    norm = batch_norm(momentum, epsilon=1e-3)
    inputs = keras.Input(input_shape, name="image")
    x = conv_norm(inputs, make_divisible(32 * width), 3, stem_strides, "stem", norm, "relu6")
    block = itertools.count(1)
    for expansion, channels, blocks, strides in STAGES:
        filters = make_divisible(channels * width)
        for index in range(blocks):
            x = inverted_residual(
                x,
                expansion * x.shape[-1],
                filters,
                3,
                1 if index else strides,
                f"block{next(block)}",
                norm,
                "relu6",
            )
    x = conv_norm(x, make_divisible(1280 * max(width, 1.0)), 1, 1, "head", norm, "relu6")
    x = layers.GlobalAveragePooling2D(name="features")(x)
    model = keras.Model(inputs, layers.Dense(classes, name="logits")(x), name="mobilenet_v2")
    if weights is not None:
        height = input_shape[0]
        known = height == input_shape[1] and height in PUBLISHED_SIZES
        shape = input_shape if known else (224, 224, 3)
        pretrained.load_application(model, "MobileNetV2", shape, width)
    return model

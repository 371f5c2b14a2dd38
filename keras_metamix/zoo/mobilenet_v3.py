"""MobileNetV3-Large (Howard et al., ICCV 2019)."""

from __future__ import annotations

import keras
from keras import layers

from keras_metamix.zoo import pretrained
from keras_metamix.zoo.blocks import (
    activate,
    batch_norm,
    check_shape_arguments,
    conv_norm,
    inverted_residual,
    make_divisible,
)

# Kernel size, expansion, channels, squeeze-and-excitation, activation, strides (Table 1; the
# expansions are the table's expanded channels over the block's input channels).
BLOCKS = (
    (3, 1.0, 16, False, "relu", 1),
    (3, 4.0, 24, False, "relu", 2),
    (3, 3.0, 24, False, "relu", 1),
    (5, 3.0, 40, True, "relu", 2),
    (5, 3.0, 40, True, "relu", 1),
    (5, 3.0, 40, True, "relu", 1),
    (3, 6.0, 80, False, "hard_silu", 2),
    (3, 2.5, 80, False, "hard_silu", 1),
    (3, 2.3, 80, False, "hard_silu", 1),
    (3, 2.3, 80, False, "hard_silu", 1),
    (3, 6.0, 112, True, "hard_silu", 1),
    (3, 6.0, 112, True, "hard_silu", 1),
    (5, 6.0, 160, True, "hard_silu", 2),
    (5, 6.0, 160, True, "hard_silu", 1),
    (5, 6.0, 160, True, "hard_silu", 1),
)
PUBLISHED_WIDTHS = (0.75, 1.0)


def mobilenet_v3_large(
    input_shape: tuple[int, int, int] = (224, 224, 3),
    classes: int = 1000,
    width: float = 1.0,
    stem_strides: int = 2,
    momentum: float = 0.99,
    weights: str | None = None,
) -> keras.Model:
    """MobileNetV3-Large: 15 inverted residuals, eight with squeeze-and-excitation, hard-swish.

    As `keras.applications.MobileNetV3Large` without its rescaling and its dropout.

    Args:
      input_shape: height, width and channels of an image. Pixels lie in [-1, 1].
      classes: number of logits.
      width: multiplies the channels, rounded to multiples of 8; the first convolution keeps 16,
        and the last hidden layer 1280 below 1.0, as published.
      stem_strides: strides of the first convolution; 1 suits images of about 32 pixels.
      momentum: of the batch norms. keras.applications' 0.999 needs more steps than a short
        schedule has.
      weights: None (random), or "imagenet": those of `keras.applications.MobileNetV3Large`,
        trained at 224x224.

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
    x = conv_norm(inputs, 16, 3, stem_strides, "stem", norm, "hard_silu")
    for block, (size, expansion, channels, excite, activation, strides) in enumerate(BLOCKS, 1):
        expanded = make_divisible(expansion * x.shape[-1])
        x = inverted_residual(
            x,
            expanded,
            make_divisible(channels * width),
            size,
            strides,
            f"block{block}",
            norm,
            activation,
            squeeze=make_divisible(expanded / 4) if excite else 0,
        )
    x = conv_norm(x, make_divisible(6 * x.shape[-1]), 1, 1, "head", norm, "hard_silu")
    x = layers.GlobalAveragePooling2D(keepdims=True, name="features")(x)
    x = layers.Conv2D(make_divisible(1280 * max(width, 1.0)), 1, name="hidden")(x)
    x = activate(x, "hard_silu", "hidden")
    x = layers.Conv2D(classes, 1, name="logits")(x)
    model = keras.Model(inputs, layers.Flatten(name="flat")(x), name="mobilenet_v3_large")
    if weights is not None:
        pretrained.load_application(model, "MobileNetV3Large", (224, 224, 3), width)
    return model

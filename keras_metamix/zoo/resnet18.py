"""ResNet-18 (He et al., CVPR 2016)."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import layers

from keras_metamix.zoo import pretrained
from keras_metamix.zoo.blocks import (
    activate,
    batch_norm,
    check_shape_arguments,
    conv_norm,
    make_divisible,
)

CHANNELS = (64, 128, 256, 512)
BLOCKS = 2  # of each stage
PRESET = "resnet_18_imagenet"


def resnet18(
    input_shape: tuple[int, int, int] = (224, 224, 3),
    classes: int = 1000,
    width: float = 1.0,
    stem_strides: int = 2,
    momentum: float = 0.9,
    weights: str | None = None,
) -> keras.Model:
    """ResNet-18: eight basic blocks of two 3x3 convolutions.

    Zeros are padded on all four sides before a strided convolution, as in PyTorch, where the
    published weights come from; Keras' "same" would pad two.

    Args:
      input_shape: height, width and channels of an image.
      classes: number of logits.
      width: multiplies the channels (64 to 512), rounded to multiples of 8.
      stem_strides: 2: the published stem, a 7x7 convolution of strides 2 and a max pooling of
        strides 2. 1: the one for images of about 32 pixels, a 3x3 convolution of strides 1 and no
        pooling; it has no ImageNet weights.
      momentum: of the batch norms.
      weights: None (random), or "imagenet": keras-hub's preset "resnet_18_imagenet". keras-hub is
        no dependency of this package and has to be installed for it. Its pixels are RGB in [0, 1]
        less the means (0.485, 0.456, 0.406), over the deviations (0.229, 0.224, 0.225).

    Returns:
      A functional model (batch, height, width, channels) -> (batch, classes) of logits.

    Raises:
      ValueError: an argument out of range, or with no ImageNet weights; names it.
      OSError: keras-hub is not installed, or could not download the weights.
    """
    check_shape_arguments(width, stem_strides)
    pretrained.check_weights_argument(weights, input_shape, classes, width, (1.0,))
    if weights is not None and stem_strides != 2:
        raise ValueError(f"stem_strides: expected 2 with weights={weights!r}, found {stem_strides}")
    norm = batch_norm(momentum, epsilon=1e-5)
    inputs = keras.Input(input_shape, name="image")
    x = _stem(inputs, make_divisible(CHANNELS[0] * width), stem_strides, norm)
    for stage, channels in enumerate(CHANNELS, 1):
        for block in range(1, BLOCKS + 1):
            strides = 2 if stage > 1 and block == 1 else 1
            name = f"stage{stage}_block{block}"
            x = _basic_block(x, make_divisible(channels * width), strides, name, norm)
    x = layers.GlobalAveragePooling2D(name="features")(x)
    model = keras.Model(inputs, layers.Dense(classes, name="logits")(x), name="resnet18")
    if weights is not None:
        _load_preset(model)
    return model


def _stem(x: Any, filters: int, strides: int, norm: Callable[..., layers.Layer]) -> Any:
    if strides == 1:
        return conv_norm(x, filters, 3, 1, "stem", norm, "relu")
    x = layers.ZeroPadding2D(3, name="stem_pad")(x)
    x = conv_norm(x, filters, 7, 2, "stem", norm, "relu", "valid")
    x = layers.ZeroPadding2D(1, name="pool_pad")(x)  # behind a ReLU, zeros are no maxima
    return layers.MaxPooling2D(3, 2, name="pool")(x)


def _basic_block(
    x: Any, filters: int, strides: int, name: str, norm: Callable[..., layers.Layer]
) -> Any:
    shortcut = x
    if strides != 1:
        shortcut = conv_norm(shortcut, filters, 1, strides, f"{name}_downsample", norm)
        x = layers.ZeroPadding2D(1, name=f"{name}_pad")(x)
    padding = "same" if strides == 1 else "valid"
    x = conv_norm(x, filters, 3, strides, f"{name}_conv1", norm, "relu", padding)
    x = conv_norm(x, filters, 3, 1, f"{name}_conv2", norm)
    x = layers.Add(name=f"{name}_add")([x, shortcut])
    return activate(x, "relu", name)


def _load_preset(model: keras.Model) -> None:
    """Copies backbone and classifier of keras-hub's preset."""
    remedy = (
        "`pip install keras-hub`, with access to the internet for the first load, or build the "
        "network with weights=None and use `load_weights` on a file that you have."
    )
    with pretrained.loading(f"keras-hub's preset {PRESET!r}", remedy):
        hub = importlib.import_module("keras_hub")
        source = hub.models.ResNetImageClassifier.from_preset(PRESET)
    pairs = [
        (model.get_layer(ours), source.backbone.get_layer(theirs))
        for ours, theirs in _published_names()
    ]
    pretrained.copy_weights([*pairs, (model.get_layer("logits"), source.output_dense)])


def _published_names() -> Iterator[tuple[str, str]]:
    """Our layer's name and that of the same layer in keras-hub's backbone."""
    yield from (("stem", "conv1_conv"), ("stem_bn", "conv1_bn"))
    for stage, block in itertools.product(range(len(CHANNELS)), range(BLOCKS)):
        ours, theirs = f"stage{stage + 1}_block{block + 1}", f"stack{stage}_block{block}"
        for index, conv in enumerate(("downsample", "conv1", "conv2")):
            if index or (stage and not block):  # where a stage begins at half the size
                yield f"{ours}_{conv}", f"{theirs}_{index}_conv"
                yield f"{ours}_{conv}_bn", f"{theirs}_{index}_bn"

"""EfficientNet-Lite0 in plain Keras, and the weights of its PyTorch port carried over.

The network is the one of https://github.com/tensorflow/tpu (models/official/efficientnet/lite):
MBConv blocks without squeeze-and-excitation, ReLU6, stem and head not scaled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import layers

INPUT_SHAPE = (224, 224, 3)
STEM_CHANNELS = 32
HEAD_CHANNELS = 1280
BATCH_NORM_EPSILON = 1e-3
# (blocks, kernel size, stride of the first block, expansion, output channels) of each stage.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


# Our name of a convolution to the PyTorch port's names of it and of the batch norm behind it.
_MODULES = {
    "stem": ("_conv_stem", "_bn0"),
    "expand": ("_expand_conv", "_bn0"),
    "depthwise": ("_depthwise_conv", "_bn1"),
    "project": ("_project_conv", "_bn2"),
    "head": ("_conv_head", "_bn1"),
    "logits": ("_fc", ""),
}


def efficientnet_lite0(classes: int = 1000) -> keras.Model:
    """The float network: images of `INPUT_SHAPE` to logits, in layers that can be quantized."""
    image = keras.Input(INPUT_SHAPE, name="image")
    # The port pads as TensorFlow's "same" does: where the sum is odd, one more at the end.
    x = layers.Conv2D(STEM_CHANNELS, 3, 2, padding="same", use_bias=False, name="stem")(image)
    x = _norm(x, "stem", relu=True)
    number = 0
    for count, size, stride, expansion, channels in STAGES:
        for block in range(count):
            x = _mbconv(x, channels, size, 1 if block else stride, expansion, f"block{number}")
            number += 1
    x = layers.Conv2D(HEAD_CHANNELS, 1, use_bias=False, name="head")(x)
    x = _norm(x, "head", relu=True)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, layers.Dense(classes, name="logits")(x), name="efficientnet_lite0")


def _mbconv(inputs: Any, channels: int, size: int, stride: int, expansion: int, name: str) -> Any:
    """Pointwise expansion, depthwise convolution, linear pointwise projection."""
    x = inputs
    if expansion != 1:
        wide = inputs.shape[-1] * expansion
        x = layers.Conv2D(wide, 1, use_bias=False, name=f"{name}_expand")(x)
        x = _norm(x, f"{name}_expand", relu=True)
    x = layers.DepthwiseConv2D(
        size, stride, padding="same", use_bias=False, name=f"{name}_depthwise"
    )(x)
    x = _norm(x, f"{name}_depthwise", relu=True)
    x = layers.Conv2D(channels, 1, use_bias=False, name=f"{name}_project")(x)
    x = _norm(x, f"{name}_project", relu=False)
    if stride == 1 and inputs.shape[-1] == channels:
        x = layers.Add(name=f"{name}_sum")([x, inputs])
    return x


def _norm(x: Any, convolution: str, relu: bool) -> Any:
    x = layers.BatchNormalization(epsilon=BATCH_NORM_EPSILON, name=f"{convolution}_norm")(x)
    return layers.ReLU(6.0, name=f"{convolution}_relu6")(x) if relu else x


def carry_weights(model: keras.Model, state: Mapping[str, np.ndarray]) -> None:
    """Gives the Keras network the arrays of a PyTorch state dict.

    Raises:
      ValueError: an array that is missing, of another shape or left over; names it.
    """
    left = dict(state)
    for layer in model.layers:
        if layer.weights:
            layer.set_weights(
                [_take(left, name, shape, axes) for name, shape, axes in _wanted(layer)]
            )
    left = [name for name in left if not name.endswith(".num_batches_tracked")]
    if left:
        raise ValueError(f"The checkpoint holds arrays of no layer: {left[:5]}.")


def _wanted(layer: Any) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """PyTorch's name, Keras' shape and the transposition of each weight of a layer."""
    norm = isinstance(layer, layers.BatchNormalization)
    *block, role = layer.name.removesuffix("_norm").split("_")
    module = _MODULES[role][norm]
    if block:
        module = f"_blocks.{block[0].removeprefix('block')}.{module}"
    suffixes = ("weight", "bias", "running_mean", "running_var")[: len(layer.weights)]
    depthwise = isinstance(layer, layers.DepthwiseConv2D)
    # PyTorch's kernels are (out, in, rows, columns), depthwise ones (channels, 1, rows, columns).
    axes = {4: (2, 3, 0, 1) if depthwise else (2, 3, 1, 0), 2: (1, 0), 1: (0,)}
    return [
        (f"{module}.{suffix}", tuple(weight.shape), axes[len(weight.shape)])
        for suffix, weight in zip(suffixes, layer.weights, strict=True)
    ]


def _take(
    state: dict[str, np.ndarray], name: str, shape: tuple[int, ...], axes: tuple[int, ...]
) -> np.ndarray:
    if name not in state:
        raise ValueError(f"The checkpoint holds no {name!r}.")
    expected = tuple(shape[axes.index(i)] for i in range(len(axes)))
    array = state.pop(name)
    if array.shape != expected:
        raise ValueError(
            f"{name!r} of the checkpoint: expected shape {expected}, found {array.shape}."
        )
    return array.transpose(axes)

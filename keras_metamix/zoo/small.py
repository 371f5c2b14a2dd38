"""Small networks for small images: minutes of training on a CPU."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

MOMENTUM = 0.9  # Keras' 0.99 needs more steps than a short schedule has


def _conv_norm(x: Any, filters: int, size: int, strides: int, name: str, relu: str = "") -> Any:
    x = layers.Conv2D(
        filters, size, strides, "same", use_bias=False, kernel_initializer="he_normal", name=name
    )(x)
    return _norm(x, name, relu)


def _depthwise_norm(x: Any, strides: int, name: str) -> Any:
    x = layers.DepthwiseConv2D(
        3, strides, "same", use_bias=False, depthwise_initializer="he_normal", name=name
    )(x)
    return _norm(x, name, "relu6")


def _norm(x: Any, name: str, relu: str) -> Any:
    x = layers.BatchNormalization(momentum=MOMENTUM, name=f"{name}_bn")(x)
    if not relu:
        return x
    return layers.ReLU(6.0 if relu == "relu6" else None, name=f"{name}_relu")(x)


def small_cnn(
    input_shape: tuple[int, int, int] = (28, 28, 1),
    classes: int = 10,
    width: int = 16,
    stem_strides: int = 1,
) -> keras.Model:
    """Three plain convolutions with max pooling, and logits."""
    inputs = keras.Input(input_shape, name="image")
    x = _conv_norm(inputs, width, 3, stem_strides, "conv1", "relu")
    x = layers.MaxPooling2D(name="pool1")(x)
    x = _conv_norm(x, 2 * width, 3, 1, "conv2", "relu")
    x = layers.MaxPooling2D(name="pool2")(x)
    x = _conv_norm(x, 4 * width, 3, 1, "conv3", "relu")
    x = layers.GlobalAveragePooling2D(name="features")(x)
    return keras.Model(inputs, layers.Dense(classes, name="logits")(x), name="small_cnn")


def small_resnet(
    input_shape: tuple[int, int, int] = (28, 28, 1),
    classes: int = 10,
    width: int = 16,
    stem_strides: int = 1,
) -> keras.Model:
    """ResNet-8: three basic blocks of `width`, 2x and 4x channels, and logits."""
    inputs = keras.Input(input_shape, name="image")
    x = _conv_norm(inputs, width, 3, stem_strides, "stem", "relu")
    for block, (filters, strides) in enumerate(((width, 1), (2 * width, 2), (4 * width, 2)), 1):
        name = f"block{block}"
        shortcut = x
        x = _conv_norm(x, filters, 3, strides, f"{name}_conv1", "relu")
        x = _conv_norm(x, filters, 3, 1, f"{name}_conv2")
        if strides != 1:
            shortcut = _conv_norm(shortcut, filters, 1, strides, f"{name}_downsample")
        x = layers.Add(name=f"{name}_add")([x, shortcut])
        x = layers.ReLU(name=f"{name}_relu")(x)
    x = layers.GlobalAveragePooling2D(name="features")(x)
    return keras.Model(inputs, layers.Dense(classes, name="logits")(x), name="small_resnet")


def small_mobilenet(
    input_shape: tuple[int, int, int] = (28, 28, 1),
    classes: int = 10,
    width: int = 16,
    stem_strides: int = 2,
) -> keras.Model:
    """Seven inverted residuals with linear bottlenecks (the shape of MobileNet-v2), and logits."""
    inputs = keras.Input(input_shape, name="image")
    x = _conv_norm(inputs, width, 3, stem_strides, "stem", "relu6")
    plan = (
        (width, 1),
        (width, 1),
        (3 * width // 2, 2),
        (3 * width // 2, 1),
        (5 * width // 2, 2),
        (5 * width // 2, 1),
    )
    for block, (filters, strides) in enumerate(plan, 1):
        x = _inverted_residual(x, filters, strides, f"block{block}")
    x = _conv_norm(x, 8 * width, 1, 1, "head", "relu6")
    x = layers.GlobalAveragePooling2D(name="features")(x)
    return keras.Model(inputs, layers.Dense(classes, name="logits")(x), name="small_mobilenet")


def _inverted_residual(x: Any, filters: int, strides: int, name: str) -> Any:
    shortcut = x
    x = _conv_norm(x, 4 * x.shape[-1], 1, 1, f"{name}_expand", "relu6")
    x = _depthwise_norm(x, strides, f"{name}_depthwise")
    x = _conv_norm(x, filters, 1, 1, f"{name}_project")
    if strides == 1 and shortcut.shape[-1] == filters:
        x = layers.Add(name=f"{name}_add")([shortcut, x])
    return x

"""Stand-ins for published networks: no test downloads anything."""

import sys
import types

import keras
import numpy as np
import pytest
from keras import layers


def _randomize(model):
    """Moves every weight away from its initial value: no two layers hold the same."""
    rng = np.random.default_rng(0)
    for variable in model.weights:
        size = 0.01 if "kernel" in variable.path else 0.3
        variable.assign(variable + rng.uniform(0, size, variable.shape))


@pytest.fixture
def published_application(monkeypatch):
    """application, image size -> what keras.applications gives for "imagenet" from now on."""

    def install(application, size, **arguments):
        make = getattr(keras.applications, application)
        model = make(
            weights=None, input_shape=(size, size, 3), classifier_activation=None, **arguments
        )
        _randomize(model)
        model.asked_for = []

        def pretrained(**asked):
            model.asked_for.append(asked)
            return model

        monkeypatch.setattr(keras.applications, application, pretrained)
        return model

    return install


def _conv_norm(x, filters, size, strides, conv, norm, pad=None):
    padding = "same"
    if strides > 1 and size > 1:
        x, padding = layers.ZeroPadding2D(size // 2, name=pad)(x), "valid"
    x = layers.Conv2D(filters, size, strides, padding, use_bias=False, name=conv)(x)
    return layers.BatchNormalization(epsilon=1e-5, name=norm)(x)


def _hub_block(x, filters, strides, name):
    """keras-hub 0.32's `apply_basic_block`, with its names."""
    shortcut = x
    if strides > 1:
        shortcut = _conv_norm(x, filters, 1, strides, f"{name}_0_conv", f"{name}_0_bn")
    x = _conv_norm(x, filters, 3, strides, f"{name}_1_conv", f"{name}_1_bn", f"{name}_1_pad")
    x = layers.Activation("relu", name=f"{name}_1_relu")(x)
    x = _conv_norm(x, filters, 3, 1, f"{name}_2_conv", f"{name}_2_bn")
    x = layers.Add(name=f"{name}_add")([shortcut, x])
    return layers.Activation("relu", name=f"{name}_out")(x)


@pytest.fixture
def keras_hub(monkeypatch):
    """A module `keras_hub` with the ResNet-18 classifier and nothing else; returns the classifier.

    The structure and the names are those of keras-hub 0.32.
    """
    image = keras.Input((None, None, 3))
    x = _conv_norm(image, 64, 7, 2, "conv1_conv", "conv1_bn", "conv1_pad")
    x = layers.ZeroPadding2D(1, name="pool1_pad")(layers.Activation("relu", name="conv1_relu")(x))
    x = layers.MaxPooling2D(3, strides=2, name="pool1_pool")(x)
    for stack, filters in enumerate((64, 128, 256, 512)):
        for block in range(2):
            strides = 2 if stack and not block else 1
            x = _hub_block(x, filters, strides, f"stack{stack}_block{block}")
    backbone = keras.Model(image, x)
    head = layers.Dense(1000, name="predictions")
    logits = head(layers.GlobalAveragePooling2D(name="pooler")(backbone(image)))
    classifier = keras.Model(image, logits)
    classifier.backbone, classifier.output_dense = backbone, head
    _randomize(classifier)

    class ResNetImageClassifier:
        @staticmethod
        def from_preset(name):
            assert name == "resnet_18_imagenet"
            return classifier

    module = types.ModuleType("keras_hub")
    module.models = types.SimpleNamespace(ResNetImageClassifier=ResNetImageClassifier)
    monkeypatch.setitem(sys.modules, "keras_hub", module)
    return classifier

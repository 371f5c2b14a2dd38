"""Networks small enough that a stage of them trains in a second."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_metamix.assignment import BitAssignment
from keras_metamix.bitmixer.model import BitMixerModel
from keras_metamix.calibration import calibrate

CLASSES = 4


@pytest.fixture(scope="session")
def float_model():
    """Every kind of variable: two searched layers with a transition between them, streams."""

    def build(seed=0):
        keras.utils.set_random_seed(seed)
        image = keras.Input((8, 8, 1), name="image")
        x = layers.Conv2D(3, 3, 2, "same", use_bias=False, name="stem")(image)
        x = layers.BatchNormalization(momentum=0.9, name="stem_bn")(x)
        x = layers.ReLU(name="stem_relu")(x)
        y = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(x)
        y = layers.BatchNormalization(momentum=0.9, name="depthwise_bn")(y)
        y = layers.ReLU(6.0, name="depthwise_relu")(y)
        y = layers.Conv2D(3, 1, use_bias=False, name="project")(y)
        y = layers.BatchNormalization(momentum=0.9, name="project_bn")(y)
        x = layers.Add(name="sum")([x, y])
        x = layers.Flatten(name="flat")(x)
        return keras.Model(image, layers.Dense(CLASSES, name="logits")(x), name="tiny")

    return build


@pytest.fixture(scope="session")
def deep_model():
    """Three searched layers in a row."""

    def build(seed=0):
        keras.utils.set_random_seed(seed)
        x = image = keras.Input((8, 8, 1), name="image")
        for name, filters in (("stem", 3), ("one", 4), ("two", 5), ("three", 6)):
            strides = 2 if name == "stem" else 1
            x = layers.Conv2D(filters, 3, strides, "same", use_bias=False, name=name)(x)
            x = layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)
            x = layers.ReLU(name=f"{name}_relu")(x)
        x = layers.GlobalAveragePooling2D(name="features")(x)
        return keras.Model(image, layers.Dense(CLASSES, name="logits")(x), name="deep")

    return build


@pytest.fixture(scope="session")
def data():
    generator = np.random.default_rng(0)
    y = generator.integers(0, CLASSES, 24)
    x = generator.normal(size=(24, 8, 8, 1)) + y[:, None, None, None]
    return x.astype(np.float32), y.astype(np.int32)


@pytest.fixture(scope="session")
def loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture(scope="session")
def mixer(float_model, data, loss):
    """A compiled, calibrated BitMixerModel in a stage."""

    def build(
        batch_norm="feeding",
        stage="activations",
        optimizer=None,
        calibrated=True,
        source=float_model,
        seed=0,
        space=None,
        draws=0,
        **compile,
    ):
        model = BitMixerModel.from_float(source(seed), space, batch_norm, seed=draws)
        model.compile(
            optimizer=optimizer or keras.optimizers.SGD(0.05),
            loss=loss,
            **({"metrics": ["accuracy"]} | compile),
        )
        if calibrated:
            calibrate(model, data[0][:8])
        model.stage = stage
        return model

    return build


@pytest.fixture(scope="session")
def assignment():
    """An assignment of a mixer's searched layers in network order, its ends at 8 bits."""

    def build(model, *searched):
        names = [layer.name for layer in model.mac_layers]
        bits = dict(zip(names, (8, *searched, 8), strict=True))
        return BitAssignment(bits, bits)

    return build

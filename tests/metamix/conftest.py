"""Networks small enough that a phase of them trains in a second."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_metamix.assignment import SearchSpace
from keras_metamix.calibration import calibrate
from keras_metamix.metamix.model import MetaMixModel

CLASSES = 4
BUDGET = 48_000  # the network takes 46848 (3-bit) to 58368 (8-bit) BOPs at 4-bit weights


@pytest.fixture(scope="session")
def float_model():
    """Every kind of variable: two searched layers, a bias, batch norm, streams (a sum)."""

    def build(seed=0):
        keras.utils.set_random_seed(seed)
        image = keras.Input((8, 8, 1), name="image")
        x = layers.Conv2D(3, 3, 2, "same", use_bias=False, name="stem")(image)
        x = layers.BatchNormalization(momentum=0.9, name="stem_bn")(x)
        x = layers.ReLU(name="stem_relu")(x)
        y = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(x)
        y = layers.BatchNormalization(momentum=0.9, name="depthwise_bn")(y)
        y = layers.ReLU(6.0, name="depthwise_relu")(y)
        y = layers.Conv2D(3, 1, name="project")(y)
        x = layers.Add(name="sum")([x, y])
        x = layers.Flatten(name="flat")(x)
        return keras.Model(image, layers.Dense(CLASSES, name="logits")(x), name="tiny")

    return build


@pytest.fixture(scope="session")
def data():
    generator = np.random.default_rng(0)
    y = generator.integers(0, CLASSES, 24)
    x = generator.normal(size=(24, 8, 8, 1)) + y[:, None, None, None]
    return x.astype(np.float32), y.astype(np.int32)


@pytest.fixture
def loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture
def metamix(float_model, data, loss):
    """A compiled, calibrated MetaMixModel in a phase."""

    def build(space=None, phase="bit_meta", optimizer=None, calibrated=True, seed=0, **compile):
        model = MetaMixModel.from_float(float_model(seed), space or SearchSpace())
        model.compile(
            optimizer=optimizer or keras.optimizers.SGD(0.05),
            loss=loss,
            **({"metrics": ["accuracy"]} | compile),
        )
        if calibrated:
            calibrate(model, data[0][:8])
        model.set_objective(BUDGET)
        model.phase = phase
        return model

    return build

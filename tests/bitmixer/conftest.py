"""A BitMixerModel of a network so small that a stage of it trains in a second."""

import keras
import pytest
from keras import layers

from keras_metamix.assignment import BitAssignment
from keras_metamix.bitmixer.model import BitMixerModel
from keras_metamix.calibration import calibrate


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
        return keras.Model(image, layers.Dense(4, name="logits")(x), name="deep")

    return build


@pytest.fixture(scope="session")
def mixer(tiny_model, data, loss):
    """A compiled, calibrated BitMixerModel in a stage."""

    def build(
        batch_norm="feeding",
        stage="activations",
        optimizer=None,
        calibrated=True,
        source=tiny_model,
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

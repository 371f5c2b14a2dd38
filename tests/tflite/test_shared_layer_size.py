"""`Size` of networks that apply layers several times, or hold many of one shape: within 1 %.

A file stores equal constants once: the weights of a layer's second call, and the places that the
patches of convolutions of one shape are read from.
"""

import functools

import keras
import numpy as np
import pytest
from keras import layers

import keras_metamix as kmm
import metamix_tflite as mt
from keras_metamix.layers.parts import activation_quantizers

TARGETS = {"cpu": 2, "micro": 2, "web": 1, "ethosu": 1}  # the latter hold INT8, whatever the bits


def conv(name, channels, size=3, strides=1):
    return layers.Conv2D(channels, size, strides, "same", activation="relu", name=name)


def strided(name):
    return [conv(f"{name}1", 48), conv(f"{name}2", 64, 3, 2), conv(f"{name}3", 64, 5, 2)]


def depthwise(name):
    middle = layers.DepthwiseConv2D(3, padding="same", activation="relu", name=f"{name}2")
    return [conv(f"{name}1", 64), middle, conv(f"{name}3", 96, 1), conv(f"{name}4", 40)]


def dense(name):
    first = layers.Dense(32, activation="relu", name=f"{name}1")
    return [layers.Flatten(), first, layers.Dense(64, activation="relu", name=f"{name}2")]


def blocks(name):
    up = layers.Conv2DTranspose(48, 2, 2, name=f"{name}2")
    last = layers.Conv2DTranspose(32, 3, 2, "same", name=f"{name}3")
    return [conv(f"{name}1", 32, 3, 2), up, last, conv(f"{name}4", 40)]


def tower(name):
    """A model of its own, with a batch norm, a sum and an embedding."""
    x = image = keras.Input((8, 8, 3), name=f"{name}_image")
    x = conv(f"{name}1", 48)(x)
    x = layers.Conv2D(64, 3, 2, "same", use_bias=False, name=f"{name}2")(x)
    x = layers.ReLU(name=f"{name}_relu")(layers.BatchNormalization(name=f"{name}_bn")(x))
    x = layers.Add(name=f"{name}_sum")([x, conv(f"{name}3", 64)(x)])
    x = layers.GlobalAveragePooling2D(name=f"{name}_mean")(x)
    return [keras.Model(image, layers.Dense(32, name=f"{name}4")(x), name=name)]


def compared(branches):
    """The difference of two images' features, of two lists of layers or of one twice."""
    images = [keras.Input((8, 8, 3), name=name) for name in ("left", "right")]
    features = []
    for x, branch in zip(images, branches, strict=True):
        for layer in branch:
            x = layer(x)
        features.append(x)
    x = layers.Subtract(name="difference")(features)
    if len(x.shape) == 4:
        x = layers.GlobalAveragePooling2D(name="mean")(x)
    return keras.Model(images, layers.Dense(10, name="logits")(x))


NETWORKS = {
    "strided": lambda: compared([strided("shared")] * 2),
    "depthwise": lambda: compared([depthwise("shared")] * 2),
    "dense": lambda: compared([dense("shared")] * 2),
    "blocks": lambda: compared([blocks("shared")] * 2),
    "tower": lambda: compared([tower("shared")] * 2),
    "twins": lambda: compared([strided("left_"), strided("right_")]),
}


@pytest.fixture(scope="module")
def made(as_trained):
    """made(network, trained) -> a calibrated model."""

    @functools.cache
    def make(name, trained):
        keras.utils.set_random_seed(0)
        model = kmm.MetaMixModel.from_float(NETWORKS[name](), kmm.SearchSpace(8, (8, 4, 3, 2)))
        if trained:
            as_trained(model.network)
        images = np.random.default_rng(1).normal(size=(2, 8, 8, 8, 3)).astype(np.float32)
        kmm.calibrate(model, [*images])
        if trained:
            for number, quantizer in enumerate(activation_quantizers(model.network)):
                if hasattr(quantizer, "log_step"):
                    quantizer.log_step.assign(quantizer.log_step + 1e-3 * number)
        return model

    return make


def assignments(priced, count):
    """An assignment that is drawn, and that of the fewest bits."""
    generator, choices = np.random.default_rng(2), priced.choices
    drawn = {layer: int(generator.choice([w for _, w in p])) for layer, p in choices.items()}
    fewest = {layer: min(w for _, w in pairs) for layer, pairs in choices.items()}
    for weights in (drawn, fewest)[:count]:
        yield kmm.BitAssignment(dict.fromkeys(weights, 8), weights)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_stored_once_is_counted_once(name, target, made):
    model = made(name, trained=True)
    priced = kmm.Size(share=1.0, target=target).priced(model)
    for bits in assignments(priced, TARGETS[target]):
        model.set_bits(bits)
        assert priced.total(bits) == pytest.approx(len(mt.convert(model, target)), rel=0.01)


@pytest.mark.parametrize("name", ["depthwise", "dense", "tower"])
def test_a_file_before_training_has_no_more_bytes_than_one_after_it(name, made):
    """Biases of 0 and equal step sizes are stored once, and need no operator between them."""
    model = made(name, trained=False)
    priced = kmm.Size(share=1.0).priced(model)
    for bits in assignments(priced, 2):
        model.set_bits(bits)
        assert 0.85 * priced.total(bits) < len(mt.convert(model)) <= priced.total(bits)

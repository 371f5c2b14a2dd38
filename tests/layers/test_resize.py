"""Bilinear resizing on a grid: the device's integers forwards, the interpolation's gradient."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import keras_metamix as kmm
import metamix_tflite as mt
from keras_metamix.layers.resize import GridResize
from keras_metamix.ops import resize_levels

SIZES = [(10, 14), (3, 2), (4, 9)]


@pytest.mark.parametrize("size", SIZES)
def test_the_forward_pass_is_that_of_the_device_and_the_gradient_that_in_float(size):
    generator, step = np.random.default_rng(0), np.float32(0.37)
    levels = generator.integers(-128, 128, (2, 5, 7, 3)).astype(np.float32)
    weights = generator.normal(size=(2, *size, 3)).astype(np.float32)
    layer = GridResize(size, input_quantizer="before")
    layer.connect(lambda: (tf.constant(step), -128, 127))
    x = tf.constant(levels * step)

    def run(function):
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = function(x)
            loss = ops.sum(outputs * weights)
        return np.asarray(outputs), np.asarray(tape.gradient(loss, x))

    found, gradient = run(layer)
    plain, expected = run(lambda t: ops.image.resize(t, size, "bilinear"))
    np.testing.assert_array_equal(found, np.asarray(resize_levels(levels, size)) * step)
    np.testing.assert_array_equal(gradient, expected)
    assert np.max(np.abs(found - plain)) <= 0.6 * step
    layer.connect(lambda: None)  # where the quantizer does not act
    np.testing.assert_array_equal(layer(x), plain)


def test_halves_are_rounded_up():
    levels = np.array([-3.0, -2.0, 1.0, 2.0], np.float32).reshape(1, 1, 4, 1)
    np.testing.assert_array_equal(np.ravel(resize_levels(levels, (1, 2))), [-2, 2])


def bytes_resized(function):
    image = keras.Input((6, 5, 3), name="image", dtype="uint8")
    x = layers.Rescaling(1 / 127.5, -1.0)(function(image))
    x = layers.Conv2D(4, 3, activation="relu", name="stem")(x)
    return keras.Model(image, layers.Dense(3, name="logits")(layers.GlobalAveragePooling2D()(x)))


OF_BYTES = {
    "Resizing": layers.Resizing(9, 8),
    "behind a nearest one": lambda x: layers.Resizing(9, 8)(layers.UpSampling2D(2)(x)),
    "ops.image.resize": lambda x: ops.image.resize(x, (9, 8)),
    "of floats": lambda x: ops.image.resize(ops.cast(x, "float32"), (9, 8)),
    "nearest": layers.Resizing(12, 10, "nearest"),
}


@pytest.mark.parametrize("name", OF_BYTES)
def test_an_input_of_bytes_is_resized_as_keras_does(name, tmp_path):
    """Keras rounds what it interpolates of bytes."""
    source = bytes_resized(OF_BYTES[name])
    images = np.random.default_rng(0).integers(0, 256, (8, 6, 5, 3)).astype(np.uint8)
    model = kmm.MetaMixModel.from_float(source)
    with kmm.quantizers_off():
        np.testing.assert_array_equal(model(images), source(images))
    kmm.calibrate(model, images)
    model.set_bits(model.bit_assignment)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(images), model(images))
    folded = kmm.fold_batch_norm(model)
    step = folded.layers[-1].input_grid.step
    assert np.max(np.abs(np.asarray(folded(images)) - np.asarray(model(images)))) <= 1.01 * step
    assert mt.parity(mt.convert(model), model, images).differing == 0


def test_one_layer_that_is_called_twice_has_two_grids():
    image = keras.Input((6, 6, 2), name="image")
    resize = layers.Resizing(9, 9, name="resize")
    x = layers.Conv2D(2, 3, padding="same", name="first")(image)
    x = layers.Add(name="sum")([resize(image), resize(x)])
    source = keras.Model(image, layers.Conv2D(3, 1, name="last")(x))
    model = kmm.MetaMixModel.from_float(source)
    found = [x.input_quantizer for x in model.network.layers if isinstance(x, GridResize)]
    assert sorted(found) == ["first_stream", "image_stream"]
    images = np.random.default_rng(0).normal(size=(8, 6, 6, 2)).astype(np.float32)
    with kmm.quantizers_off():
        np.testing.assert_array_equal(model(images), source(images))

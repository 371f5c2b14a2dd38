"""What every layer test does: save and load it, differentiate it, put it into a mode."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_metamix.layers.mode import QuantizationMode, quantization_mode


@pytest.fixture
def in_mode():
    """Calls `function(*arguments)` inside a QuantizationMode of these fields."""

    def call(function, *arguments, call=None, **mode):
        with quantization_mode(QuantizationMode(**mode)):
            return function(*arguments, **(call or {}))

    return call


@pytest.fixture
def saved_and_loaded(tmp_path):
    """A layer inside a small model, through a .keras file and back."""

    def round_trip(layer, input_shape):
        inputs = keras.Input(input_shape)
        model = keras.Model(inputs, layer(inputs))
        path = tmp_path / "layer.keras"
        model.save(path)
        loaded = keras.models.load_model(path)
        return model, loaded, loaded.get_layer(layer.name)

    return round_trip


@pytest.fixture
def gradients_of():
    """Gradients of `sum(weights * function())` to variables or tensors; None where none comes."""

    def compute(function, variables, weights=None):
        watched = [v.value if isinstance(v, keras.Variable) else v for v in variables]
        with tf.GradientTape() as tape:
            tape.watch(watched)
            outputs = function()
            weights = np.ones(outputs.shape, np.float32) if weights is None else weights
            total = tf.reduce_sum(outputs * weights)
        found = tape.gradient(total, watched)
        # A gather's gradient comes as IndexedSlices.
        return [None if g is None else tf.convert_to_tensor(g).numpy() for g in found]

    return compute


@pytest.fixture
def batches(shape):
    """Three batches of `shape`: channels of very different spread, one of them far from 0."""
    generator = np.random.default_rng(1)
    spread, mean = np.array([1e-3, 0.1, 1.0, 30.0]), np.array([0.0, -1.0, 20.0, 3.0])
    return [(generator.normal(size=shape) * spread + mean).astype(np.float32) for _ in range(3)]


@pytest.fixture
def close():
    """Asserts that arrays agree as far as float32 lets a normalization."""

    def check(found, expected):
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4)

    return check

"""The Hessian's trace against closed forms in float64 and against exact Hessians."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_metamix as kmm
from keras_metamix import hessian

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture(scope="module")
def regression():
    """A linear network of 4 features, 2 hidden values and 3 classes, and 9 labelled inputs."""
    keras.utils.set_random_seed(1)
    features = keras.Input((4,), name="features")
    hidden = layers.Dense(2, use_bias=False, name="hidden")(features)
    model = keras.Model(features, layers.Dense(3, name="logits")(hidden), name="regression")
    generator = np.random.default_rng(0)
    x = generator.normal(size=(9, 4)).astype("float32")
    return model, (x, generator.integers(0, 3, 9))


def _exact(model, x):
    """The Hessian of the mean cross-entropy by each kernel, in closed form and float64.

    With p the probabilities and S = diag(p) - p p', it is mean(h h' x S) by the last kernel, and
    mean(x x' x (W S W')) by the one before, W the last kernel: logits are linear in either.
    """
    first, kernel, bias = (np.float64(w) for w in model.get_weights())
    x = np.float64(x)
    h = x @ first
    p = np.exp(h @ kernel + bias)
    p /= p.sum(1, keepdims=True)
    s = np.einsum("nj,jk->njk", p, np.eye(p.shape[1])) - np.einsum("nj,nk->njk", p, p)
    inner = np.einsum("ij,njk,lk->nil", kernel, s, kernel)
    found = {"hidden": (x, inner), "logits": (h, s)}
    return {
        name: np.einsum("ni,nk,njl->ijkl", a, a, b).reshape(2 * (a.shape[1] * b.shape[1],)) / len(x)
        for name, (a, b) in found.items()
    }


@pytest.mark.parametrize("quantized", [False, True])
def test_traces_are_those_of_the_closed_form(regression, quantized):
    model, (x, y) = regression
    owner = kmm.QuantizedModel.from_float(model) if quantized else model
    found = kmm.hessian_trace(owner, (x, y), CROSS_ENTROPY, samples=300, batch_size=4)
    exact = _exact(model, x)
    assert [*found] == ["hidden", "logits"]
    for name, layer in found.items():
        expected = np.trace(exact[name])
        assert abs(layer.trace - expected) < 4 * layer.error < 0.4 * expected
        assert layer.weights == len(exact[name]) and layer.average == layer.trace / layer.weights


def test_the_mean_over_all_z_of_a_layer_is_its_trace(regression):
    """Each z gives `z' H z` of the layer's own block, and their mean over all 2^n is exact."""
    model, (x, y) = regression
    owner = kmm.QuantizedModel.from_float(model)
    products = hessian._products(owner.network, owner.mac_layers, hessian._loss(CROSS_ENTROPY))
    exact = _exact(model, x)
    batches = [(x[:4], y[:4]), (x[4:], y[4:])]
    for number, layer in enumerate(owner.mac_layers):
        found, block = [], exact[layer.name]
        for signs in itertools.product((-1.0, 1.0), repeat=len(block)):
            z = np.reshape(signs, layer.kernel.shape)
            values = [products(batch, number, z) for batch in batches]
            found.append(np.average(values, weights=[4, 5]))
            assert found[-1] == pytest.approx(signs @ block @ signs, rel=1e-4, abs=1e-6)
        assert np.mean(found) == pytest.approx(np.trace(block), rel=1e-6)


def test_convolutions_and_batch_norms(tiny_model, data):
    """Beside the Hessians of the float model itself, row by row."""
    model = tiny_model()
    model.compile(loss=CROSS_ENTROPY)
    found = kmm.hessian_trace(model, tf.data.Dataset.from_tensor_slices(data).batch(12), samples=40)
    assert [*found] == ["stem", "depthwise", "project", "logits"]
    for name in ("stem", "depthwise", "project"):
        layer = found[name]
        kernel = model.get_layer(name).kernel.value
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                value = CROSS_ENTROPY(data[1], model(data[0], training=False))
            gradient = tf.reshape(inner.gradient(value, kernel), (-1,))
        rows = outer.jacobian(gradient, kernel)
        expected = float(tf.linalg.trace(tf.reshape(rows, 2 * (layer.weights,))))
        assert abs(layer.trace - expected) < 4 * layer.error, name
        assert layer.error < 0.5 * abs(expected), name


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": "m.keras"}, TypeError, "expected a Keras model, found the path 'm.keras'"),
        ({"loss": None}, ValueError, "loss: expected a Keras loss or its name, or a compiled"),
        ({"loss": "crossentropy"}, ValueError, "its name, found 'crossentropy'"),
        ({"samples": 1}, ValueError, "samples: expected a whole number, at least 2, found 1"),
        ({"data": (np.zeros((0, 4)), np.zeros(0))}, ValueError, "at least one batch"),
        ({"data": np.zeros((4, 4))}, ValueError, "found no labels"),
        (
            {"data": (np.full((4, 4), np.nan, "float32"), np.zeros(4))},
            ValueError,
            "by the kernel of 'hidden' is NaN or Inf",
        ),
    ],
)
def test_what_a_trace_needs_is_said(regression, arguments, error, message):
    model, known = regression
    given = {"model": model, "data": known, "loss": CROSS_ENTROPY, "samples": 2} | arguments
    with pytest.raises(error, match=message):
        kmm.hessian_trace(**given)


@pytest.mark.parametrize(
    ("resize", "message"),
    [
        (layers.UpSampling2D(2, interpolation="bilinear"), "bilinear resizing"),
        (layers.UpSampling2D(2), None),
    ],
)
def test_what_tensorflow_would_leave_out_is_refused(resize, message):
    """It takes the gradient of bilinear resizing for a constant, and says nothing."""
    image = keras.Input((4, 4, 1))
    x = layers.Conv2D(2, 3, padding="same", name="first")(image)
    model = keras.Model(image, layers.Conv2D(2, 1, name="last")(resize(x)))
    known = np.ones((2, 4, 4, 1), "float32"), np.zeros((2, 8, 8))
    if message is None:  # what the message recommends
        assert kmm.hessian_trace(model, known, CROSS_ENTROPY, samples=2)["first"].trace != 0
        return
    with pytest.raises(ValueError, match=f"no second derivative of {message}.*such as UpSampling"):
        kmm.hessian_trace(model, known, CROSS_ENTROPY, samples=2)

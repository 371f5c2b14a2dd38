"""Straight-through rounding, and Eq. 5's hard selection, against closed forms in NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from keras_metamix.ops import hard_selection, round_straight_through


@pytest.fixture
def pullback():
    def compute(function, x, upstream):
        x = tf.constant(x, tf.float32)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
        return y.numpy(), tape.gradient(y, x, tf.constant(upstream, tf.float32)).numpy()

    return compute


@pytest.fixture
def softmax():
    def compute(alpha):
        e = np.exp(alpha - np.max(alpha, axis=-1, keepdims=True))
        return e / e.sum(axis=-1, keepdims=True)

    return compute


def test_rounding_is_half_to_even_and_passes_the_gradient(pullback):
    x = [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 0.49, -7.51]
    upstream = np.arange(8.0) - 3.5
    y, dx = pullback(round_straight_through, x, upstream)
    np.testing.assert_array_equal(y, [-2, -2, 0, 0, 2, 2, 0, -8])
    np.testing.assert_array_equal(dx, upstream)


ALPHAS = {
    "one layer": np.array([0.1, 0.3, -0.2]),
    "two candidates": np.array([-1.0, 1.0]),
    "far apart": np.array([30.0, -30.0, 0.0]),
    "many layers": np.random.default_rng(0).normal(size=(5, 4)),
}


@pytest.mark.parametrize("alpha", ALPHAS.values(), ids=ALPHAS)
def test_hard_selection_forward_is_the_argmax(alpha, pullback):
    selected, _ = pullback(hard_selection, alpha, np.ones_like(alpha))
    np.testing.assert_array_equal(selected, np.eye(alpha.shape[-1])[np.argmax(alpha, axis=-1)])


@pytest.mark.parametrize("alpha", ALPHAS.values(), ids=ALPHAS)
def test_hard_selection_backward_is_the_softmax_jacobian(alpha, pullback, softmax):
    upstream = np.random.default_rng(1).normal(size=alpha.shape)
    _, found = pullback(hard_selection, alpha, upstream)
    p = softmax(alpha)
    jacobian = (
        np.einsum("...i,ij->...ij", p, np.eye(p.shape[-1])) - p[..., :, None] * p[..., None, :]
    )
    expected = np.einsum("...ij,...j->...i", jacobian, upstream)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_hard_selection_backward_is_the_softmax_derivative_by_finite_differences(pullback, softmax):
    alpha, candidates, delta = np.array([0.4, -0.1, 0.2]), np.array([8.0, 4.0, 3.0]), 1e-5
    _, found = pullback(hard_selection, alpha, candidates)
    slopes = [
        np.dot(softmax(alpha + d) - softmax(alpha - d), candidates) / (2 * delta)
        for d in delta * np.eye(3)
    ]
    np.testing.assert_allclose(found, slopes, rtol=1e-4)


def test_a_tie_selects_exactly_one(pullback):
    selected, _ = pullback(hard_selection, np.zeros((2, 3)), np.ones((2, 3)))
    np.testing.assert_array_equal(selected, [[1, 0, 0], [1, 0, 0]])

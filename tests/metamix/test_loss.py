"""MetaMix Eq. 3 to 6 against NumPy."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_metamix.metamix.loss import (
    DEFAULT_STRENGTH,
    cost_loss,
    expected_bops,
    selected_bits,
)


@pytest.fixture
def chooser():
    """A quantizer's candidates and alpha, which is no trainable variable there either."""

    def make(candidates, alpha=None):
        if alpha is None:
            return types.SimpleNamespace(candidates=candidates, searched=False)
        alpha = keras.Variable(np.asarray(alpha, np.float32), trainable=False)
        return types.SimpleNamespace(candidates=candidates, searched=True, alpha=alpha)

    return make


@pytest.fixture
def softmax():
    def compute(alpha):
        e = np.exp(alpha - np.max(alpha))
        return e / e.sum()

    return compute


@pytest.mark.parametrize(
    ("candidates", "alpha"),
    [((8, 4, 3), [0.1, 0.3, -0.2]), ((8, 2), [1.0, -1.0]), ((8, 4, 2), [-3.0, -2.0, 5.0])],
)
def test_eq_5_selects_the_argmax_and_passes_the_softmax_s_gradient(
    chooser, softmax, candidates, alpha
):
    layer = chooser(candidates, alpha)
    with tf.GradientTape() as tape:
        tape.watch(layer.alpha.value)
        bits = selected_bits(layer)
    assert float(bits) == candidates[int(np.argmax(alpha))]
    p, b = softmax(np.array(alpha)), np.array(candidates)
    expected = p * (b - np.dot(p, b))  # d<softmax(alpha), B> / d alpha
    np.testing.assert_allclose(tape.gradient(bits, layer.alpha.value), expected, rtol=1e-3)


def test_without_a_choice_the_bits_are_fixed(chooser):
    assert float(selected_bits(chooser((6,)))) == 6


def test_eq_6_in_units_of_1e9():
    macs, activation, weight = [10**9, 5 * 10**8], [8.0, 3.0], [8.0, 4.0]
    found = expected_bops(macs, [tf.constant(a) for a in activation], weight)
    assert float(found) == pytest.approx(64 + 0.5 * 12)


@pytest.mark.parametrize(
    ("gigabops", "target", "form", "expected"),
    [
        (6.0, 5e9, "relative", 0.2),
        (4.0, 5e9, "relative", 0.2),  # two-sided
        (6.0, 5e9, "paper", 1.0),
        (4.5, 5e9, "paper", 0.5),
        (6e-4, 5e5, "relative", 0.2),  # a small network: the relative form does not vanish
        (6e-4, 5e5, "paper", 1e-4),
    ],
)
def test_eq_4(gigabops, target, form, expected):
    assert float(cost_loss(tf.constant(gigabops), target, form)) == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize("form", ["relative", "paper"])
@pytest.mark.parametrize("target", [4e8, 1e8])
def test_the_cost_s_gradient_through_eq_4_to_6(chooser, softmax, form, target):
    """Two searched layers and an edge; signs differ on both sides of the target."""
    macs, alphas, candidates = [10**6, 2 * 10**7, 10**7], ([0.2, 0.1], [-0.3, 0.4]), (8, 4)
    layers = [chooser((8,)), *(chooser(candidates, a) for a in alphas)]
    with tf.GradientTape() as tape:
        tape.watch([x.alpha.value for x in layers[1:]])
        gigabops = expected_bops(macs, [selected_bits(x) for x in layers], [8.0, 4.0, 4.0])
        loss = cost_loss(gigabops, target, form)
    found = tape.gradient(loss, [x.alpha.value for x in layers[1:]])
    total = 64 * macs[0] + 8 * 4 * macs[1] + 4 * 4 * macs[2]
    unit = target if form == "relative" else 1e9
    assert float(loss) == pytest.approx(abs(total - target) / unit, rel=1e-5)
    for gradient, alpha, m in zip(found, alphas, macs[1:], strict=True):
        p, b = softmax(np.array(alpha)), np.array(candidates)
        expected = np.sign(total - target) * m * 4 * p * (b - np.dot(p, b)) / unit
        np.testing.assert_allclose(gradient, expected, rtol=1e-4)


def test_default_strengths():
    """Relative: lambda' in 5..13 (so that it stands beside the paper's lambda * T); paper: 1."""
    assert 5 <= DEFAULT_STRENGTH["relative"] <= 13
    assert DEFAULT_STRENGTH["paper"] == 1.0

"""WeightQuantizer: per-channel symmetric narrow LSQ, its modes, its variables."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_metamix.layers.activation_quantizer import ActivationQuantizer
from keras_metamix.layers.mode import FLOAT, quantization_mode
from keras_metamix.layers.weight_quantizer import WeightQuantizer

BITS = (8, 4, 2)
KERNELS = {
    "conv": ((3, 3, 2, 4), (-1,)),
    "depthwise": ((3, 3, 4, 1), (-2, -1)),
    "multiplied depthwise": ((3, 3, 2, 3), (-2, -1)),
    "dense": ((10, 5), (-1,)),
    "dense of one": ((10, 1), (-1,)),
}


@pytest.fixture(params=KERNELS)
def geometry(request):
    return KERNELS[request.param]


@pytest.fixture
def kernel(geometry):
    shape, axes = geometry
    generator = np.random.default_rng(0)
    spread = generator.uniform(0.1, 2.0, [n if i - len(shape) in axes else 1 for i, n in
                                          enumerate(shape)])  # fmt: skip
    return (generator.normal(size=shape) * spread).astype(np.float32)


@pytest.fixture
def make(geometry, kernel):
    def build(candidates=BITS):
        layer = WeightQuantizer(candidates, geometry[1], name="weights")
        layer.build(kernel.shape)
        layer.initialize_steps(kernel)
        return layer

    return build


@pytest.fixture
def others(geometry):
    """The axes that one channel's step is shared over."""
    shape, axes = geometry
    return tuple(i for i in range(len(shape)) if i - len(shape) not in axes)


@pytest.fixture
def initial_step(kernel, others):
    def compute(bits):
        mean = np.mean(np.abs(kernel), axis=others, keepdims=True)
        return 2 * mean / np.sqrt(2 ** (bits - 1) - 1)

    return compute


@pytest.fixture
def branch(kernel, initial_step):
    def compute(bits):
        high, step = 2 ** (bits - 1) - 1, initial_step(bits)
        return np.rint(np.clip(kernel / step, -high, high)) * step

    return compute


def test_initial_steps_are_lsq_s_for_every_channel(make, initial_step):
    layer = make()
    for b, bits in enumerate(BITS):
        np.testing.assert_allclose(layer.step(b), initial_step(bits), rtol=1e-5)


@pytest.mark.parametrize("rule", ["lsq", "mse"])
def test_a_channel_of_zeros_has_a_positive_step(make, kernel, rule):
    layer = make()
    layer.initialize_steps(np.zeros_like(kernel), rule)
    assert np.all(np.asarray(layer.step()) > 0)
    np.testing.assert_array_equal(layer(np.zeros_like(kernel)), np.zeros_like(kernel))


def squared_error(kernel, step, bits, others):
    """Of rounding to nearest, for each channel."""
    high = 2 ** (bits - 1) - 1
    quantized = np.rint(np.clip(kernel / step, -high, high)) * step
    return np.mean(np.square(kernel - quantized), axis=others)


def test_mse_steps_have_the_least_error_of_every_channel(make, kernel, initial_step, others):
    layer = make()
    layer.initialize_steps(kernel, "mse")
    # How far above the least error the search may end: with so few weights in a channel the error
    # has a valley for each of the integers, more of them than the search has steps at 8 bits.
    for b, (bits, tolerance) in enumerate(zip(BITS, (2.0, 1.25, 1.05), strict=True)):
        found = squared_error(kernel, np.asarray(layer.step(b)), bits, others)
        assert np.all(found <= squared_error(kernel, initial_step(bits), bits, others) * 1.001)
        reach = np.max(np.abs(kernel), axis=others, keepdims=True) / (2 ** (bits - 1) - 1)
        # By exhaustion, ten times as fine.
        best = np.min(
            [squared_error(kernel, reach * f, bits, others) for f in np.linspace(0.02, 1, 1200)],
            axis=0,
        )
        assert np.all(found <= tolerance * best), bits


def test_mse_steps_clip_an_outlier_only_where_that_pays():
    layer = WeightQuantizer((8, 2), (-1,), name="weights")
    kernel = np.full((1000, 2), 1.0, np.float32)
    kernel[::2] *= -1
    kernel[0, 1] = 20.0
    layer.build(kernel.shape)
    layer.initialize_steps(kernel, "mse")
    # Two bits hold -1, 0 and 1 steps: all but the outlier are held at a step near 1.
    np.testing.assert_allclose(layer.step(1), [[1.0, 1.0]], rtol=0.1)
    # Eight bits hold 20 at a step of 20/127, and what is lost of 1 is far less than clipping.
    assert 0.9 * 20 / 127 <= float(layer.step(0)[0, 1]) <= 20 / 127 * 1.001


def test_off_is_the_kernel(make, kernel):
    with quantization_mode(FLOAT):
        np.testing.assert_array_equal(make()(kernel), kernel)


@pytest.mark.parametrize("b", range(len(BITS)))
def test_assigned_and_forced_are_one_candidate(make, kernel, branch, b, in_mode):
    layer = make()
    layer.choice.assign(BITS[b])
    assert layer.choice.bits == BITS[b]
    np.testing.assert_allclose(layer(kernel), branch(BITS[b]), rtol=1e-5, atol=1e-6)
    layer.choice.assign(BITS[b - 1])
    for forced in (b, tf.constant(b)):
        found = in_mode(layer, kernel, weights="forced", forced_weights=forced)
        np.testing.assert_allclose(found, branch(BITS[b]), rtol=1e-5, atol=1e-6)


def test_mixture_is_eq_2(make, kernel, branch, in_mode):
    layer = make()
    alpha = np.array([0.3, -0.8, 1.1])
    layer.choice.alpha.assign(alpha)
    p = np.exp(alpha) / np.exp(alpha).sum()
    expected = sum(p[b] * branch(bits) for b, bits in enumerate(BITS))
    np.testing.assert_allclose(
        in_mode(layer, kernel, weights="mixture"), expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("bits", BITS)
def test_integers_are_narrow_and_symmetric(make, kernel, bits):
    layer = make()
    layer.choice.assign(bits)
    integers, high = np.asarray(layer.integers(kernel)), 2 ** (bits - 1) - 1
    np.testing.assert_array_equal(integers, np.rint(integers))
    assert integers.min() >= -high
    assert integers.max() <= high
    np.testing.assert_array_equal(integers, -np.asarray(layer.integers(-kernel)))
    np.testing.assert_allclose(integers * layer.step(), layer(kernel), rtol=1e-6)


def test_step_gradient_is_lsq_s_with_the_channel_s_weight_count(
    make, kernel, others, initial_step, in_mode, gradients_of
):
    upstream = np.random.default_rng(1).normal(size=kernel.shape).astype(np.float32)
    per_channel = np.prod([kernel.shape[i] for i in others])
    for b, bits in enumerate(BITS):
        layer = make()
        [found] = gradients_of(
            lambda layer=layer, b=b: in_mode(layer, kernel, weights="forced", forced_weights=b),
            [layer.log_step],
            upstream,
        )
        high, step = 2 ** (bits - 1) - 1, initial_step(bits)
        u = kernel / step
        residual = np.where(np.abs(u) <= high, np.rint(u) - u, np.sign(u) * high)
        expected = np.sum(upstream * residual * step, axis=others) / np.sqrt(per_channel * high)
        np.testing.assert_allclose(found[b], expected.reshape(-1), rtol=1e-3, atol=1e-5)
        assert not np.delete(found, b, axis=0).any()


def test_every_trainable_variable_gets_a_gradient_where_it_should(
    make, kernel, in_mode, gradients_of
):
    layer, weights = make(), np.random.default_rng(2).normal(size=kernel.shape)
    assert [v.name for v in layer.trainable_variables] == ["log_step"]
    step, alpha = gradients_of(lambda: layer(kernel), [layer.log_step, layer.choice.alpha], weights)
    assert np.all(step[0] != 0)
    assert not step[1:].any()
    assert alpha is None
    step, alpha = gradients_of(
        lambda: in_mode(layer, kernel, weights="mixture"),
        [layer.log_step, layer.choice.alpha],
        weights,
    )
    assert step is None
    assert np.all(alpha != 0)


def test_the_mixture_passes_no_gradient_to_the_kernel(make, kernel, in_mode, gradients_of):
    layer, tensor = make(), tf.constant(kernel)
    [found] = gradients_of(lambda: in_mode(layer, tensor, weights="mixture"), [tensor])
    assert found is None


@pytest.mark.parametrize("direction", [-1, 1])
def test_steps_stay_positive_and_finite_after_aggressive_updates(make, kernel, direction):
    """Three updates at learning rate 1 of gradients as large as the paper's clip, 10."""
    layer = make((4,))
    optimizer = keras.optimizers.SGD(1.0)
    optimizer.build(layer.trainable_variables)
    for _ in range(3):
        optimizer.apply([np.full(layer.log_step.shape, direction * 10.0, np.float32)])
        step = np.asarray(layer.step())
        assert np.all((step > 0) & (step < np.inf))
        assert np.all(np.isfinite(layer(kernel)))


def test_weights_follow_the_choice_of_their_activation(make, kernel, branch):
    leader = ActivationQuantizer(BITS, name="leader")
    leader.build((None, 4))
    layer = make(leader.choice)
    for bits in (2, 8, 4):
        leader.choice.assign(bits)
        assert layer.choice.bits == bits
        np.testing.assert_allclose(layer(kernel), branch(bits), rtol=1e-5, atol=1e-6)
    assert [v.name for v in layer.weights] == ["log_step"]  # the choice's are its leader's


def test_bits_that_are_no_candidate_are_refused_by_name(make):
    layer = make()
    with pytest.raises(ValueError, match=r"'weights': 3 bits.*\[8, 4, 2\]"):
        layer.choice.assign(3)
    assert layer.choice.bits == 8


def test_config_round_trip(make):
    layer = make()
    twin = WeightQuantizer.from_config(layer.get_config())
    assert twin.get_config() == layer.get_config()
    assert (twin.candidates, twin.channel_axes) == (layer.candidates, layer.channel_axes)

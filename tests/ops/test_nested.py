"""Nested integers against a device's additions and shifts, and the gradients of lsq_nested."""

import numpy as np
import pytest
import tensorflow as tf

from keras_metamix.ops import lsq_integers, lsq_nested, lsq_per_channel, nested_integers

BITS = range(2, 9)
PAIRS = [(h, b) for h in BITS for b in BITS if b <= h]
AXES = {
    "conv": ((3, 3, 2, 4), (3,)),
    "depthwise": ((3, 3, 4, 1), (2, 3)),
    "dense of one": ((20, 1), (1,)),
}


def top(bits):
    return 2 ** (bits - 1) - 1


def by_shifting(q, highest_bits, bits):
    """The rule as a device computes it, in integers."""
    q, k = np.asarray(q, np.int64), highest_bits - bits
    return np.sign(q) * np.minimum((np.abs(q) + (1 << k >> 1)) >> k, top(bits))


@pytest.mark.parametrize(("highest", "bits"), PAIRS)
def test_every_integer_is_the_device_s_to_the_last_bit(highest, bits):
    q = np.arange(-top(highest), top(highest) + 1)
    found = np.asarray(nested_integers(q.astype(np.float32), float(highest - bits), top(bits)))
    np.testing.assert_array_equal(found, by_shifting(q, highest, bits))
    np.testing.assert_array_equal(found, -found[::-1])  # -q gives the negative of what q gives
    assert (found.min(), found.max()) == (-top(bits), top(bits))  # the whole range is used
    if highest == bits:
        np.testing.assert_array_equal(found, q)


@pytest.mark.parametrize("compiled", [False, True], ids=["graph", "XLA"])
def test_a_compiled_graph_computes_the_same_integers(compiled):
    """Ties are frequent: a power of two that is off by its last bit would move them."""
    q = np.arange(-127, 128)
    rows = [np.clip(q, -top(h), top(h)) for h, _ in PAIRS]
    shifts = np.array([[h - b] for h, b in PAIRS], np.float32)
    highs = np.array([[top(b)] for _, b in PAIRS], np.float32)
    function = tf.function(nested_integers, jit_compile=compiled)
    found = function(*(tf.constant(a, tf.float32) for a in (rows, shifts, highs)))
    expected = [by_shifting(row, h, b) for row, (h, b) in zip(rows, PAIRS, strict=True)]
    np.testing.assert_array_equal(found, expected)


# --- lsq_nested -------------------------------------------------------------------------------


@pytest.fixture(params=AXES)
def problem(request):
    """make(highest bits) -> v, levels and fractions, the highest's steps, others, upstream.

    v / step is level + fraction, never a tie and never on an end of the range; some levels lie
    beyond both ends.
    """
    shape, axes = AXES[request.param]

    def make(highest):
        generator = np.random.default_rng(0)
        step_shape = tuple(n if i in axes else 1 for i, n in enumerate(shape))
        steps = generator.uniform(0.05, 0.3, step_shape).astype(np.float32)
        levels = generator.integers(-top(highest) - 3, top(highest) + 4, shape)
        levels.flat[:2] = top(highest) + 2, -top(highest) - 2
        fractions = generator.choice([-0.4, -0.2, 0.1, 0.3], shape)
        own = generator.uniform(0.05, 0.3, step_shape).astype(np.float32)
        upstream = generator.normal(size=shape).astype(np.float32)
        others = tuple(i for i in range(len(shape)) if i not in axes)
        v = ((levels + fractions) * steps).astype(np.float32)
        return v, levels, fractions, steps, own, upstream, others

    return make


def with_gradients(function, *arguments, upstream):
    tensors = [tf.constant(a, tf.float32) for a in arguments]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        outputs = function(*tensors)
    found = tape.gradient(outputs, tensors, output_gradients=tf.constant(upstream))
    return outputs.numpy(), [None if g is None else g.numpy() for g in found]


@pytest.mark.parametrize(("highest", "bits"), [(4, 4), (4, 3), (4, 2), (8, 8), (8, 4), (8, 2)])
def test_outputs_are_nested_integers_times_their_own_step(highest, bits, problem):
    v, levels, _, steps, own, _, _ = problem(highest)
    found = lsq_nested(v, steps, top(highest), own, float(highest - bits), top(bits), 1.0)
    expected = by_shifting(np.clip(levels, -top(highest), top(highest)), highest, bits) * own
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(("highest", "bits"), [(4, 3), (4, 2), (8, 4), (8, 2)])
def test_below_the_highest_the_step_s_gradient_is_that_of_finite_differences(
    highest, bits, problem
):
    """The integers do not depend on that step: no surrogate is needed."""
    v, _, _, steps, own, upstream, others = problem(highest)
    scale, delta = 0.25, np.float32(2.0**-5)

    def quantized(v, top_step, step):
        shift = tf.constant(float(highest - bits))
        return lsq_nested(v, top_step, top(highest), step, shift, top(bits), scale)

    _, (_, through_highest, ds) = with_gradients(quantized, v, steps, own, upstream=upstream)
    up, down = (quantized(v, tf.constant(steps), own + d).numpy() for d in (delta, -delta))
    slope = np.sum(upstream * (up - down) / (2 * delta), axis=others, keepdims=True)
    magnitude = np.sum(np.abs(upstream), axis=others, keepdims=True) * top(bits)
    assert ds.shape == own.shape
    assert np.all(np.abs(ds - scale * slope) < 1e-5 * magnitude)
    assert np.any(np.abs(slope) > 0.02 * magnitude)
    assert through_highest is None  # it trains where it is the step in use, and nowhere else


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_at_the_highest_it_is_lsq(bits, problem):
    v, levels, fractions, steps, _, upstream, others = problem(bits)
    high = top(bits)
    outputs, (dv, ds) = with_gradients(
        lambda v, s: lsq_nested(v, s, high, s, tf.constant(0.0), high, 0.25),
        v,
        steps,
        upstream=upstream,
    )
    plain, (plain_dv, plain_ds) = with_gradients(
        lambda v, s: lsq_per_channel(v, s, -high, high, 0.25), v, steps, upstream=upstream
    )
    np.testing.assert_array_equal(outputs, plain)
    np.testing.assert_array_equal(dv, plain_dv)
    np.testing.assert_allclose(ds, plain_ds, rtol=1e-5, atol=1e-6)
    # LSQ's closed form, so that both are not wrong together.
    u = levels + fractions
    residual = np.where(np.abs(u) <= high, -fractions, np.sign(u) * high)
    expected = 0.25 * np.sum(upstream * residual, axis=others, keepdims=True)
    np.testing.assert_allclose(ds, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("highest", "bits"), [(4, 4), (4, 2), (8, 3)])
def test_values_learn_straight_through_inside_the_highest_range(highest, bits, problem):
    """Also where the lower bit-width clips: 4 bits' 7 is 2 bits' 1, as 4 bits' 3 is."""
    v, levels, fractions, steps, own, upstream, _ = problem(highest)
    _, (dv,) = with_gradients(
        lambda v: lsq_nested(v, steps, top(highest), own, highest - bits * 1.0, top(bits), 1.0),
        v,
        upstream=upstream,
    )
    inside = np.abs(levels + fractions) <= top(highest)
    assert inside.any()
    assert not inside.all()
    np.testing.assert_array_equal(dv, np.where(inside, upstream, 0.0))


def test_values_on_the_ends_of_the_highest_range_are_inside():
    v = np.array([-7.0, 7.0, -7.5, 7.5], np.float32)
    one = np.ones(1, np.float32)
    _, (dv,) = with_gradients(
        lambda v: lsq_nested(v, one, 7.0, 3 * one, 2.0, 1.0, 1.0),
        v,
        upstream=np.array([1, 10, 100, 1000], np.float32),
    )
    np.testing.assert_array_equal(dv, [1, 10, 0, 0])


def test_what_is_stored_is_what_lower_bits_are_made_of(problem):
    """A device keeps the highest integers and never sees the float weights again."""
    v, _, _, steps, own, _, _ = problem(4)
    stored = np.asarray(lsq_integers(v, steps, -7, 7)).astype(np.int8)
    for bits in (4, 3, 2):
        found = np.asarray(lsq_nested(v, steps, 7.0, own, 4.0 - bits, top(bits), 1.0))
        np.testing.assert_allclose(found, by_shifting(stored, 4, bits) * own, rtol=1e-6)

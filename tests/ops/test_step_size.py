"""LSQ against closed forms in NumPy, and against finite differences of its smooth surrogate."""

import math

import numpy as np
import pytest
import tensorflow as tf

from keras_metamix.ops import lsq, lsq_integers, lsq_mixture, lsq_per_channel

STEP = 0.173
OFFSET = -3  # an offset grid begins at some negative level
RANGES = {
    "unsigned": lambda b: (0, 2**b - 1),
    "signed": lambda b: (-(2 ** (b - 1)) + 1, 2 ** (b - 1) - 1),
    "offset": lambda b: (OFFSET, 2**b - 1 + OFFSET),
}
SHAPE = (32, 4, 4)  # one shape for most scalar tests: XLA compiles once
LARGE = (6, 16, 24)  # is summed by blocks


def quantized(v, step, low, high, scale=1.0, cap=math.inf, fuse=True):
    """`lsq` with one candidate."""
    table = [[tf.cast(end, tf.float32) for end in (low, high, scale)]]
    return lsq(v, tf.reshape(step, (1,)), 0, tf.stack(table), cap, fuse=fuse)


@pytest.fixture(params=RANGES)
def sign(request):
    return request.param


@pytest.fixture(params=(8, 4, 3, 2))
def bits(request):
    return request.param


@pytest.fixture
def ends(sign, bits):
    return RANGES[sign](bits)


@pytest.fixture
def points(ends):
    """Levels and distances to them, so that no test divides to know where a value rounds to.

    Returns integers k (beyond both ends too) and fractions f, |f| <= 0.45 and never 0, so that
    (k + f) * STEP rounds to k and no point lies on an end of the range.
    """
    low, high = ends
    generator = np.random.default_rng(0)
    levels = generator.integers(low - 4, high + 5, SHAPE)
    fractions = generator.choice([-0.45, -0.3, -0.1, 0.05, 0.2, 0.45], SHAPE)
    return levels, fractions


@pytest.fixture
def values(points):
    levels, fractions = points
    return ((levels + fractions) * STEP).astype(np.float32)


@pytest.fixture
def upstream():
    return np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)


@pytest.fixture
def gradients():
    def compute(function, *arguments, upstream):
        tensors = [tf.constant(a, tf.float32) for a in arguments]
        with tf.GradientTape() as tape:
            tape.watch(tensors)
            outputs = function(*tensors)
        found = tape.gradient(outputs, tensors, output_gradients=tf.constant(upstream))
        return outputs.numpy(), [None if g is None else g.numpy() for g in found]

    return compute


def test_forward_is_the_clipped_level_times_the_step(points, values, ends):
    levels = np.clip(points[0], *ends)
    outputs = quantized(tf.constant(values), tf.constant(STEP), *ends).numpy()
    np.testing.assert_allclose(outputs, levels * STEP, rtol=1e-6)
    np.testing.assert_array_equal(lsq_integers(values, np.float32(STEP), *ends), levels)


@pytest.mark.parametrize("shape", [SHAPE, LARGE], ids=str)
def test_backward_is_the_closed_form(points, values, ends, upstream, gradients, shape):
    (low, high), (levels, fractions) = ends, points
    levels, fractions, values, upstream = (
        np.resize(array, shape) for array in (levels, fractions, values, upstream)
    )
    u = levels + fractions
    inside = (u >= low) & (u <= high)
    scale = 0.031
    _, (dv, ds) = gradients(
        lambda v, s: quantized(v, s, low, high, scale), values, STEP, upstream=upstream
    )
    np.testing.assert_array_equal(dv, np.where(inside, upstream, 0.0))
    residual = np.where(inside, -fractions, np.where(u < low, low, high))
    expected = scale * np.sum(upstream.astype(np.float64) * residual)
    magnitude = scale * np.sum(np.abs(upstream * residual))
    assert abs(ds - expected) < 1e-5 * magnitude


def test_backward_is_the_derivative_of_the_straight_through_surrogate(
    points, values, ends, upstream, gradients
):
    """Finite differences of `s * (clip(v / s) + c)`, c = what rounding added, held constant."""
    levels, fractions = points
    u0 = levels + fractions
    inside = (u0 >= ends[0]) & (u0 <= ends[1])
    added = np.where(inside, -fractions, 0.0)

    def surrogate(v, s):
        return s * (np.clip(v / s, *ends) + added)

    v0, delta = u0 * STEP, 1e-6
    slope_v = (surrogate(v0 + delta, STEP) - surrogate(v0 - delta, STEP)) / (2 * delta)
    slope_s = (surrogate(v0, STEP + delta) - surrogate(v0, STEP - delta)) / (2 * delta)
    _, (dv, ds) = gradients(lambda v, s: quantized(v, s, *ends), values, STEP, upstream=upstream)
    np.testing.assert_allclose(dv, upstream * slope_v, atol=1e-6)
    magnitude = np.sum(np.abs(upstream * slope_s))
    assert abs(ds - np.sum(upstream * slope_s)) < 1e-5 * magnitude


@pytest.mark.parametrize(("side", "level"), [(-1, -7), (1, 7)])
def test_clipped_values_move_with_the_step_as_finite_differences_say(side, level, gradients):
    """Where everything is clipped the function itself is differentiable: q = level * s."""
    v = np.full(SHAPE, side * 100.0, np.float32)
    step, delta = 0.5, 2.0**-6
    up, down = (quantized(tf.constant(v), tf.constant(step + d), -7, 7) for d in (delta, -delta))
    slope = float(tf.reduce_sum(up - down)) / (2 * delta)
    _, (dv, ds) = gradients(
        lambda v, s: quantized(v, s, -7, 7), v, step, upstream=np.ones(SHAPE, np.float32)
    )
    assert ds == pytest.approx(slope) == pytest.approx(level * v.size)
    assert not dv.any()


def test_ties_round_to_even():
    ties = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5], np.float32)
    expected = [-2.0, -2.0, -0.0, 0.0, 2.0, 2.0, 4.0]
    np.testing.assert_array_equal(lsq_integers(ties, 1.0, -7, 7), expected)
    np.testing.assert_array_equal(quantized(tf.constant(ties), tf.constant(1.0), -7, 7), expected)


def test_values_on_the_ends_of_the_range_are_inside(gradients):
    v = np.array([-7.0, 7.0, -7.5, 7.5], np.float32)
    _, (dv, ds) = gradients(
        lambda v, s: quantized(v, s, -7, 7),
        v,
        1.0,
        upstream=np.array([1, 10, 100, 1000], np.float32),
    )
    np.testing.assert_array_equal(dv, [1, 10, 0, 0])
    assert ds == -700 + 7000


@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
def test_backward_rounds_and_clips_where_forward_does(mixed, fuse, ends, gradients):
    """At ties and on the highest level, by steps whose inverse is not exact."""
    low, high = ends
    levels = np.arange(low, high + 1, 0.5)[None]
    for step in np.random.default_rng(0).uniform(0.01, 1, 20).astype(np.float32):
        v = levels.astype(np.float32) * step
        u = v / step
        integers = np.rint(np.clip(u, low, high))
        inside = (u >= low) & (u <= high)
        if mixed:
            outputs, (dv, first) = gradients(
                lambda v, p, s=step: lsq_mixture(v, p, [s], [low], [high], fuse=fuse),
                v,
                [1.0],
                upstream=np.ones_like(v),
            )
            expected = np.sum(integers * np.float64(step))
        else:
            outputs, (dv, first) = gradients(
                lambda v, s: quantized(v, s, low, high, fuse=fuse),
                v,
                step,
                upstream=np.ones_like(v),
            )
            expected = np.sum(np.where(inside, integers - u.astype(np.float64), integers))
        np.testing.assert_allclose(outputs, integers * step, rtol=1e-6)
        np.testing.assert_array_equal(dv, inside)
        assert np.sum(first) == pytest.approx(expected, rel=1e-5, abs=1e-3)


def test_a_cap_of_6_quantizes_relu6(bits, upstream, gradients):
    """Unsigned with cap=6 against the quantizer behind tf.nn.relu6, in both directions."""
    high = 2**bits - 1
    for reach in (4.0, 6.0, 9.0):  # the range ends below, at and above 6
        v = np.random.default_rng(2).uniform(-4, 12, SHAPE).astype(np.float32)
        step = reach / high
        capped = gradients(
            lambda v, s: quantized(v, s, 0, high, cap=6.0), v, step, upstream=upstream
        )
        chained = gradients(
            lambda v, s: quantized(tf.nn.relu6(v), s, 0, high), v, step, upstream=upstream
        )
        np.testing.assert_array_equal(capped[0], chained[0])
        np.testing.assert_array_equal(capped[1][0], chained[1][0])
        np.testing.assert_allclose(capped[1][1], chained[1][1], rtol=1e-5, atol=1e-4)
        assert not capped[1][0][v > 6].any()


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((3, 3, 2, 4), (3,)), ((3, 3, 4, 1), (2, 3)), ((10, 5), (1,)), ((10, 1), (1,))],
    ids=["conv", "depthwise", "dense", "dense-of-one"],
)
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_per_channel_is_lsq_of_every_channel(shape, axes, bits, gradients):
    high = 2 ** (bits - 1) - 1
    generator = np.random.default_rng(3)
    step_shape = tuple(n if i in axes else 1 for i, n in enumerate(shape))
    steps = generator.uniform(0.05, 0.3, step_shape).astype(np.float32)
    levels = generator.integers(-high - 3, high + 4, shape)
    fractions = generator.choice([-0.4, -0.2, 0.1, 0.3], shape)
    u = levels + fractions
    upstream = generator.normal(size=shape).astype(np.float32)
    outputs, (dv, ds) = gradients(
        lambda v, s: lsq_per_channel(v, s, -high, high, 0.25),
        (u * steps).astype(np.float32),
        steps,
        upstream=upstream,
    )
    inside = np.abs(u) <= high
    np.testing.assert_allclose(outputs, np.clip(levels, -high, high) * steps, rtol=1e-6)
    np.testing.assert_array_equal(dv, np.where(inside, upstream, 0.0))
    others = tuple(i for i in range(len(shape)) if i not in axes)
    residual = np.where(inside, -fractions, np.sign(u) * high)
    expected = 0.25 * np.sum(upstream * residual, axis=others, keepdims=True)
    assert ds.shape == step_shape
    np.testing.assert_allclose(ds, expected, rtol=1e-4, atol=1e-5)


def test_ranges_may_be_traced_tensors(values, ends):
    """A forced bit-width is a tensor: the range then is no Python number."""

    @tf.function
    def graph(v, low, high):
        return quantized(v, tf.constant(STEP), low, high)

    found = graph(tf.constant(values), *(tf.constant(e) for e in ends))
    np.testing.assert_array_equal(found, quantized(tf.constant(values), tf.constant(STEP), *ends))


# --- the mixture, Eq. 2 ------------------------------------------------------------------------

BITS = (8, 4, 2)
STEPS = np.array([0.02, 0.2, 0.7], np.float32)
PROBABILITIES = np.array([0.2, 0.5, 0.3], np.float32)


@pytest.fixture
def mixture_ends(sign):
    lows, highs = zip(*(RANGES[sign](b) for b in BITS), strict=True)
    return lows, highs


@pytest.fixture(params=[np.inf, 6.0], ids=["uncapped", "cap6"])
def cap(request):
    return request.param


@pytest.fixture
def branches(mixture_ends, cap):
    """Values (far enough from ties) and every candidate's quantization of them, in float64."""
    v = np.random.default_rng(4).uniform(-3, 9, SHAPE).astype(np.float32)
    capped = np.minimum(v.astype(np.float64), cap)
    quantized, inside = [], []
    for s, low, high in zip(STEPS.astype(np.float64), *mixture_ends, strict=True):
        u = capped / s
        tie = np.abs(u - np.floor(u) - 0.5) < 1e-3
        end = (np.abs(u - low) < 1e-3) | (np.abs(u - high) < 1e-3)
        v = np.where(tie | end, np.float32(0.0), v)
    capped = np.minimum(v.astype(np.float64), cap)
    for s, low, high in zip(STEPS.astype(np.float64), *mixture_ends, strict=True):
        quantized.append(np.rint(np.clip(capped / s, low, high)) * s)
        inside.append((capped / s >= low) & (capped / s <= high) & (v < cap))
    return v, np.array(quantized), np.array(inside)


def test_mixture_is_the_sum_of_its_branches(branches, mixture_ends, cap):
    v, quantized, _ = branches
    found = lsq_mixture(tf.constant(v), tf.constant(PROBABILITIES), STEPS, *mixture_ends, cap=cap)
    expected = np.einsum("b,bijk->ijk", PROBABILITIES.astype(np.float64), quantized)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_mixture_gradients(branches, mixture_ends, cap, upstream, gradients):
    v, quantized, inside = branches
    _, (dv, dp, ds) = gradients(
        lambda v, p, s: lsq_mixture(v, p, s, *mixture_ends, cap=cap),
        v,
        PROBABILITIES,
        STEPS,
        upstream=upstream,
    )
    dots = np.sum(upstream * quantized, axis=(1, 2, 3))
    scale = np.sum(np.abs(upstream * quantized), axis=(1, 2, 3))
    assert np.all(np.abs(dp - dots) < 1e-5 * scale)
    np.testing.assert_allclose(
        dv, upstream * np.einsum("b,bijk->ijk", PROBABILITIES, inside), rtol=1e-5, atol=1e-6
    )
    assert ds is None


def test_a_certain_mixture_is_the_branch_itself(mixture_ends, upstream, gradients):
    """With probability 1 on one candidate: its lsq, forward and backward."""
    v = np.random.default_rng(5).uniform(-3, 9, SHAPE).astype(np.float32)
    for b in range(len(BITS)):
        low, high = mixture_ends[0][b], mixture_ends[1][b]
        mixed = gradients(
            lambda v, p: lsq_mixture(v, p, STEPS, *mixture_ends),
            v,
            np.eye(len(BITS))[b],
            upstream=upstream,
        )
        alone = gradients(
            lambda v, s, low=low, high=high: quantized(v, s, low, high),
            v,
            STEPS[b],
            upstream=upstream,
        )
        np.testing.assert_allclose(mixed[0], alone[0], rtol=1e-6)
        np.testing.assert_array_equal(mixed[1][0], alone[1][0])

"""ActivationQuantizer: its modes against NumPy, its grids, its variables, its file."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_metamix.layers.activation_quantizer import ActivationQuantizer
from keras_metamix.layers.mode import FLOAT, QuantizationMode, quantization_mode

BITS = (8, 4, 2)
SHAPE = (2, 4, 4, 3)
STEPS = np.array([0.02, 0.21, 0.57], np.float32)
MINIMUM = -0.375  # of hard-swish


def offset_shift(step, bits):
    """Lowest level of an offset grid, as it is documented."""
    shift = 0 if MINIMUM / step > -0.5 else int(np.rint(MINIMUM / step - 0.25))
    return max(shift, -(2 ** (bits - 1)))


KINDS = {
    "unsigned": {"sign": "unsigned"},
    "relu": {"sign": "unsigned", "activation": "relu"},
    "relu6": {"sign": "unsigned", "activation": "relu6"},
    "signed": {"sign": "signed"},
    "offset": {"sign": "offset", "minimum": MINIMUM},
}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def make(kind):
    def build(candidates=BITS, steps=STEPS, **kwargs):
        layer = ActivationQuantizer(candidates, name="quantizer", **(KINDS[kind] | kwargs))
        layer.build((None, *SHAPE[1:]))
        layer.log_step.assign(np.log(steps[: len(candidates)]))
        return layer

    return build


@pytest.fixture
def x():
    return np.random.default_rng(0).uniform(-3, 9, SHAPE).astype(np.float32)


@pytest.fixture
def float_values(kind, x):
    return {"relu": np.maximum(x, 0), "relu6": np.clip(x, 0, 6)}.get(kind, x)


@pytest.fixture
def ends(kind):
    """The integer range as the papers say it, not as the source computes it."""

    def compute(bits, step):
        if kind == "signed":
            return (-128, 127) if bits == 8 else (-(2 ** (bits - 1) - 1), 2 ** (bits - 1) - 1)
        shift = offset_shift(step, bits) if kind == "offset" else 0
        return shift, 2**bits - 1 + shift

    return compute


@pytest.fixture
def branch(float_values, ends):
    """Candidate b's quantization in NumPy."""

    def compute(b):
        low, high = ends(BITS[b], STEPS[b])
        u = np.clip(float_values / STEPS[b], low, high)
        return (np.rint(u) * STEPS[b]).astype(np.float32)

    return compute


def test_off_is_the_float_activation(make, x, float_values):
    with quantization_mode(FLOAT):
        np.testing.assert_array_equal(make()(x), float_values)


@pytest.mark.parametrize("b", range(len(BITS)))
def test_assigned_and_forced_are_one_candidate(make, x, branch, b, in_mode):
    layer = make()
    layer.choice.assign(BITS[b])
    assert layer.choice.bits == BITS[b]
    np.testing.assert_allclose(layer(x), branch(b), atol=1e-6)  # assigned is the default
    layer.choice.assign(BITS[b - 1])
    for forced in (b, tf.constant(b)):
        found = in_mode(layer, x, activations="forced", forced=forced)
        np.testing.assert_allclose(found, branch(b), atol=1e-6)


def test_mixture_is_eq_2(make, x, branch, in_mode):
    layer = make()
    alpha = np.array([0.3, -0.8, 1.1])
    layer.choice.alpha.assign(alpha)
    p = np.exp(alpha) / np.exp(alpha).sum()
    expected = sum(p[b] * branch(b).astype(np.float64) for b in range(3))
    found = in_mode(layer, x, activations="mixture")
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_observe_hands_over_float_values_and_passes_them_on(make, x, float_values, in_mode):
    layer, seen = make(), []
    found = in_mode(layer, x, activations="observe", observer=lambda q, v: seen.append((q, v)))
    np.testing.assert_array_equal(found, float_values)
    [(quantizer, values)] = seen
    assert quantizer is layer
    np.testing.assert_array_equal(values, float_values)


@pytest.mark.parametrize("choice", ["forced", "mixture", "assigned"])
def test_a_single_candidate_has_no_choice(make, x, branch, choice, in_mode):
    layer = make(candidates=(8,))
    assert not hasattr(layer, "alpha")
    np.testing.assert_allclose(
        in_mode(layer, x, activations=choice, forced=2), branch(0), atol=1e-6
    )


@pytest.mark.parametrize("choice", ["forced", "mixture", "assigned"])
def test_a_stream_quantizes_where_the_mode_says_so(make, x, branch, float_values, choice, in_mode):
    layer = make(candidates=(8,), role="stream")
    found = in_mode(layer, x, activations=choice, streams=False)
    np.testing.assert_array_equal(found, float_values)
    found = in_mode(layer, x, activations=choice, streams=True)
    np.testing.assert_allclose(found, branch(0), atol=1e-6)


def test_an_observer_sees_streams_only_outside_observe(make, x, float_values, in_mode):
    seen = []
    observer = {"observer": lambda q, v: seen.append(q.role)}
    found = in_mode(make(candidates=(8,), role="stream"), x, **observer)
    np.testing.assert_array_equal(found, float_values)
    in_mode(make(), x, **observer)
    assert seen == ["stream"]


@pytest.mark.parametrize("b", range(len(BITS)))
def test_at_most_two_to_the_bits_levels(make, kind, b, in_mode):
    layer = make()
    wide = np.linspace(-20, 20, np.prod(SHAPE) * 40, dtype=np.float32).reshape(-1, *SHAPE[1:])
    found = np.unique(in_mode(layer, wide, activations="forced", forced=b))
    most = 2 ** BITS[b]
    narrow = kind == "signed" and BITS[b] < 8
    if kind != "relu6":  # whose range may end below the last level
        assert len(found) == most - narrow
    assert 1 < len(found) <= most - narrow
    levels = found / STEPS[b]
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-3)


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize("step", [0.01, 0.0371, 0.11, 0.25, 0.7, 2.0])
def test_an_offset_grid_begins_at_hard_swish_s_minimum_and_holds_0(bits, step):
    layer = ActivationQuantizer((bits,), sign="offset", minimum=MINIMUM)
    layer.build((None, 4))
    layer.log_step.assign([np.log(step)])
    found_step, low, high = (float(t) for t in layer.assigned_grid())
    assert found_step == pytest.approx(step)
    assert high - low == 2**bits - 1
    assert low == int(low) <= 0 <= high
    assert low == offset_shift(found_step, bits)
    # No value that is a quarter of a step below the minimum falls off the grid's lower end.
    if -(2 ** (bits - 1)) < low < 0:
        assert np.rint(MINIMUM / step - 0.24) >= low
    assert low * step >= MINIMUM - 0.76 * step
    assert float(layer(np.zeros((1, 4), np.float32))[0, 0]) == 0.0


def test_step_gradient_is_lsq_s_with_the_sample_s_element_count(
    make, x, float_values, ends, in_mode, gradients_of
):
    """d/d log s = s * sum(g * residual) / sqrt(N * Qp), for the forced candidate alone."""
    upstream = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    for b, bits in enumerate(BITS):
        layer = make()
        [found] = gradients_of(
            lambda layer=layer, b=b: in_mode(layer, x, activations="forced", forced=b),
            [layer.log_step],
            upstream,
        )
        low, high = ends(bits, STEPS[b])
        u = float_values.astype(np.float64) / STEPS[b]
        inside = (u >= low) & (u <= high)
        residual = np.where(inside, np.rint(u) - u, np.clip(u, low, high))
        shift = offset_shift(STEPS[b], bits) if layer.sign == "offset" else 0
        capacity = ends(bits, STEPS[b])[1] - shift
        scale = 1 / np.sqrt(np.prod(SHAPE[1:]) * capacity)
        expected = np.zeros(3)
        expected[b] = STEPS[b] * scale * np.sum(upstream * residual)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_every_trainable_variable_gets_a_gradient_where_it_should(make, x, in_mode, gradients_of):
    layer = make()
    assert [v.name for v in layer.trainable_variables] == ["log_step"]
    assert {v.name for v in layer.non_trainable_variables} == {"alpha", "bit_index"}
    for choice in ("assigned", "forced"):
        step, alpha = gradients_of(
            lambda c=choice: in_mode(layer, x, activations=c, forced=1),
            [layer.log_step, layer.choice.alpha],
        )
        assert np.count_nonzero(step) == 1
        assert alpha is None
    step, alpha = gradients_of(
        lambda: in_mode(layer, x, activations="mixture"), [layer.log_step, layer.choice.alpha]
    )
    assert step is None
    assert np.all(alpha != 0)
    assert np.sum(alpha) == pytest.approx(0, abs=1e-3 * float(np.max(np.abs(alpha))))  # a softmax's


@pytest.mark.parametrize("direction", [-1, 1])
def test_steps_stay_positive_and_finite_after_aggressive_updates(direction, x):
    """Three updates at learning rate 1 of gradients as large as the paper's clip, 10."""
    layer = ActivationQuantizer((8,), sign="signed")
    layer.build((None, *SHAPE[1:]))
    layer.log_step.assign([0.0])
    optimizer = keras.optimizers.SGD(1.0)
    optimizer.build(layer.trainable_variables)
    for _ in range(3):
        optimizer.apply([np.full((1,), direction * 10.0, np.float32)])
        step = float(layer.steps()[0])
        assert 0 < step < np.inf
        assert np.all(np.isfinite(layer(x)))


@pytest.mark.parametrize("mode", ["off", "assigned", "mixture"])
def test_saved_and_loaded_is_identical(make, kind, x, mode, saved_and_loaded):
    layer = make()
    layer.choice.assign(4)
    model, loaded, twin = saved_and_loaded(layer, SHAPE[1:])
    assert twin.get_config() == layer.get_config()
    assert twin.candidates == BITS
    assert twin.choice.bits == 4
    with quantization_mode(QuantizationMode(activations=mode)):
        np.testing.assert_array_equal(model(x), loaded(x))


def test_config_round_trip(make):
    layer = make(role="stream")
    twin = ActivationQuantizer.from_config(layer.get_config())
    assert twin.get_config() == layer.get_config()
    assert (twin.sign, twin.activation, twin.role) == (layer.sign, layer.activation, "stream")


@pytest.mark.parametrize("sign", ["signed", "offset"])
def test_an_absorbed_relu_needs_an_unsigned_grid(sign):
    with pytest.raises(ValueError, match=rf"'q'.*relu.*unsigned.*{sign}"):
        ActivationQuantizer((8,), sign=sign, activation="relu", name="q")


def test_bits_that_are_no_candidate_are_refused_by_name(make):
    layer = make()
    with pytest.raises(ValueError, match=r"'quantizer': 5 bits.*\[8, 4, 2\]"):
        layer.choice.assign(5)
    assert layer.choice.bits == 8

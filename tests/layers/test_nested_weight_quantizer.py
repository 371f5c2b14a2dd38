"""NestedWeightQuantizer: one stored integer tensor, lower bit-widths by the device's rule."""

import keras
import numpy as np
import pytest

from keras_metamix.layers.activation_quantizer import ActivationQuantizer
from keras_metamix.layers.bit_choice import BitChoice
from keras_metamix.layers.mac import QuantizedConv2D, QuantizedDense, QuantizedDepthwiseConv2D
from keras_metamix.layers.mode import FLOAT, quantization_mode
from keras_metamix.layers.nested_weight_quantizer import NestedWeightQuantizer
from keras_metamix.layers.weight_quantizer import SMALLEST_STEP, WeightQuantizer

SPACES = {"4 3 2": (4, 3, 2), "8 4 3": (8, 4, 3), "8": (8,)}
KERNELS = {
    "conv": ((3, 3, 2, 4), (-1,)),
    "multiplied depthwise": ((3, 3, 2, 3), (-2, -1)),
    "dense of one": ((10, 1), (-1,)),
}


@pytest.fixture(params=KERNELS)
def geometry(request):
    return KERNELS[request.param]


@pytest.fixture(params=SPACES)
def candidates(request):
    return SPACES[request.param]


@pytest.fixture
def kernel(geometry):
    shape, axes = geometry
    generator = np.random.default_rng(0)
    spread = generator.uniform(0.1, 2.0, [n if i - len(shape) in axes else 1 for i, n in
                                          enumerate(shape)])  # fmt: skip
    return (generator.normal(size=shape) * spread).astype(np.float32)


@pytest.fixture
def others(geometry):
    """The axes that one channel's step is shared over."""
    shape, axes = geometry
    return tuple(i for i in range(len(shape)) if i - len(shape) not in axes)


@pytest.fixture
def make(geometry, kernel, candidates):
    def build(rule="lsq", of=kernel, choice=None):
        layer = NestedWeightQuantizer(choice or candidates, geometry[1], name="weights")
        layer.build(kernel.shape)
        layer.initialize_steps(of, rule)
        return layer

    return build


def by_shifting(q, highest_bits, bits):
    """The rule as a device computes it, in integers."""
    q, k = np.asarray(q, np.int64), highest_bits - bits
    return np.sign(q) * np.minimum((np.abs(q) + (1 << k >> 1)) >> k, 2 ** (bits - 1) - 1)


def rounded(kernel, step, bits):
    high = 2 ** (bits - 1) - 1
    return np.rint(np.clip(kernel / np.asarray(step), -high, high))


def test_every_bit_width_derives_from_the_highest_integers(make, kernel, candidates):
    layer = make()
    stored = np.asarray(layer.highest_integers(kernel))
    np.testing.assert_array_equal(stored, rounded(kernel, layer.step(0), candidates[0]))
    for bits in candidates:
        layer.choice.assign(bits)
        integers = by_shifting(stored, candidates[0], bits)
        np.testing.assert_array_equal(layer.integers(kernel), integers)
        np.testing.assert_allclose(layer(kernel), integers * layer.step(), rtol=1e-6)
        np.testing.assert_array_equal(layer.highest_integers(kernel), stored)  # at any bit-width


def test_steps_of_lower_bits_scale_their_integers_and_nothing_else(make, kernel, candidates):
    layer = make()
    expected = {}
    for bits in candidates:
        layer.choice.assign(bits)
        expected[bits] = np.asarray(layer.integers(kernel))
    moved = np.array(layer.log_step)
    moved[1:] += np.random.default_rng(1).normal(size=moved[1:].shape)
    layer.log_step.assign(moved)
    for row, bits in enumerate(candidates):
        layer.choice.assign(bits)
        np.testing.assert_array_equal(layer.integers(kernel), expected[bits])
        step = np.exp(moved[row]).reshape(layer.step().shape)
        np.testing.assert_allclose(layer(kernel), expected[bits] * step, rtol=1e-5)


@pytest.mark.parametrize("rule", ["lsq", "mse"])
def test_the_highest_steps_follow_the_rule_as_without_nesting(
    make, geometry, kernel, candidates, rule
):
    """But above 4 bits, of which LSQ's would leave nothing for 2."""
    plain = WeightQuantizer(candidates, geometry[1])
    plain.build(kernel.shape)
    wide = len(candidates) > 1 and candidates[0] > 4
    plain.initialize_steps(kernel, "mse" if wide else rule)
    layer = make(rule)
    np.testing.assert_array_equal(layer.log_step[0], plain.log_step[0])


@pytest.mark.parametrize("rule", ["lsq", "mse"])
def test_lower_steps_are_least_squares_of_every_channel(make, kernel, candidates, others, rule):
    layer = make(rule)
    stored = np.asarray(layer.highest_integers(kernel))
    order = [*others, *(i for i in range(kernel.ndim) if i not in others)]
    size = int(np.prod([kernel.shape[i] for i in others]))
    weights = kernel.transpose(order).reshape(size, -1).astype(np.float64)
    for row, bits in enumerate(candidates[1:], start=1):
        levels = by_shifting(stored, candidates[0], bits).transpose(order).reshape(size, -1)
        live = np.any(levels != 0, axis=0)
        assert np.all(live)
        expected = [
            np.linalg.lstsq(a[:, None].astype(np.float64), w, rcond=None)[0][0]
            for a, w in zip(levels.T[live], weights.T[live], strict=True)
        ]
        np.testing.assert_allclose(np.exp(layer.log_step[row])[live], expected, rtol=1e-5)


def test_dead_channels_have_positive_steps_and_stay_zero(make, kernel, candidates):
    dead = np.array(kernel)
    dead.reshape(-1, dead.shape[-1])[:, 0] = 0.0
    layer = make(of=dead)
    steps = np.exp(layer.log_step)
    assert np.all(np.isfinite(steps))
    assert np.all(steps >= SMALLEST_STEP * 0.999)
    for bits in candidates:
        layer.choice.assign(bits)
        found = np.asarray(layer(dead))
        assert np.all(np.isfinite(found))
        np.testing.assert_array_equal(found.reshape(-1, dead.shape[-1])[:, 0], 0.0)
    if dead.shape[-1] > 1:
        assert np.all(steps > SMALLEST_STEP * 1.001, axis=0).any()  # the others have their own


def test_a_channel_that_lower_bits_lose_keeps_the_highest_step_times_a_power_of_two():
    """All of its integers round to 0 there: no step fits better than another."""
    layer = NestedWeightQuantizer((4, 2), (-1,), name="weights")
    kernel = np.full((4, 1), 1.0, np.float32)
    layer.build(kernel.shape)
    layer.initialize_steps(kernel)  # 2 / sqrt(7): every integer is 1, and (1 + 2) >> 2 is 0
    np.testing.assert_array_equal(layer.highest_integers(kernel), kernel)
    layer.choice.assign(2)
    np.testing.assert_array_equal(layer.integers(kernel), 0 * kernel)
    np.testing.assert_allclose(layer.step(), 4 * layer.step(0), rtol=1e-6)


# --- its choice, and what trains ----------------------------------------------------------------


def test_off_is_the_kernel(make, kernel):
    with quantization_mode(FLOAT):
        np.testing.assert_array_equal(make()(kernel), kernel)


def test_a_forced_choice_goes_by_the_leader_s(make, kernel, candidates, in_mode):
    leader = ActivationQuantizer(candidates, name="leader")
    leader.build((None, 4))
    layer = make(choice=leader.choice)
    stored = np.asarray(layer.highest_integers(kernel))
    for row, bits in enumerate(candidates):
        expected = by_shifting(stored, candidates[0], bits) * layer.step(row)
        forced = {leader.choice: row, BitChoice(candidates, "activations"): 0}
        found = in_mode(layer, kernel, activations="forced", forced=forced)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        leader.choice.assign(bits)
        assert layer.choice.bits == bits
        np.testing.assert_array_equal(layer(kernel), found)


def test_gradients_reach_the_kernel_and_the_steps_in_use(
    make, kernel, candidates, others, in_mode, gradients_of
):
    """Below the highest the step's gradient is that of `integers * step`, LSQ's factor on it."""
    upstream = np.random.default_rng(1).normal(size=kernel.shape).astype(np.float32)
    tensor = keras.ops.convert_to_tensor(kernel)
    per_channel = np.prod([kernel.shape[i] for i in others])
    for row, bits in enumerate(candidates):
        layer = make("mse")
        dv, found = gradients_of(
            lambda layer=layer, row=row: in_mode(
                layer, tensor, weights="forced", forced_weights=row
            ),
            [tensor, layer.log_step],
            upstream,
        )
        u, high = kernel / layer.step(0), 2 ** (candidates[0] - 1) - 1
        np.testing.assert_array_equal(dv, np.where(np.abs(u) <= high, upstream, 0.0))
        assert not np.delete(found, row, axis=0).any()
        levels = by_shifting(layer.highest_integers(kernel), candidates[0], bits)
        slopes = levels if row else levels - np.where(np.abs(u) <= high, u, 0.0)
        factor = np.sqrt(per_channel * (2 ** (bits - 1) - 1))
        expected = np.sum(upstream * slopes * layer.step(row), axis=others) / factor
        np.testing.assert_allclose(found[row], expected.reshape(-1), rtol=1e-3, atol=1e-5)
        assert np.all(found[row] != 0)


# --- inside a layer -----------------------------------------------------------------------------

LAYERS = {
    "conv": (QuantizedConv2D, {"filters": 5, "kernel_size": 3}, (6, 6, 3)),
    "depthwise": (QuantizedDepthwiseConv2D, {"kernel_size": 3, "depth_multiplier": 2}, (6, 6, 3)),
    "dense": (QuantizedDense, {"units": 5}, (7,)),
}


@pytest.fixture(params=LAYERS)
def mac(request):
    cls, arguments, shape = LAYERS[request.param]
    layer = cls(**arguments, weight_bits=(4, 3, 2), nested_weights=True, name="mac")
    layer.build((None, *shape))
    layer.weight_quantizer.initialize_steps(layer.kernel, "mse")  # which uses the whole range
    return layer, shape


def test_the_file_s_int8_kernel_is_the_rule_on_the_stored_integers(mac):
    layer, _ = mac
    stored = rounded(np.asarray(layer.kernel), layer.weight_quantizer.step(0), 4).astype(np.int8)
    found = {}
    for bits in (4, 3, 2):
        layer.weight_quantizer.choice.assign(bits)
        found[bits] = layer.integer_kernel()
        assert found[bits].dtype == np.int8
        np.testing.assert_array_equal(found[bits], by_shifting(stored, 4, bits))
        assert np.abs(found[bits]).max() == 2 ** (bits - 1) - 1
    assert np.any(found[4] != found[2])


def test_saved_and_loaded_is_identical_at_every_bit_width(mac, saved_and_loaded):
    layer, shape = mac
    moved = np.array(layer.weight_quantizer.log_step)
    layer.weight_quantizer.log_step.assign(moved + 0.1)
    model, loaded, twin = saved_and_loaded(layer, shape)
    assert twin.get_config() == layer.get_config()
    assert layer.get_config()["nested_weights"] is True
    assert type(twin.weight_quantizer) is NestedWeightQuantizer
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    outputs = []
    for bits in (4, 3, 2):
        for mac_layer in (layer, twin):
            mac_layer.weight_quantizer.choice.assign(bits)
        outputs.append(np.asarray(model(x)))
        np.testing.assert_array_equal(outputs[-1], loaded(x))
    assert np.any(outputs[0] != outputs[2])


def test_weights_are_not_nested_unless_asked():
    layer = QuantizedConv2D(4, 3, weight_bits=(4, 3, 2))
    assert type(layer.weight_quantizer) is WeightQuantizer
    config = layer.get_config()
    assert config["nested_weights"] is False
    again = QuantizedConv2D.from_config(config | {"nested_weights": True})
    assert type(again.weight_quantizer) is NestedWeightQuantizer

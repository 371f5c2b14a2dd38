"""FoldableBatchNormalization against Keras' own, and on the integer grid of its producer."""

import keras
import numpy as np
import pytest

from keras_metamix.layers.batch_norm import (
    SMALLEST_SCALE,
    FoldableBatchNormalization,
    folded_terms,
)
from keras_metamix.layers.mac import QuantizedConv2D, QuantizedDense
from keras_metamix.layers.mode import FLOAT, QuantizationMode, quantization_mode

SHAPES = {"image": (8, 5, 5, 4), "large image": (4, 24, 23, 4), "features": (16, 4)}
OPTIONS = {
    "default": {},
    "no scale": {"scale": False},
    "no center": {"center": False},
    "momentum": {"momentum": 0.7, "epsilon": 1e-5},
    "tiny epsilon": {"epsilon": 1e-7},
    "frozen by trainable": {"trainable": False},
}


@pytest.fixture(params=SHAPES)
def shape(request):
    return SHAPES[request.param]


@pytest.fixture(params=OPTIONS)
def options(request):
    return OPTIONS[request.param]


@pytest.fixture
def pair(shape, options):
    """Ours and Keras', with the same random variables."""
    layers = FoldableBatchNormalization(**options), keras.layers.BatchNormalization(**options)
    generator = np.random.default_rng(0)
    for layer in layers:
        layer.build((None, *shape[1:]))
    values = [generator.uniform(0.2, 2.0, v.shape) for v in layers[0].variables]
    for layer in layers:
        layer.set_weights(values)
    return layers


@pytest.mark.usefixtures("library_has_batch_norm")
def test_training_is_keras_s(pair, batches, close):
    for batch in batches:
        outputs, expected = (layer(batch, training=True) for layer in pair)
        close(outputs, expected)
    for ours, theirs in zip(pair[0].variables, pair[1].variables, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7, err_msg=ours.path)


@pytest.mark.usefixtures("library_has_batch_norm")
def test_gradients_are_keras_s(pair, batches, shape, close, gradients_of):
    upstream = np.random.default_rng(2).normal(size=shape)
    batch = keras.ops.convert_to_tensor(batches[1])
    found, expected = (
        gradients_of(
            lambda layer=layer: layer(batch, training=True),
            [batch, *layer.trainable_variables],
            upstream,
        )
        for layer in pair
    )
    names = ["input", *(v.name for v in pair[0].trainable_variables)]
    assert len(found) == len(names)
    for name, ours, theirs in zip(names, found, expected, strict=True):
        scale = np.max(np.abs(theirs))
        np.testing.assert_allclose(ours / scale, theirs / scale, atol=1e-3, err_msg=name)
        if name != "input":
            assert np.all(ours != 0)


def test_evaluation_in_float_is_keras_s_exactly(pair, batches):
    with quantization_mode(FLOAT):
        np.testing.assert_array_equal(
            pair[0](batches[0], training=False), pair[1](batches[0], training=False)
        )


def test_frozen_uses_batch_statistics_and_keeps_the_moving_ones(pair, batches, close):
    ours, theirs = pair
    before = [np.array(v) for v in ours.variables]
    with quantization_mode(QuantizationMode(statistics="frozen")):
        for batch in batches:
            close(ours(batch, training=True), theirs(batch, training=True))
    for variable, value in zip(ours.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value, err_msg=variable.path)


def test_saved_and_loaded_is_identical(pair, shape, batches, saved_and_loaded):
    model, loaded, twin = saved_and_loaded(pair[0], shape[1:])
    assert twin.get_config() == pair[0].get_config()
    np.testing.assert_array_equal(model(batches[0]), loaded(batches[0]))


# --- as the device will compute it ----------------------------------------------------------------

BOUND = {
    "conv": (QuantizedConv2D, {"filters": 4, "kernel_size": 3}, (6, 6, 2)),
    "dense": (QuantizedDense, {"units": 4}, (9,)),
}


@pytest.fixture(params=BOUND)
def bound(request):
    """A MAC layer on an 8-bit grid and the batch norm that folds into it; a scale is negative."""
    cls, arguments, shape = BOUND[request.param]

    def build(use_bias=True, **options):
        generator = np.random.default_rng(3)
        norm = FoldableBatchNormalization(**options, name="norm")
        mac = cls(**arguments, use_bias=use_bias, weight_bits=4, norm=norm, name="mac")
        mac.build((None, *shape))
        mac.input_quantizer.log_step.assign([np.log(0.03)])
        if use_bias:
            mac.bias.assign(generator.normal(size=4))
        if norm.scale:
            norm.gamma.assign([1.3, -0.7, 0.4, 1e-2])
        if norm.center:
            norm.beta.assign(generator.normal(size=4))
        norm.moving_mean.assign(generator.normal(size=4))
        norm.moving_variance.assign(generator.uniform(0.1, 2.0, 4))
        return mac, generator.normal(size=(3, *shape)).astype(np.float32)

    return build


@pytest.fixture
def expected_scale():
    def compute(norm):
        gamma = np.asarray(norm.gamma) if norm.scale else 1.0
        return gamma / np.sqrt(np.asarray(norm.moving_variance) + norm.epsilon)

    return compute


@pytest.fixture
def product():
    """What a MAC layer gives its norm: kernel and input quantized, the bias added."""

    def compute(mac, x):
        product = mac.multiply(mac.input_quantizer(x), mac.weight_quantizer(mac.kernel))
        return product + mac.bias if mac.use_bias else product

    return compute


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("options", [{}, {"scale": False}, {"center": False}], ids=str)
def test_evaluation_is_integers_times_the_channel_s_step(bound, use_bias, options, expected_scale):
    mac, x = bound(use_bias, **options)
    grid = np.abs(expected_scale(mac.norm)) * np.asarray(mac.accumulator_step())
    integers = np.asarray(mac(x, training=False)) / grid
    assert np.max(np.abs(integers)) > 100
    np.testing.assert_allclose(integers, np.rint(integers), atol=2e-2)
    with quantization_mode(QuantizationMode(weights="off")):
        free = np.asarray(mac(x, training=False)) / grid
    distance = np.abs(free - np.rint(free))
    assert np.mean(distance) > 0.1  # the check can fail: off the grid without the mode


def test_evaluation_is_keras_s_but_for_the_rounded_bias(bound, expected_scale, product):
    mac, x = bound()
    plain = keras.layers.BatchNormalization()
    outputs = product(mac, x)
    plain.build(outputs.shape)
    plain.set_weights(mac.norm.get_weights())
    grid = np.abs(expected_scale(mac.norm)) * np.asarray(mac.accumulator_step())
    difference = np.asarray(mac(x, training=False) - plain(outputs, training=False))
    assert np.all(np.abs(difference) <= grid * 0.51)
    # One constant for each channel: only the bias differs.
    spread = np.ptp(difference.reshape(-1, 4), axis=0)
    assert np.all(spread < 0.02 * grid)


def test_training_does_not_round(bound, close, product):
    mac, x = bound()
    plain = keras.layers.BatchNormalization()
    outputs = product(mac, x)
    plain.build(outputs.shape)
    plain.set_weights(mac.norm.get_weights())
    close(mac(x, training=True), plain(outputs, training=True))


def test_a_lone_batch_norm_evaluates_on_the_grid_that_it_is_connected_to(expected_scale):
    """On the device it is a 1x1 convolution with the weight 64 or -64: input steps / 64."""
    norm = FoldableBatchNormalization(input_quantizer="before", name="lone")
    norm.build((None, 3))
    values = [[1.3, -0.7, 0.4], [0.31, -0.2, 0.05], [0.1, 0.2, 0.3], [0.5, 1.0, 2.0]]
    norm.set_weights([np.array(v) for v in values])
    x = 0.25 * np.random.default_rng(0).integers(-50, 50, (8, 3)).astype(np.float32)
    free = np.asarray(norm(x))
    norm.connect(lambda: np.float32(0.25))
    found = np.asarray(norm(x))
    grid = np.abs(expected_scale(norm)) * 0.25 / 64
    np.testing.assert_allclose(found / grid, np.rint(found / grid), atol=2e-2)
    assert np.abs(free / grid - np.rint(free / grid)).mean() > 0.1
    assert np.all(np.abs(found - free) <= 0.51 * grid)


def test_folded_terms_are_the_closed_form():
    gamma, beta = np.array([2.0, -0.5]), np.array([0.3, -1.0])
    mean, variance = np.array([0.2, 0.1]), np.array([3.99, 0.24])
    bias, step = np.array([0.5, -0.4]), np.array([0.01, 0.02])
    arrays = [a.astype(np.float32) for a in (gamma, beta, mean, variance)]
    scale, integers = folded_terms(*arrays, 0.01, bias.astype("f"), step.astype("f"))
    np.testing.assert_allclose(scale, [1.0, -1.0], rtol=1e-6)  # 2 / 2 and -0.5 / 0.5
    # beta + (bias - mean) * scale = 0.3 + 0.3 and -1 + 0.5, in units of |scale| * step
    np.testing.assert_array_equal(integers, [60, -25])


@pytest.mark.parametrize("gamma", [0.0, 1e-30, -1e-30])
@pytest.mark.parametrize("beta", [0.0, 5.0, -5.0])
def test_a_dead_channel_keeps_a_positive_scale_and_an_int32_bias(gamma, beta):
    one = np.ones(1, np.float32)
    scale, integer = folded_terms(gamma * one, beta * one, 0 * one, one, 0.0, 0 * one, 1e-4 * one)
    scale, integer = float(scale[0]), float(integer[0])
    assert SMALLEST_SCALE <= abs(scale) < 1e-2
    assert abs(integer) <= 2**26  # 16 times as much, and the products, are an int32 on ARM
    assert integer * abs(scale) * 1e-4 == pytest.approx(beta, rel=1e-3)

"""Quantized convolutions and dense layers against Keras' own with a quantized kernel."""

import keras
import numpy as np
import pytest

from keras_metamix.layers.activation_quantizer import ActivationQuantizer
from keras_metamix.layers.mac import QuantizedConv2D, QuantizedDense, QuantizedDepthwiseConv2D
from keras_metamix.layers.mode import FLOAT, QuantizationMode, quantization_mode

IMAGE, FEATURES = (6, 6, 3), (7,)
# quantized class, Keras' class, arguments, input shape, axes of the kernel that share a step
LAYERS = {
    "conv": (QuantizedConv2D, keras.layers.Conv2D, {"filters": 4, "kernel_size": 3}, IMAGE,
             (0, 1, 2)),
    "strided conv": (QuantizedConv2D, keras.layers.Conv2D,
                     {"filters": 4, "kernel_size": (3, 1), "strides": 2, "padding": "same"},
                     IMAGE, (0, 1, 2)),
    "grouped dilated conv": (QuantizedConv2D, keras.layers.Conv2D,
                             {"filters": 6, "kernel_size": 2, "groups": 3, "dilation_rate": 2},
                             IMAGE, (0, 1, 2)),
    "depthwise": (QuantizedDepthwiseConv2D, keras.layers.DepthwiseConv2D,
                  {"kernel_size": 3, "padding": "same", "strides": 2}, IMAGE, (0, 1)),
    "multiplied depthwise": (QuantizedDepthwiseConv2D, keras.layers.DepthwiseConv2D,
                             {"kernel_size": 2, "depth_multiplier": 2}, IMAGE, (0, 1)),
    "dense": (QuantizedDense, keras.layers.Dense, {"units": 5}, FEATURES, (0,)),
    "dense over space": (QuantizedDense, keras.layers.Dense, {"units": 5}, IMAGE, (0,)),
}  # fmt: skip


@pytest.fixture(params=LAYERS)
def case(request):
    return LAYERS[request.param]


@pytest.fixture(params=[True, False], ids=["bias", "no bias"])
def use_bias(request):
    return request.param


@pytest.fixture
def x(case):
    return np.random.default_rng(0).normal(size=(2, *case[3])).astype(np.float32)


@pytest.fixture
def pair(case, use_bias):
    """The quantized layer and Keras' with the same arguments and weights."""
    quantized, plain, arguments, shape, _ = case
    initializer = keras.initializers.RandomNormal(stddev=0.5, seed=1)
    arguments = arguments | {"use_bias": use_bias, "bias_initializer": initializer}
    layer = quantized(**arguments, weight_candidates=(8, 4, 2), name="mac")
    reference = plain(**arguments)
    for built in (layer, reference):
        built.build((None, *shape))
    reference.set_weights([w for w in layer.get_weights() if w.ndim][: 1 + use_bias])
    return layer, reference


@pytest.fixture
def with_input(pair):
    """The layer as a network holds it: it knows its input's grid."""
    layer, reference = pair
    quantizer = ActivationQuantizer((8,), name="mac_input")
    quantizer.build(layer.input_spec.shape or (None, *IMAGE))
    quantizer.log_step.assign([np.log(0.07)])
    object.__setattr__(layer, "input_quantizer", quantizer)
    return layer, reference


@pytest.fixture
def steps(case):
    def compute(kernel, bits):
        mean = np.mean(np.abs(kernel), axis=case[4], keepdims=True)
        return 2 * mean / np.sqrt(2 ** (bits - 1) - 1)

    return compute


def test_off_is_the_keras_layer_exactly(with_input, x):
    layer, reference = with_input
    with quantization_mode(FLOAT):
        np.testing.assert_array_equal(layer(x), reference(x))


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_quantized_is_the_keras_layer_with_a_quantized_kernel(pair, x, bits, steps):
    layer, reference = pair  # which has no input grid: the bias stays as it is
    layer.weight_quantizer.assign_bits(bits)
    kernel, high = reference.get_weights()[0], 2 ** (bits - 1) - 1
    step = steps(kernel, bits)
    integers = np.rint(np.clip(kernel / step, -high, high))
    np.testing.assert_array_equal(layer.integer_kernel(), integers)
    assert layer.integer_kernel().dtype == np.int8
    reference.set_weights([integers * step, *reference.get_weights()[1:]])
    np.testing.assert_allclose(layer(x), reference(x), rtol=1e-4, atol=1e-4)


def test_the_bias_lies_on_the_accumulator_s_grid(with_input, x, steps):
    layer, reference = with_input
    kernel = reference.get_weights()[0]
    accumulator = 0.07 * steps(kernel, 8).reshape(-1)
    np.testing.assert_allclose(layer.accumulator_step(), accumulator, rtol=1e-5)
    at_zero = np.asarray(layer(np.zeros_like(x)))
    if not layer.use_bias:
        assert not at_zero.any()
        return
    bias = reference.get_weights()[1]
    expected = np.rint(bias / accumulator) * accumulator
    np.testing.assert_allclose(at_zero, np.broadcast_to(expected, at_zero.shape), atol=1e-6)
    with quantization_mode(QuantizationMode(weights="off")):
        found = np.asarray(layer(np.zeros_like(x)))
    np.testing.assert_array_equal(found, np.broadcast_to(bias, found.shape))


def test_a_bias_that_batch_norm_takes_in_is_not_rounded(with_input, x):
    layer, reference = with_input
    object.__setattr__(layer, "has_batch_norm", True)
    found = np.asarray(layer(np.zeros_like(x)))
    bias = reference.get_weights()[1] if layer.use_bias else 0.0
    np.testing.assert_array_equal(found, np.broadcast_to(np.float32(bias), found.shape))


def test_every_trainable_variable_gets_a_gradient(with_input, x, gradients_of):
    layer, _ = with_input
    names = {v.name for v in layer.trainable_variables}
    assert names == {"kernel", "log_step"} | ({"bias"} if layer.use_bias else set())
    weights = np.random.default_rng(2).normal(size=layer(x).shape)
    for variable, gradient in zip(
        layer.trainable_variables,
        gradients_of(lambda: layer(x), layer.trainable_variables, weights),
        strict=True,
    ):
        assert gradient is not None, variable.path
        assert np.any(gradient != 0), variable.path


def test_the_bias_gradient_is_straight_through(with_input, x, gradients_of):
    layer, _ = with_input
    if layer.use_bias:
        shape = layer(x).shape
        upstream = np.random.default_rng(3).normal(size=shape).astype(np.float32)
        [found] = gradients_of(lambda: layer(x), [layer.bias], upstream)
        expected = upstream.reshape(-1, shape[-1]).sum(axis=0)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_saved_and_loaded_is_identical(pair, case, x, saved_and_loaded):
    layer, _ = pair
    layer.weight_quantizer.assign_bits(2)
    model, loaded, twin = saved_and_loaded(layer, case[3])
    assert twin.get_config() == layer.get_config()
    assert twin.weight_quantizer.bits == 2
    np.testing.assert_array_equal(model(x), loaded(x))
    with quantization_mode(FLOAT):
        np.testing.assert_array_equal(model(x), loaded(x))


def test_the_accumulator_of_a_lone_layer_is_an_error_by_name(pair):
    with pytest.raises(ValueError, match="'mac' is not part of a quantized model"):
        pair[0].accumulator_step()

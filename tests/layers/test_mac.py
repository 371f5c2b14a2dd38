"""Quantized convolutions and dense layers against Keras' own with a quantized kernel."""

import keras
import numpy as np
import pytest

from keras_metamix.layers.batch_norm import FoldableBatchNormalization
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
    layer = quantized(**arguments, weight_bits=(8, 4, 2), name="mac")
    reference = plain(**arguments)
    for built in (layer, reference):
        built.build((None, *shape))
    reference.set_weights([w for w in layer.get_weights() if w.ndim][: 1 + use_bias])
    return layer, reference


STEP = 0.07  # of the input


@pytest.fixture
def on_grid(pair, x):
    """The layer, Keras' twin, and an input that lies on the layer's grid."""
    layer, reference = pair
    layer.input_quantizer.log_step.assign([np.log(STEP)])
    return layer, reference, np.asarray(layer.input_quantizer(x))


@pytest.fixture
def steps(case):
    def compute(kernel, bits):
        mean = np.mean(np.abs(kernel), axis=case[4], keepdims=True)
        return 2 * mean / np.sqrt(2 ** (bits - 1) - 1)

    return compute


def test_off_is_the_keras_layer_exactly(pair, x):
    layer, reference = pair
    with quantization_mode(FLOAT):
        np.testing.assert_array_equal(layer(x), reference(x))


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_quantized_is_the_keras_layer_with_a_quantized_kernel(on_grid, bits, steps):
    layer, reference, x = on_grid
    layer.weight_quantizer.choice.assign(bits)
    kernel, high = reference.get_weights()[0], 2 ** (bits - 1) - 1
    step = steps(kernel, bits)
    integers = np.rint(np.clip(kernel / step, -high, high))
    np.testing.assert_array_equal(layer.integer_kernel(), integers)
    assert layer.integer_kernel().dtype == np.int8
    accumulator = STEP * step.reshape(-1)
    bias = [np.rint(b / accumulator) * accumulator for b in reference.get_weights()[1:]]
    reference.set_weights([integers * step, *bias])
    np.testing.assert_allclose(layer(x), reference(x), rtol=1e-4, atol=1e-4)


def test_the_bias_lies_on_the_accumulator_s_grid(on_grid, steps):
    layer, reference, x = on_grid
    kernel = reference.get_weights()[0]
    accumulator = STEP * steps(kernel, 8).reshape(-1)
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


@pytest.fixture
def normed(pair, case):
    """A layer with random variables that owns a batch norm."""
    quantized, _, arguments, shape, _ = case
    norm = FoldableBatchNormalization(name="norm")
    use_bias = pair[0].use_bias
    layer = quantized(**arguments, use_bias=use_bias, norm=norm, name="mac")
    layer.build((None, *shape))
    generator = np.random.default_rng(4)
    for variable in (*norm.variables, *([layer.bias] if use_bias else [])):
        variable.assign(generator.uniform(0.2, 2.0, variable.shape))
    layer.input_quantizer.log_step.assign([np.log(STEP)])
    return layer


def test_with_a_norm_off_is_keras_s_two_layers_exactly(normed, pair, x):
    plain, after = pair[1], keras.layers.BatchNormalization()
    plain.set_weights([normed.kernel, *([normed.bias] if normed.use_bias else [])])
    after.build(normed.compute_output_shape(x.shape))
    after.set_weights(normed.norm.get_weights())
    with quantization_mode(FLOAT):
        np.testing.assert_array_equal(normed(x), after(plain(x), training=False))


def test_with_a_norm_every_trainable_variable_gets_a_gradient(normed, x, gradients_of):
    def loss():
        return normed(x, training=True)

    names = {v.name for v in normed.trainable_variables}
    bias = {"bias"} if normed.use_bias else set()
    assert names == {"kernel", "log_step", "gamma", "beta"} | bias
    weights = np.random.default_rng(2).normal(size=loss().shape)
    trained = [v for v in normed.trainable_variables if v.name != "bias"]  # the norm takes it out
    for variable, gradient in zip(trained, gradients_of(loss, trained, weights), strict=True):
        assert np.any(gradient != 0), variable.path


def test_with_a_frozen_norm_gradients_are_those_of_the_affine_function(normed, x, gradients_of):
    """Its bias is rounded to a grid in the forward pass, straight through."""
    normed.norm.trainable = False
    norm = normed.norm

    def affine():
        kernel = normed.weight_quantizer(normed.kernel)
        outputs = normed.multiply(normed.input_quantizer(x, training=True), kernel)
        outputs = outputs + normed.bias if normed.use_bias else outputs
        factor = norm.gamma / keras.ops.sqrt(norm.moving_variance + norm.epsilon)
        return (outputs - norm.moving_mean) * factor + norm.beta

    weights = np.random.default_rng(2).normal(size=affine().shape)
    trained = normed.trainable_variables
    assert {v.name for v in trained} >= {"kernel", "log_step"}
    found, expected = (
        gradients_of(function, trained, weights)
        for function in (lambda: normed(x, training=True), affine)
    )
    for variable, ours, exact in zip(trained, found, expected, strict=True):
        np.testing.assert_allclose(ours, exact, rtol=1e-4, atol=1e-4, err_msg=variable.path)


def test_with_a_norm_saved_and_loaded_is_identical(normed, case, x, saved_and_loaded):
    model, loaded, twin = saved_and_loaded(normed, case[3])
    assert twin.get_config() == normed.get_config()
    np.testing.assert_array_equal(model(x), loaded(x))


def test_frozen_are_kernel_and_bias_and_not_what_the_layer_owns(case, saved_and_loaded):
    quantized, _, arguments, shape, _ = case
    norm = FoldableBatchNormalization(name="norm")
    layer = quantized(**arguments, norm=norm, trainable=False, name="mac")
    _, _, twin = saved_and_loaded(layer, shape)
    for found in (layer, twin):
        assert [v.name for v in found.trainable_variables] == ["log_step", "gamma", "beta"]
        assert found.get_config()["trainable"] is False


def test_every_trainable_variable_gets_a_gradient(on_grid, x, gradients_of):
    layer, _, _ = on_grid
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


def test_the_bias_gradient_is_straight_through(on_grid, gradients_of):
    layer, _, x = on_grid
    if layer.use_bias:
        shape = layer(x).shape
        upstream = np.random.default_rng(3).normal(size=shape).astype(np.float32)
        [found] = gradients_of(lambda: layer(x), [layer.bias], upstream)
        expected = upstream.reshape(-1, shape[-1]).sum(axis=0)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_saved_and_loaded_is_identical(pair, case, x, saved_and_loaded):
    layer, _ = pair
    layer.weight_quantizer.choice.assign(2)
    model, loaded, twin = saved_and_loaded(layer, case[3])
    assert twin.get_config() == layer.get_config()
    assert twin.weight_quantizer.choice.bits == 2
    np.testing.assert_array_equal(model(x), loaded(x))
    with quantization_mode(FLOAT):
        np.testing.assert_array_equal(model(x), loaded(x))

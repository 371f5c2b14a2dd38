"""calibrate: the rule of the weight steps, and how long it holds."""

import keras
import numpy as np
import pytest

import keras_metamix as kmm
from keras_metamix.calibration import calibrate_weights
from keras_metamix.zoo.small import small_cnn


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(8, 8, 8, 1)).astype(np.float32)


@pytest.fixture
def model():
    keras.utils.set_random_seed(0)
    return kmm.MetaMixModel.from_float(small_cnn((8, 8, 1), width=4), kmm.SearchSpace((8, 4), 4))


def weight_steps(model):
    return [np.asarray(layer.weight_quantizer.log_step) for layer in model.mac_layers]


def weight_error(model):
    """Squared error of the rounded weights, of each layer."""
    errors = []
    for layer in model.mac_layers:
        kernel, quantizer = np.asarray(layer.kernel), layer.weight_quantizer
        rounded = np.asarray(quantizer.integers(kernel)) * np.asarray(quantizer.step())
        errors.append(float(np.mean(np.square(kernel - rounded))))
    return np.array(errors)


def test_mse_sets_weight_steps_of_less_error_than_lsq(model, images):
    kmm.calibrate(model, images)
    lsq = weight_error(model)
    kmm.calibrate(model, images, rule="mse")
    assert np.all(weight_error(model) < lsq)


@pytest.mark.parametrize("rule", ["lsq", "mse"])
def test_the_rule_outlives_set_bits(model, images, rule):
    kmm.calibrate(model, images, rule=rule)
    before = weight_steps(model)
    model.set_bits(kmm.uniform_assignment(model, 4, 4))
    for found, expected in zip(weight_steps(model), before, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_steps_set_anew_are_of_the_present_kernel(model, images):
    kmm.calibrate(model, images, rule="mse")
    before = weight_steps(model)
    for layer in model.mac_layers:
        layer.kernel.assign(2 * layer.kernel)
    calibrate_weights(model.network, model.weight_rule)
    for found, expected in zip(weight_steps(model), before, strict=True):
        np.testing.assert_allclose(found, expected + np.log(2), atol=1e-5)


def test_without_a_rule_weights_of_a_model_that_trains_are_lsq_s(model, images):
    from_float = weight_steps(model)
    kmm.calibrate(model, images)
    for found, expected in zip(weight_steps(model), from_float, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", [kmm.QuantizedModel, kmm.MetaMixModel, kmm.BitMixerModel])
def test_the_default_rule_is_the_model_s_and_fit_s_is_lsq(kind, images):
    float_model = small_cnn((8, 8, 1), width=4)
    model, fitted = kind.from_float(float_model), kind.from_float(float_model)
    kmm.calibrate(model, images)
    assert model.weight_rule == ("mse" if kind is kmm.QuantizedModel else "lsq")
    fitted.compile("sgd", "mse")
    fitted.fit(images, np.zeros((8, 10)), verbose=0)
    assert fitted.weight_rule == "lsq"


def test_another_rule_is_refused(model, images):
    with pytest.raises(ValueError, match=r"rule: expected one of \['lsq', 'mse'\], found 'max'"):
        kmm.calibrate(model, images, rule="max")
    assert not model.calibrated


def test_no_image_at_all_is_said():
    model = kmm.QuantizedModel.from_float(small_cnn(width=4))
    with pytest.raises(ValueError, match="images: expected at least one, found none"):
        kmm.calibrate(model, np.zeros((0, 28, 28, 1), np.float32))

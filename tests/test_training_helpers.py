"""What the methods' `compile` and `fit` share: weight decay, calibration, metrics."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_metamix as kmm
from keras_metamix.training import begin_fit, build_metrics, build_optimizer
from keras_metamix.zoo import small_cnn

MODELS = {"MetaMixModel": kmm.MetaMixModel, "BitMixerModel": kmm.BitMixerModel}
RATE, DECAY = 0.1, 0.5


@pytest.fixture(scope="module", params=MODELS)
def built(request):
    keras.utils.set_random_seed(0)
    return MODELS[request.param].from_float(small_cnn((8, 8, 1), 3, 2))


@pytest.fixture
def model(built):
    built.calibrated = False
    return built


@pytest.fixture
def optimizer():
    return keras.optimizers.SGD(RATE, weight_decay=DECAY)


@pytest.fixture
def decayed():
    """Paths of the variables that a step without gradients makes smaller, by exactly the decay."""

    def step(model, optimizer):
        variables = model.trainable_variables
        for variable in variables:
            variable.assign(np.full(variable.shape, 2.0, np.float32))
        optimizer.apply([tf.zeros(v.shape) for v in variables])
        found = set()
        for variable in variables:
            value = np.array(variable)
            if np.any(value != 2.0):
                np.testing.assert_allclose(value, 2.0 * (1 - RATE * DECAY), rtol=1e-6)
                found.add(variable.path)
        return found

    return step


def steps_of(model):
    return {v.path for v in model.trainable_variables if v.name == "log_step"}


def test_steps_take_no_weight_decay_and_all_else_does(model, optimizer, loss, decayed):
    model.compile(optimizer, loss)
    steps = steps_of(model)
    assert len(steps) >= 2 * len(model.mac_layers)  # of activations and of weights
    everything = {v.path for v in model.trainable_variables}
    assert decayed(model, optimizer) == everything - steps


def test_what_a_user_excluded_by_variable_stays_excluded(model, optimizer, loss, decayed):
    kernel = model.network.get_layer("conv2").kernel
    gammas = [v for v in model.trainable_variables if v.name == "gamma"]
    optimizer.exclude_from_weight_decay(var_list=[kernel, *gammas])
    model.compile(optimizer, loss)
    found = decayed(model, optimizer)
    own = {kernel.path, *(v.path for v in gammas)}
    assert found == {v.path for v in model.trainable_variables} - steps_of(model) - own
    assert found  # the other kernels


def test_what_a_user_excluded_by_name_stays_excluded(model, optimizer, loss, decayed):
    optimizer.exclude_from_weight_decay(var_names=["gamma", "bet"])
    model.compile(optimizer, loss)
    norms = {v.path for v in model.trainable_variables if v.name in ("gamma", "beta")}
    expected = {v.path for v in model.trainable_variables} - steps_of(model) - norms
    assert decayed(model, optimizer) == expected


def test_both_at_once_stay_excluded(model, optimizer, loss, decayed):
    bias = model.network.get_layer("logits").bias
    optimizer.exclude_from_weight_decay(var_list=[bias], var_names=["gamma"])
    model.compile(optimizer, loss)
    found = decayed(model, optimizer)
    assert bias.path not in found
    assert {path.split("/")[-1] for path in found} == {"kernel", "beta"}


def test_a_built_optimizer_is_left_alone(model, optimizer, decayed):
    """It may come from a file, with its state; Keras refuses exclusions then."""
    optimizer.build(model.trainable_variables)
    build_optimizer(optimizer, model.trainable_variables)
    assert decayed(model, optimizer) == {v.path for v in model.trainable_variables}


def test_a_model_may_be_compiled_without_an_optimizer(model, loss):
    model.compile(optimizer=None, loss=loss)
    assert model.optimizer is None


# --- fit --------------------------------------------------------------------------------------


@pytest.fixture
def data():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(12, 8, 8, 1)).astype(np.float32)
    return x, generator.integers(0, 3, 12)


def all_steps(model):
    return [np.array(v) for v in model.trainable_variables if v.name == "log_step"]


def test_step_sizes_are_set_once_from_the_first_images(model, data):
    """From 32 of them, or all where there are fewer, whatever the batch size."""
    x, y = data
    begin_fit(model, x, y, 4)
    assert model.calibrated
    found = all_steps(model)
    kmm.calibrate(model, x)
    for ours, expected in zip(found, all_steps(model), strict=True):
        np.testing.assert_array_equal(ours, expected)
    begin_fit(model, 5 * x, y, 4)  # later data change nothing
    for ours, expected in zip(found, all_steps(model), strict=True):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("calibrated", [True, False])
def test_nan_in_training_images_is_named(model, data, calibrated):
    model.calibrated = calibrated
    x = data[0].copy()
    x[5, 1, 2, 0] = np.nan
    with pytest.raises(ValueError, match="training images hold 1 NaN or Inf of 768 values"):
        begin_fit(model, x, data[1], 4)


def test_metrics_have_their_variables_before_the_first_step(model, data, loss):
    model.compile("sgd", loss, metrics=["accuracy"])
    model.calibrated = True
    assert not model._compile_metrics.built
    build_metrics(model, *data, 4)
    assert model._compile_metrics.built
    assert model.metrics[-1].variables
    build_metrics(model, None, None, None)  # nothing is left to build, so no data are needed

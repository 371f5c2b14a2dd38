"""Which layer a NaN is said to come from, and what is left of the weights."""

import keras
import numpy as np
import pytest

import keras_metamix as kmm
from keras_metamix.diagnosis import NonFiniteError, find_non_finite
from keras_metamix.zoo import small_cnn

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture
def data():
    generator = np.random.default_rng(0)
    return generator.normal(size=(16, 12, 12, 1)).astype("f"), generator.integers(0, 4, 16)


def metamix():
    model = kmm.MetaMixModel.from_float(small_cnn((12, 12, 1), 4, 2))
    return model, kmm.MetaMixCallback(1e6, verbose=0)


def mixer():
    model = kmm.BitMixerModel.from_float(small_cnn((12, 12, 1), 4, 2))
    return model, kmm.BitMixerCallback((2, 0, 0), verbose=0)


@pytest.fixture(params=[metamix, mixer])
def ready(request, data):
    """A calibrated model, compiled, with its callback."""
    keras.utils.set_random_seed(0)
    model, callback = request.param()
    kmm.calibrate(model, data[0])
    model.compile(keras.optimizers.SGD(0.1), LOSS, run_eagerly=True)
    return model, callback


def poison(variable, value):
    array = np.array(variable)
    array.flat[0] = value
    variable.assign(array)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["kernel", "log_step"])
def test_a_variable_is_named_and_the_others_keep_their_values(ready, data, name, value):
    """The second convolution's weights or its input's step sizes, before the first step."""
    model, callback = ready
    layer = model.network.get_layer("conv2")
    variable = layer.kernel if name == "kernel" else layer.input_quantizer.log_step
    poison(variable, value)
    before = {v.path: np.array(v) for v in model.trainable_variables}
    if name == "log_step" and value == np.inf:  # exp(inf): the whole tensor becomes 0 * inf
        message = variable.path
    else:
        message = f"{variable.path} holds 1 NaN or Inf"
    with pytest.raises(NonFiniteError, match=message) as caught:
        model.fit(*data, batch_size=8, epochs=2, callbacks=[callback], verbose=0)
    assert "at step 1 of epoch 1" in str(caught.value)
    assert "smaller learning rate" in str(caught.value)
    for variable in model.trainable_variables:
        np.testing.assert_array_equal(variable, before[variable.path])


def test_a_rate_that_is_too_large_names_a_layer(ready, data):
    model, callback = ready
    model.compile(keras.optimizers.SGD(1e38), LOSS, run_eagerly=True)
    with pytest.raises(NonFiniteError, match=r"layer 'conv\d"):
        model.fit(*data, batch_size=8, epochs=2, callbacks=[callback], verbose=0)


def test_images_are_named(ready, data):
    """NaN in a data set's second batch: the first, that step sizes are set from, is fine."""
    model, _ = ready
    x = data[0]
    x[12, 0, 0, 0] = np.nan
    found = find_non_finite(model, iter([x[:8], x[8:]]))
    assert found == "the images hold 1 NaN or Inf, in batch 2 of the training data"


def test_an_activation_is_named(data):
    """Finite weights whose sum is not."""
    model = small_cnn((12, 12, 1), 4, 2)
    kernel = model.get_layer("conv2").kernel
    kernel.assign(np.full(kernel.shape, 3e38, "f"))
    found = find_non_finite(model, [np.abs(data[0])])
    assert found.startswith("layer 'conv2") and "puts out" in found, found


def test_all_is_finite(ready, data):
    assert find_non_finite(ready[0], [data[0]]) == (
        "weights and step sizes are finite, and so are the images of the first 1 training batches "
        "and all activations on the first"
    )

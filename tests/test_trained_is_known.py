"""What was trained is known as trained to a checkpoint of TensorFlow's and to a user's function."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_metamix as kmm
from keras_metamix.layers.mode import quantization_mode

KINDS = {
    "plain": lambda f: kmm.QuantizedModel.from_float(f, 4, 4),
    "metamix": lambda f: kmm.MetaMixModel.from_float(f, kmm.SearchSpace((8, 4), (8, 4))),
    "bitmixer": kmm.BitMixerModel.from_float,
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


@pytest.fixture
def pair(kind, tiny_model, data):
    """A model of unsigned images, its every variable moved, and one that was made for others."""
    one, other = kind(tiny_model()), kind(tiny_model())
    kmm.calibrate(one, np.abs(data[0]))
    kmm.calibrate(other, data[0])
    if isinstance(one, kmm.MetaMixModel):
        one.set_bits(kmm.uniform_assignment(one, 4, 8))
        for number, alpha in enumerate(one.architecture_variables):
            alpha.assign([number, -1.0])
    if isinstance(one, kmm.BitMixerModel):
        one.set_bits(one.uniform_bits(3))
        one.stage = "layer_wise"
    if one.progress:
        one.progress.end_epoch(4)
    return one, other


def restored(one, other, folder):
    path = tf.train.Checkpoint(model=one).write(str(folder / "checkpoint"))
    tf.train.Checkpoint(model=other).read(path).assert_consumed()


def test_a_checkpoint_holds_every_variable(pair, data, tmp_path):
    one, other = pair
    restored(one, other, tmp_path)
    for found, expected in zip(other.variables, one.variables, strict=True):
        if found.name != "seed_generator_state":
            np.testing.assert_array_equal(found, expected, err_msg=found.path)
    np.testing.assert_array_equal(other(data[0]), one(data[0]))
    assert other.bit_assignment == one.bit_assignment


def test_a_function_that_was_traced_follows_the_sign(pair, data):
    """Above 0 the images use all 256 levels, as unsigned ones do; the traced grid has them too."""
    one, other = pair
    images = np.abs(data[0])
    mode = one.evaluation_mode()

    @tf.function
    def traced(x):
        with quantization_mode(mode):
            return other.network(x)

    before = traced(images)
    other.set_weights(one.get_weights())
    assert other.mac_layers[0].input_quantizer.sign == "unsigned"
    np.testing.assert_allclose(traced(images), one(images), atol=1e-5)
    assert np.any(np.asarray(before) != np.asarray(one(images)))


def test_a_function_that_is_traced_next_takes_the_phase(pair, data):
    one, other = pair
    other.set_weights(one.get_weights())
    np.testing.assert_allclose(tf.function(other)(data[0]), one(data[0]), atol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_the_sign_is_of_the_type_computed_in(policy, tiny_model, data):
    """Ends of 0 to 255 and -128 to 127 are exact in both types."""
    quantizer = kmm.MetaMixModel.from_float(tiny_model()).mac_layers[0].input_quantizer
    config = quantizer.get_config() | {"dtype": policy}
    half = type(quantizer).from_config(config)
    half.build((None, 8, 8, 1))
    for sign, (low, high) in {"unsigned": (0, 255), "signed": (-128, 127)}.items():
        half.set_sign(sign)
        found = np.asarray(keras.ops.cast(half(1e3 * data[0]), "float32"))
        assert (found.min(), found.max()) == (low, high)


@pytest.mark.parametrize("use", [kmm.calibrate, lambda m, x: m.fit(x, verbose=0)])
def test_no_batch_calibrates_nothing(use, tiny_model, data, loss):
    """A data set of unknown length that turns out to be empty."""
    model = kmm.QuantizedModel.from_float(tiny_model())
    model.compile("sgd", loss)
    empty = tf.data.Dataset.from_tensor_slices(data).filter(lambda x, y: y > 9).batch(4)
    with pytest.raises(ValueError, match="expected at least one batch, found none"):
        use(model, empty)
    assert not model.calibrated

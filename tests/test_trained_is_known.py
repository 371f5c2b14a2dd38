"""What was trained is known as trained: state lies in variables, however these are restored."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_metamix as kmm
import metamix_tflite as mt
from keras_metamix.zoo import small_cnn

KINDS = {
    "QuantizedModel": lambda f: kmm.QuantizedModel.from_float(f, 4, 4),
    "MetaMixModel": lambda f: kmm.MetaMixModel.from_float(f, kmm.SearchSpace((8, 4), 4)),
    "BitMixerModel": lambda f: kmm.BitMixerModel.from_float(f, kmm.SearchSpace((4, 3), "same")),
}


@pytest.fixture(scope="module")
def pictures():
    """Pixels from 0 to 1: the first layer's input is unsigned."""
    rng = np.random.default_rng(0)
    return rng.uniform(size=(16, 8, 8, 1)).astype("float32"), rng.integers(0, 4, 16)


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def compiled(kind, float_model, loss, rate=0.0):
    model = kind(float_model)
    model.compile(keras.optimizers.SGD(rate), loss)
    return model


def callbacks_of(model):
    if isinstance(model, kmm.MetaMixModel):
        return [kmm.MetaMixCallback(kmm.Bops(share=0.5), verbose=0)]
    if isinstance(model, kmm.BitMixerModel):
        return [kmm.BitMixerCallback((1, 1, 1), verbose=0)]
    return []


@pytest.fixture
def trained(kind, float_model, loss, pictures):
    model = compiled(kind, float_model, loss, 0.05)
    model.fit(*pictures, epochs=3, verbose=0, callbacks=callbacks_of(model))
    return model


def by_weights_file(source, other, folder):
    source.save_weights(folder / "m.weights.h5")
    other.load_weights(folder / "m.weights.h5")


def by_checkpoint(source, other, folder):
    path = tf.train.Checkpoint(model=source).write(str(folder / "checkpoint"))
    tf.train.Checkpoint(model=other).read(path).assert_existing_objects_matched()


def by_set_weights(source, other, folder):
    other.set_weights(source.get_weights())


@pytest.mark.filterwarnings("ignore:Skipping variable loading for optimizer")
@pytest.mark.parametrize("restore", [by_weights_file, by_checkpoint, by_set_weights])
def test_a_new_model_goes_on_as_the_trained_one(
    restore, trained, kind, float_model, loss, pictures, tmp_path
):
    x, y = pictures
    other = compiled(kind, float_model, loss)
    with kmm.quantizers_off():
        other.predict(x, verbose=0)
    kmm.calibrate(other, x - 0.5)  # of the other sign: what is traced now has to be made anew
    other.predict(x, verbose=0)
    other.evaluate(x, y, verbose=0)
    restore(trained, other, tmp_path)
    assert [q.input_quantizer.sign for q in other.mac_layers][0] == "unsigned"
    expected = trained.predict(x, verbose=0)
    np.testing.assert_array_equal(other.predict(x, verbose=0), expected)
    assert other.evaluate(x, y, verbose=0) == trained.evaluate(x, y, verbose=0)
    assert mt.convert(other) == mt.convert(trained)
    steps = [np.array(v) for v in other.trainable_variables if v.name == "log_step"]
    other.optimizer.learning_rate = 0.0
    other.fit(x, y, epochs=1, verbose=0)
    found = [np.array(v) for v in other.trainable_variables if v.name == "log_step"]
    for now, before in zip(found, steps, strict=True):
        np.testing.assert_array_equal(now, before)


def test_the_rule_of_the_weight_steps_is_loaded(float_model, pictures, tmp_path):
    model, other = KINDS["MetaMixModel"](float_model), KINDS["MetaMixModel"](float_model)
    kmm.calibrate(model, pictures[0], rule="mse")
    by_weights_file(model, other, tmp_path)
    for one in (model, other):
        one.set_bits(kmm.uniform_assignment(one, 4, 4))  # sets the weight steps anew
    np.testing.assert_array_equal(model(pictures[0]), other(pictures[0]))
    assert {layer.weight_quantizer.rule for layer in other.mac_layers} == {"mse"}


def test_a_function_that_was_traced_follows_the_sign(float_model, pictures, tmp_path):
    model, other = (KINDS["QuantizedModel"](float_model) for _ in range(2))
    kmm.calibrate(model, pictures[0])
    kmm.calibrate(other, pictures[0] - 0.5)
    traced = tf.function(other)
    traced(pictures[0])
    by_weights_file(model, other, tmp_path)
    np.testing.assert_allclose(traced(pictures[0]), model(pictures[0]), atol=1e-5)


# --- nobody has calibrated --------------------------------------------------------------------


def own_step(model, x, y):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(x, training=True))
    return tape.gradient(loss, model.trainable_variables[0].value)


USES = {
    "train_on_batch": lambda m, x, y: m.train_on_batch(x, y),
    "test_on_batch": lambda m, x, y: m.test_on_batch(x, y),
    "predict_on_batch": lambda m, x, y: m.predict_on_batch(x),
    "evaluate": lambda m, x, y: m.evaluate(x, y, verbose=0),
    "predict": lambda m, x, y: m.predict(x, verbose=0),
    "call": lambda m, x, y: m(x),
    "own step": own_step,
    "own traced step": lambda m, x, y: tf.function(own_step)(m, x, y),
}


@pytest.mark.parametrize("use", USES)
def test_an_uncalibrated_model_says_so(use, kind, float_model, loss, pictures):
    model = kind(float_model)
    model.compile("sgd", loss, metrics=["accuracy"])
    with pytest.raises(ValueError, match=r"no step sizes yet.*keras_metamix\.calibrate\(model"):
        USES[use](model, *pictures)
    kmm.calibrate(model, pictures[0])
    USES[use](model, *pictures)


def test_what_does_not_quantize_needs_no_step_sizes(kind, float_model, loss, pictures, tmp_path):
    model = compiled(kind, float_model, loss)
    x, y = pictures
    with kmm.quantizers_off():
        np.testing.assert_array_equal(model(x), float_model(x))
        model.predict(x, verbose=0)
        model.evaluate(x, y, verbose=0)
    model.summary(print_fn=lambda *_, **__: None)
    image = keras.Input((8, 8, 1))
    outer = keras.Model(image, model(image))
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert not again.calibrated
    kmm.calibrate(model, x)
    np.testing.assert_allclose(outer(x), model(x), atol=1e-5)

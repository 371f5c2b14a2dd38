"""What was trained is known as trained: weights that are saved, restored, averaged, or gone on."""

import warnings

import keras
import numpy as np
import pytest

import keras_metamix as kmm
import metamix_tflite as mt

KINDS = {
    "plain": (kmm.QuantizedModel, lambda: None, 1),
    "metamix": (
        kmm.MetaMixModel,
        lambda: kmm.MetaMixCallback(kmm.Bops(share=0.5), statistics_batches=2, verbose=0),
        3,
    ),
    "bitmixer": (
        kmm.BitMixerModel,
        lambda: kmm.BitMixerCallback((1, 1, 1), statistics_batches=2, verbose=0),
        3,
    ),
}


@pytest.fixture(scope="module")
def make(tiny_model, loss):
    """make(kind) -> a compiled model of the same float model."""
    source = tiny_model()

    def build(kind="metamix", optimizer=None, **compile):
        model = KINDS[kind][0].from_float(source)
        compile = {"run_eagerly": True} | compile  # a few steps: tracing is what takes the time
        model.compile(optimizer or keras.optimizers.SGD(0.05), loss, **compile)
        return model

    return build


@pytest.fixture(scope="module")
def callback():
    return lambda kind="metamix": KINDS[kind][1]()


@pytest.fixture(scope="module", params=KINDS)
def trained(request, make, callback, data):
    """A kind, a model of it that was trained, and what it computes."""
    kind = request.param
    model, ours = make(kind), callback(kind)
    model.fit(*data, epochs=KINDS[kind][2], verbose=0, callbacks=[ours] if ours else None)
    return kind, model, np.asarray(model(data[0]))


@pytest.fixture(params=["load_weights", "set_weights", "load_model", "clone_model"])
def again(request, trained, make, tmp_path):
    """Another object with what was trained."""
    kind, model, _ = trained
    if request.param == "load_model":
        model.save(tmp_path / "m.keras")
        return keras.models.load_model(tmp_path / "m.keras")
    if request.param == "load_weights":
        model.save_weights(tmp_path / "m.weights.h5")
        other = make(kind, optimizer=model.optimizer.from_config(model.optimizer.get_config()))
        other.load_weights(tmp_path / "m.weights.h5")
        return other
    other = keras.models.clone_model(model) if request.param == "clone_model" else make(kind)
    other.set_weights(model.get_weights())
    return other


# --- the same model again -------------------------------------------------------------------------


def test_it_computes_and_converts_the_same(again, trained, data):
    kind, model, outputs = trained
    np.testing.assert_array_equal(again(data[0]), outputs)
    assert again.steps_trained
    assert again.bit_assignment == model.bit_assignment
    assert again.weight_rule == model.weight_rule
    if kind != "bitmixer":
        assert mt.convert(again) == mt.convert(model)


def test_trained_steps_are_not_calibrated_away(again, data, trained):
    with pytest.raises(ValueError, match=r"were trained: convert it, or fit .*overwrite=True"):
        kmm.calibrate(again, data[0])
    np.testing.assert_array_equal(again(data[0]), trained[2])
    kmm.calibrate(again, data[0], overwrite=True)
    assert not again.steps_trained
    assert np.any(np.asarray(again(data[0])) != trained[2])


def test_fit_goes_on_as_trained(trained, make, callback, data):
    kind, model, outputs = trained
    other, ours = make(kind, optimizer=keras.optimizers.SGD(0.0)), callback(kind)
    other.set_weights(model.get_weights())
    other.network.trainable = False  # nor may batch norm's statistics move
    epochs = KINDS[kind][2]
    other.fit(*data, epochs=epochs, verbose=0, callbacks=[ours] if ours else None)
    np.testing.assert_array_equal(other(data[0]), outputs)
    assert other.bit_assignment == model.bit_assignment


def test_what_was_traced_before_follows(make, data, tmp_path):
    """Signs of the input and the phase are read while a function is traced."""
    images, labels = data
    model = make(run_eagerly=False)
    kmm.calibrate(model, images)
    model.set_bits(kmm.uniform_assignment(model, 4, 4))
    model.save_weights(tmp_path / "m.weights.h5")
    other = make(run_eagerly=False)
    kmm.calibrate(other, np.abs(images))
    sign = other.mac_layers[0].input_quantizer.sign
    assert (sign, other.phase) == ("unsigned", "bit_meta")
    other.predict(images, verbose=0)
    other.evaluate(*data, verbose=0)
    other.load_weights(tmp_path / "m.weights.h5")
    np.testing.assert_array_equal(
        other.predict(images, verbose=0), model.predict(images, verbose=0)
    )
    assert other.evaluate(*data, verbose=0) == model.evaluate(*data, verbose=0)
    np.testing.assert_array_equal(
        other.train_on_batch(images, labels), model.train_on_batch(images, labels)
    )


def test_the_rule_of_weight_steps_is_kept(make, data):
    model, other = make(), make()
    kmm.calibrate(model, data[0], rule="mse")
    other.set_weights(model.get_weights())
    assert other.weight_rule == "mse"
    for one in (model, other):
        one.set_bits(kmm.uniform_assignment(model, 4, 4))
    np.testing.assert_array_equal(other(data[0]), model(data[0]))


# --- callbacks that restore -----------------------------------------------------------------------


@pytest.mark.parametrize(("verbose", "anew"), [(0, False), (2, True)])
def test_a_restored_epoch_of_an_earlier_phase_is_said(verbose, anew, make, callback, data):
    class Scores(keras.callbacks.Callback):  # the first epoch is the best one
        def on_epoch_end(self, epoch, logs=None):
            logs["score"] = -epoch

    def stopping(**arguments):
        return keras.callbacks.EarlyStopping(
            "score", mode="max", patience=9, restore_best_weights=True, **arguments
        )

    model, ours = make(), callback()
    message = r"phase 'bit_meta', from before 'weight_training' began: .*start_from_epoch=2"
    with pytest.warns(UserWarning, match=message):
        model.fit(*data, epochs=4, verbose=verbose, callbacks=[ours, Scores(), stopping()])
    assert (model.phase, ours.phases[-1]) == ("bit_meta", "weight_training")
    again = callback()  # the model is that of the first epoch, and goes on from there
    model = make() if anew else model
    model.fit(*data, epochs=4, verbose=0, callbacks=[again, Scores(), stopping(start_from_epoch=2)])
    rest = ["bit_search", "weight_training", "weight_training"]
    assert again.phases == (["bit_meta", *rest] if anew else [*rest, "weight_training"])
    assert model.phase == "weight_training"
    assert again.assignment == model.bit_assignment


def test_a_checkpoint_of_the_best_epoch_is_for_the_last_phase(make, callback, data, tmp_path):
    model, ours = make(), callback()
    best = keras.callbacks.ModelCheckpoint(tmp_path / "b.keras", "loss", save_best_only=True)
    message = r"b.keras', save_best_only=True\) compares epochs of all phases.*'weight_training'"
    with pytest.warns(UserWarning, match=message):
        model.fit(*data, epochs=1, verbose=0, callbacks=[ours, best])
    model.fit(*data, epochs=1, verbose=0, callbacks=[ours])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.fit(*data, epochs=1, verbose=0, callbacks=[ours, best])
    assert ours.phases == ["bit_meta", "bit_search", "weight_training"]


def test_callbacks_may_be_a_list_of_keras(make, callback, data):
    model, ours = make(), callback()
    callbacks = keras.callbacks.CallbackList([ours], add_history=True, model=model, verbose=0)
    for _ in range(3):
        model.fit(*data, verbose=0, callbacks=callbacks)
    assert ours.phases == ["bit_meta", "bit_search", "weight_training"]
    assert len(callbacks.callbacks) == 3  # ours, the history, and the one that watches


def test_a_fit_that_is_stopped_while_it_searches_is_said(make, callback, data):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    model = make()
    with pytest.warns(UserWarning, match=r"stopped it in phase 'bit_meta', before 'weight_t"):
        model.fit(*data, epochs=4, verbose=0, callbacks=[callback(), Stop()])


@pytest.mark.parametrize("ours_first", [True, False])
def test_backup_and_restore_goes_on_in_its_phase(ours_first, make, callback, data, tmp_path):
    class Interrupt(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 3:
                raise KeyboardInterrupt

    def callbacks(ours):
        both = [ours, keras.callbacks.BackupAndRestore(tmp_path / "backup")]
        return both if ours_first else both[::-1]

    model = make()
    with pytest.raises(KeyboardInterrupt):
        model.fit(*data, epochs=5, verbose=0, callbacks=[*callbacks(callback()), Interrupt()])
    other, ours = make(), callback()
    other.fit(*data, epochs=5, verbose=0, callbacks=callbacks(ours))
    assert ours.phases == ["weight_training"] * 2
    assert other.bit_assignment == ours.assignment == model.bit_assignment


@pytest.mark.parametrize("kind", ["metamix", "bitmixer"])
def test_averages_begin_with_the_network_as_it_is_quantized(kind, make, callback, data):
    """What was averaged before are weights in float, and steps that were set anew since."""

    class Check(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch or self.model.evaluation_mode().weights == "off" or checked:
                return
            averages = optimizer._model_variables_moving_average
            for variable, average in zip(self.model.trainable_variables, averages, strict=True):
                np.testing.assert_array_equal(variable, average, err_msg=variable.path)
            checked.append(True)

    checked, optimizer = [], keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.9)
    model = make(kind, optimizer=optimizer)
    model.fit(*data, epochs=3, verbose=0, callbacks=[callback(kind), Check()])
    assert checked
    averages = optimizer._model_variables_moving_average
    for variable, average in zip(model.trainable_variables, averages, strict=True):
        np.testing.assert_array_equal(variable, average, err_msg=variable.path)


# --- one fit after the other ----------------------------------------------------------------------


@pytest.mark.parametrize("how", ["same callback", "new callbacks", "initial_epoch"])
def test_epochs_are_counted_over_several_fits(how, make, callback, data):
    model, ours, phases = make(), callback(), []
    for epoch in range(4):
        if how == "new callbacks":
            ours = callback()
        numbers = (epoch + 1, epoch) if how == "initial_epoch" else (1, 0)
        model.fit(*data, epochs=numbers[0], initial_epoch=numbers[1], verbose=0, callbacks=[ours])
        phases.append(ours.phases[-1])
    assert phases == ["bit_meta", "bit_search", "weight_training", "weight_training"]
    assert ours.assignment == model.bit_assignment


def test_an_interrupted_fit_goes_on(make, callback, data):
    class Interrupt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if self.model.phase == "bit_search":
                raise KeyboardInterrupt

    model, ours = make(), callback()
    with pytest.raises(KeyboardInterrupt):
        model.fit(*data, epochs=3, verbose=0, callbacks=[ours, Interrupt()])
    assert model.phase == "bit_search"
    model.fit(*data, epochs=3, verbose=0, callbacks=[ours])
    assert ours.phases == ["bit_meta", "bit_search", "bit_search", *["weight_training"] * 2]


def test_a_mixer_s_stages_do_not_begin_anew(make, callback, data):
    model = make("bitmixer")
    for _ in range(2):
        ours = callback("bitmixer")
        model.fit(*data, epochs=3, verbose=0, callbacks=[ours])
    assert ours.stages == ["layer_wise"] * 3
    assert float(model.layer_wise_share) == 1

"""Batch norm's statistics when training ends: means over batches, for the weights that remain."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_metamix as kmm
from keras_metamix import zoo
from keras_metamix.layers.parts import batch_norms

BRIGHTNESS = np.repeat([0.5, 1.0, 2.0], 16)[:, None, None, None]  # no batch is like another
IMAGES = np.random.default_rng(0).normal(BRIGHTNESS, BRIGHTNESS, (48, 28, 28, 1)).astype("float32")
LABELS = np.arange(48) % 10
BATCH = 16


def compiled(of=kmm.QuantizedModel, **arguments):
    keras.utils.set_random_seed(0)
    model = of.from_float(zoo.small_cnn(width=4), **arguments)
    kmm.calibrate(model, IMAGES)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-2), loss)
    return model


def statistics(model):
    norms = batch_norms(model.network)
    return [np.array(v) for n in norms for v in (n.moving_mean, n.moving_variance)]


def assert_equal(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_they_are_the_mean_over_the_batches():
    """Against NumPy, on what the first convolution gives in float: it has 8 bits here."""
    keras.utils.set_random_seed(0)
    float_model = zoo.small_cnn(width=4)
    first = next(x for x in float_model.layers if isinstance(x, keras.layers.Conv2D))
    values = np.array(keras.Model(float_model.input, first.output)(IMAGES))
    batches = values.reshape(3, -1, values.shape[-1])
    model = kmm.QuantizedModel.from_float(float_model)
    kmm.calibrate(model, IMAGES, "mse")
    model.compile("adam", "mse")
    for count in (2, 9):
        read = kmm.reestimate_batch_norm(model, IMAGES, count, BATCH)
        assert read == BATCH * min(count, 3)
        mean, variance = statistics(model)[:2]
        used = batches[:count]
        np.testing.assert_allclose(mean, used.mean(1).mean(0), atol=0.01)
        np.testing.assert_allclose(variance, used.var(1).mean(0), rtol=0.05)


@pytest.mark.parametrize("nested", [False, True])
def test_those_of_a_float_model(nested):
    """Against NumPy; also of a batch norm inside a model that is a layer."""
    norm = keras.layers.BatchNormalization()
    inside = [keras.Sequential([keras.layers.ReLU(), norm])] if nested else [norm]
    model = keras.Sequential([keras.Input((28, 28, 1)), *inside, keras.layers.Flatten()])
    assert kmm.reestimate_batch_norm(model, (IMAGES, LABELS), batch_size=BATCH) == 48
    values = np.maximum(IMAGES, 0) if nested else IMAGES
    batches = values.reshape(3, -1)
    np.testing.assert_allclose(norm.moving_mean, [batches.mean()], rtol=1e-4)
    np.testing.assert_allclose(norm.moving_variance, [batches.var(1).mean()], rtol=1e-4)
    assert norm.momentum == 0.99
    with pytest.raises(TypeError, match="expected images for a float model, found None"):
        kmm.reestimate_batch_norm(model)


def test_the_pass_is_traced_once_and_follows_what_changes(monkeypatch):
    """Twelve batches: the first four run eagerly, the rest in a function that is kept."""
    model, calls = compiled(), []
    call = model.network.call
    monkeypatch.setattr(model.network, "call", lambda *a, **k: calls.append(1) or call(*a, **k))
    kmm.reestimate_batch_norm(model, IMAGES, batch_size=4)
    assert len(calls) == 4 + 1
    first = statistics(model)
    kmm.reestimate_batch_norm(model, IMAGES, batch_size=4)
    assert len(calls) == 4 + 1 + 4
    assert_equal(statistics(model), first)
    model.mac_layers[0].kernel.assign(2 * model.mac_layers[0].kernel)
    frozen = batch_norms(model.network)[1]
    frozen.trainable = False
    kmm.reestimate_batch_norm(model, IMAGES, batch_size=4)
    assert len(calls) == 4 + 1 + 4 + 4 + 1
    found = statistics(model)
    assert not np.allclose(found[0], first[0])
    assert_equal(found[2:4], first[2:4])
    fresh = compiled()
    fresh.network.set_weights(model.network.get_weights())
    batch_norms(fresh.network)[1].trainable = False
    kmm.reestimate_batch_norm(fresh, IMAGES, batch_size=4)
    assert_equal(statistics(fresh), found)


def test_a_checkpoint_is_the_same_before_and_after(tmp_path):
    names = []
    model = compiled()
    for _ in range(2):
        path = tf.train.Checkpoint(model=model).write(str(tmp_path / "checkpoint"))
        names.append({name for name, _ in tf.train.list_variables(path)})
        kmm.reestimate_batch_norm(model, IMAGES, batch_size=4)
    assert names[0] == names[1] and len(names[0]) > 20


@pytest.mark.parametrize("validated", [True, False])
def test_a_fit_ends_with_them(validated):
    """They are there when the last epoch is validated, and weights are as without the callback."""
    ends = []
    for callbacks in ([], [kmm.BatchNormReestimation()]):
        model = compiled(activation_bits=4, weight_bits=4)
        validation = {"validation_data": (IMAGES, LABELS)} if validated else {}
        history = model.fit(
            IMAGES, LABELS, batch_size=BATCH, epochs=2, shuffle=False, callbacks=callbacks,
            verbose=0, **validation,
        ).history  # fmt: skip
        ends.append((model, [np.array(v) for v in model.trainable_variables], history))
    (plain, weights, before), (model, same, after) = ends
    for one, other in zip(weights, same, strict=True):
        np.testing.assert_array_equal(one, other)
    found = statistics(model)
    kmm.reestimate_batch_norm(plain, IMAGES, batch_size=BATCH)
    assert_equal(found, statistics(plain))
    if validated:
        assert after["val_loss"][0] == before["val_loss"][0]
        assert after["val_loss"][1] != before["val_loss"][1]
        assert after["val_loss"][1] == pytest.approx(model.evaluate(IMAGES, LABELS, verbose=0))


@pytest.mark.slow
@pytest.mark.parametrize("batches", [32, 0])
def test_metamix_ends_with_them(batches):
    model = compiled(kmm.MetaMixModel)
    callback = kmm.MetaMixCallback(kmm.Bops(share=0.5), statistics_batches=batches, verbose=0)
    stops = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, _: setattr(model, "stop_training", epoch == 2)
    )
    model.fit(
        IMAGES, LABELS, batch_size=BATCH, epochs=9, shuffle=False, callbacks=[callback, stops],
        verbose=0,
    )  # fmt: skip
    assert callback.phases == ["bit_meta", "bit_search", "weight_training"]
    found = statistics(model)
    kmm.reestimate_batch_norm(model, IMAGES, batch_size=BATCH)
    same = [np.allclose(a, b, 1e-4, 1e-6) for a, b in zip(found, statistics(model), strict=True)]
    assert all(same) if batches else not any(same)


def test_they_need_a_model_and_the_callback_a_quantized_one():
    with pytest.raises(TypeError, match="reestimate_batch_norm"):
        kmm.reestimate_batch_norm(zoo, IMAGES)
    with pytest.raises(TypeError, match="BatchNormReestimation"):
        float_model = zoo.small_cnn(width=4)
        float_model.compile("adam", "mse")
        float_model.fit(IMAGES, LABELS, callbacks=[kmm.BatchNormReestimation()], verbose=0)

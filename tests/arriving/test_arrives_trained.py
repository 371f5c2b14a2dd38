"""A wrapped model is given data, losses, metrics and labels as the float model is."""

import keras
import numpy as np
import pytest

import keras_metamix as kmm

PHASES = {
    "MetaMix": ("bit_meta", "bit_search", "weight_training"),
    "Bit-Mixer": ("activations", "network_wide", "layer_wise"),
}
# Data, losses and labels are given in another way to each of these, or are lost in another place.
TRAINED = [
    "sequential", "list of one", "dict of one", "tuple of outputs", "dict by other names",
    "nest of outputs", "list of inputs, unsorted", "dict of inputs", "uint8",
    "frozen as a whole", "regularized norm", "activity of a relu",
]  # fmt: skip


CASES = [(name, "MetaMix") for name in TRAINED]
CASES += [(name, "Bit-Mixer") for name in ("nest of outputs", "dict of one", "regularized norm")]


def labels_of(model, x):
    return keras.tree.map_structure(np.asarray, model(x))


def enter(model, phase):
    if isinstance(model, kmm.MetaMixModel):
        model.set_objective(1e6)
        model.phase = phase
    else:
        model.stage = phase


@pytest.mark.parametrize(("name", "method"), CASES)
def test_a_step_of_each_phase_logs_what_the_float_model_does(
    name, method, models, wrap, inputs_of, recwarn
):
    float_model = models[name]()
    x = inputs_of(float_model)
    y = labels_of(float_model, x)
    float_model.compile("sgd", "mse", run_eagerly=True)
    expected = float_model.evaluate(x, y, verbose=0, return_dict=True)
    model = wrap(float_model, method)
    model.compile(keras.optimizers.SGD(1e-4), "mse", run_eagerly=True)
    kmm.calibrate(model, x)
    for phase in PHASES[method]:
        enter(model, phase)
        logs = model.train_on_batch(x, y, return_dict=True)
        assert set(expected) <= set(logs)
        assert all(np.isfinite(value) for value in logs.values())
    assert set(model.evaluate(x, y, verbose=0, return_dict=True)) == set(expected)
    predicted = float_model.predict(x, verbose=0)
    keras.tree.assert_same_structure(model.predict(x, verbose=0), predicted)
    assert not [w for w in recwarn if "structure" in str(w.message)]


LOSSES = {
    "by name": {"cls": "sparse_categorical_crossentropy", "box": "mse"},
    "in a list": ["sparse_categorical_crossentropy", "mse"],
}
GIVEN = {
    "labels by name": ("by name", dict, {}),
    "labels in a list": ("by name", list, {"metrics": {"cls": ["accuracy"]}}),
    "losses in a list": ("in a list", list, {"metrics": [["accuracy"], ["mae"]]}),
    "loss weights": ("by name", dict, {"loss_weights": {"cls": 2.0, "box": 0.5}}),
    "weighted metrics": ("by name", list, {"weighted_metrics": {"box": ["mae"]}}),
}


@pytest.fixture(scope="module")
def two_heads(models):
    return models["list of outputs"]()


@pytest.fixture(scope="module")
def wrapped(two_heads, wrap):
    return {method: wrap(two_heads, method) for method in PHASES}


@pytest.mark.parametrize("given", GIVEN)
def test_losses_metrics_and_labels_by_output(given, models, wrap, inputs_of):
    how, structure, more = GIVEN[given]
    float_model = models["list of outputs"]()
    x, model = inputs_of(float_model, 8), wrap(float_model, "MetaMix")
    labels = {"cls": np.arange(8) % 3, "box": np.ones((8, 2), "float32")}
    y = labels if structure is dict else list(labels.values())
    for each in (float_model, model):
        each.compile("sgd", LOSSES[how], run_eagerly=True, **more)
    expected = float_model.evaluate(x, y, verbose=0, return_dict=True)
    with kmm.quantizers_off():
        assert model.evaluate(x, y, verbose=0, return_dict=True) == pytest.approx(expected)
    assert set(expected) <= set(model.fit(x, y, verbose=0).history)


def test_labels_are_checked_by_output(two_heads, wrapped, inputs_of):
    model, x = wrapped["MetaMix"], inputs_of(two_heads, 8)
    model.compile("sgd", LOSSES["by name"], run_eagerly=True)
    box = np.full((8, 2), 7.0, "float32")
    for y in ({"cls": np.full(8, 3), "box": box}, [np.full(8, 3), box]):
        with pytest.raises(ValueError, match="labels: expected classes from 0 to 2"):
            model.fit(x, y, verbose=0)


def test_inputs_by_name(models, wrap, inputs_of):
    float_model = models["list of inputs, unsorted"]()
    model, x = wrap(float_model, "MetaMix"), inputs_of(float_model)
    named = dict(zip(model.input_names, x, strict=True))
    kmm.calibrate(model, named)
    np.testing.assert_array_equal(model(named), model(x))
    with kmm.quantizers_off():
        np.testing.assert_array_equal(model(named), float_model(x))


def test_only_classes_are_distilled(two_heads, wrapped, inputs_of):
    """Of two heads the one with a cross-entropy: the divergence moves nothing of the other."""
    x = inputs_of(two_heads)
    y = [np.arange(4) % 3, np.ones((4, 2), "float32")]
    mixer, meta = wrapped["Bit-Mixer"], wrapped["MetaMix"]
    for model in (mixer, meta):
        kmm.calibrate(model, x)
    mixer.compile("sgd", LOSSES["by name"], in_place_distillation=0.5, run_eagerly=True)
    assert np.all(np.isfinite(mixer.train_on_batch(x, y)))
    box = meta.network.get_layer("box").kernel
    before = np.array(box)
    meta.compile("sgd", LOSSES["by name"], teacher=two_heads, distillation=1.0, run_eagerly=True)
    meta.train_on_batch(x, y)
    np.testing.assert_array_equal(box, before)
    with pytest.raises(ValueError, match=r"categorical .* of the outputs \['cls', 'box'\]"):
        mixer.compile("sgd", "mse", in_place_distillation=0.5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "method"), [("sequential", "MetaMix"), ("nest of outputs", "Bit-Mixer")]
)
def test_fitted_by_a_callback(kind, method, models, wrap, inputs_of):
    float_model = models[kind]()
    x = inputs_of(float_model, 8)
    y = labels_of(float_model, x)
    model = wrap(float_model, method)
    bits = kmm.uniform_assignment(float_model, 4, 4)
    callback = {
        "MetaMix": lambda: kmm.MetaMixCallback(1.05 * kmm.bops(float_model, bits), verbose=0),
        "Bit-Mixer": lambda: kmm.BitMixerCallback(stage_epochs=(1, 1, 1)),
    }[method]()
    model.compile(keras.optimizers.SGD(1e-4), "mse")
    history = model.fit(
        x, y, epochs=3, verbose=0, callbacks=[callback], validation_data=(x, y)
    ).history
    assert np.all(np.isfinite(history["val_loss"]))
    predicted = model.predict(x, verbose=0)
    with kmm.quantizers_off():
        in_float = model.predict(x, verbose=0)
        expected = model(x)
    for found, wanted in zip(*map(keras.tree.flatten, (in_float, expected)), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)
    again = model.predict(x, verbose=0)
    for found, wanted in zip(*map(keras.tree.flatten, (again, predicted)), strict=True):
        np.testing.assert_array_equal(found, wanted)
    with kmm.quantizers_off(), pytest.raises(RuntimeError, match="outside of quantizers_off"):
        model.fit(x, y)

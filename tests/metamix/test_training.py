"""What one step of each phase changes, whole fits, files in each phase, and refusals."""

import os
import subprocess
import sys
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_metamix.assignment import BitAssignment, SearchSpace
from keras_metamix.graph.layer_costs import bops, uniform_assignment
from keras_metamix.layers.mode import QuantizationMode, quantization_mode
from keras_metamix.metamix import updates
from keras_metamix.metamix.callback import MetaMixCallback
from keras_metamix.metamix.model import PHASES, MetaMixModel
from keras_metamix.metamix.search import prepare_weight_training, select_bits
from keras_metamix.metamix.updates import search_update

BUDGET = 48_000
SPACES = {
    "activations": SearchSpace((8, 4, 3), 4),
    "pairs": SearchSpace((8, 4, 2), (8, 4, 2)),
    "same": SearchSpace((8, 4, 2), "same"),
}
# The network's variables in groups.
MACS = ("stem", "depthwise", "project", "logits")
KERNELS = {f"{n}/kernel" for n in MACS}
BIASES = {"logits/bias"}
NORMS = {f"{n}/{n}_bn/{v}" for n in MACS[:3] for v in ("gamma", "beta")}
STATISTICS = {f"{n}/{n}_bn/moving_{v}" for n in MACS[:3] for v in ("mean", "variance")}
STEPS = {f"{n}/{n}_input/log_step" for n in MACS}
STREAM_STEPS = {f"{n}_stream/log_step" for n in ("stem_relu", "project_bn", "logits")}
WEIGHT_STEPS = {f"{n}/weight_quantizer/log_step" for n in MACS}
ALPHAS = {"depthwise/depthwise_input/alpha", "project/project_input/alpha"}


def test_the_groups_above_are_all_variables(metamix):
    model = metamix()
    found = {v.path for v in model.network.variables if v.name not in ("bit_index", "signed")}
    groups = (KERNELS, BIASES, NORMS, STATISTICS, STEPS, STREAM_STEPS, WEIGHT_STEPS, ALPHAS)
    assert found == set().union(*groups)
    assert len(found) == sum(map(len, groups))
    assert {v.path for v in model.architecture_variables} == ALPHAS


# --- one step ---------------------------------------------------------------------------------


def test_bit_meta_trains_weights_norms_and_all_candidates_steps(metamix, batch, changes):
    # A rate at which float32 shows the update of a step that clips nothing, too.
    model = metamix(optimizer=keras.optimizers.SGD(10.0))
    changed = changes(model, lambda: model.train_step(batch))
    assert set(changed) == KERNELS | BIASES | NORMS | STATISTICS | STEPS
    for path in ("depthwise/depthwise_input/log_step", "project/project_input/log_step"):
        assert np.all(changed[path] != 0), path  # each of the three candidates


@pytest.mark.parametrize("images", [6, 7], ids=["divides", "shares one"])
def test_a_split_bit_meta_update_is_that_of_each_candidate_on_its_part(metamix, data, images):
    x, y = (part[:images] for part in data)
    size = -(-images // 3)
    starts = [0, (images - size) // 2, images - size]
    assert set().union(*(range(s, s + size) for s in starts)) == set(range(images))
    model, twin = metamix(), metamix()
    model.meta = "split"
    logs = model.train_step((x, y))
    # By hand: candidate i on part i alone, and the average of the three gradients.
    losses, sums = [], 0.0
    for index, start in enumerate(starts):
        part = slice(start, start + size)
        mode = QuantizationMode("forced", "off", streams=False, forced=index)
        with tf.GradientTape() as tape, quantization_mode(mode):
            loss = twin.compute_loss(x[part], y[part], twin(x[part], training=True))
        losses.append(float(loss))
        sums += np.array(tape.gradient(loss, twin.network.get_layer("stem").kernel.value)) / 3
    found = [float(logs[f"loss_{bits}_bits"]) for bits in (8, 4, 3)]
    np.testing.assert_allclose(found, losses, rtol=1e-5)
    moved = np.subtract(
        model.network.get_layer("stem").kernel, metamix().network.get_layer("stem").kernel
    )
    np.testing.assert_allclose(moved, -0.05 * sums, rtol=1e-3, atol=1e-6)


def test_a_split_bit_meta_trains_in_fit(metamix, data):
    model = metamix()
    callback = MetaMixCallback(BUDGET, meta="split", verbose=0)
    model.fit(*data, batch_size=8, epochs=3, callbacks=[callback], verbose=0)
    assert model.phase == "weight_training" and callback.assignment is not None
    with pytest.raises(ValueError, match=r"meta: expected one of \['whole', 'split'\]"):
        MetaMixCallback(BUDGET, meta="thirds")


def test_a_search_update_changes_the_alphas_alone(metamix, batch, changes):
    model = metamix(phase="bit_search")
    changed = changes(model, lambda: search_update(model, *batch, None))
    assert set(changed) == ALPHAS
    for path, difference in changed.items():
        assert np.all(difference != 0), path


def test_bit_search_is_a_meta_update_and_a_search_update(metamix, batch, changes):
    model = metamix(phase="bit_search", optimizer=keras.optimizers.SGD(10.0))
    logs = {}
    changed = changes(model, lambda: logs.update(model.train_step(batch)))
    assert set(changed) == KERNELS | BIASES | NORMS | STATISTICS | STEPS | ALPHAS
    assert set(logs) >= {"loss", "search_loss", "bops", "accuracy"}
    assert 46_000 < float(logs["bops"]) < 59_000
    # The meta half is bit_meta's own.
    twin = metamix(phase="bit_meta", optimizer=keras.optimizers.SGD(10.0))
    twin.train_step(batch)
    for ours, theirs in zip(model.network.variables, twin.network.variables, strict=True):
        if ours.path not in ALPHAS:
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, err_msg=ours.path)


def test_weight_training_trains_all_but_the_alphas(metamix, batch, changes):
    """Two steps: a quantizer behind one of equal step has no residual until they differ."""
    model = metamix(phase="weight_training")
    model.network.get_layer("depthwise").input_quantizer.choice.assign(4)
    changed = changes(model, lambda: [model.train_step(batch) for _ in range(2)])
    trained = KERNELS | BIASES | NORMS | STATISTICS | STEPS | STREAM_STEPS | WEIGHT_STEPS
    assert set(changed) == trained
    # Of a searched layer's steps the assigned candidate's alone.
    np.testing.assert_array_equal(
        changed["depthwise/depthwise_input/log_step"] != 0, [False, True, False]
    )
    np.testing.assert_array_equal(
        changed["project/project_input/log_step"] != 0, [True, False, False]
    )


def test_without_streams_their_place_holds_no_variables(metamix, batch, changes):
    model = metamix(SearchSpace(stream_bits=None), phase="weight_training")
    assert not any("stream" in v.path for v in model.network.variables)
    changed = changes(model, lambda: [model.train_step(batch) for _ in range(2)])
    assert set(changed) == KERNELS | BIASES | NORMS | STATISTICS | STEPS | WEIGHT_STEPS


@pytest.mark.parametrize("name", ["pairs", "same"])
def test_searched_weights_have_alphas_unless_tied_and_forced_steps(name, metamix, batch, changes):
    model = metamix(SPACES[name], phase="bit_search")
    alphas = {v.path for v in model.architecture_variables}
    own = {"depthwise/weight_quantizer/alpha", "project/weight_quantizer/alpha"}
    assert alphas == ALPHAS | (own if name == "pairs" else set())
    assert set(changes(model, lambda: search_update(model, *batch, None))) == alphas
    model.phase = "bit_meta"
    changed = changes(model, lambda: model.train_step(batch))
    assert set(changed) == KERNELS | BIASES | NORMS | STATISTICS | STEPS | WEIGHT_STEPS
    for layer in ("depthwise", "project"):  # every candidate's step of every channel
        assert np.all(np.any(changed[f"{layer}/weight_quantizer/log_step"] != 0, axis=1))


def test_pairs_rotate_through_all_nine(metamix, batch, monkeypatch):
    """Eq. 1 has |B| terms; with pairs they rotate from step to step."""
    model = metamix(SPACES["pairs"])
    searched = [x for x in model.mac_layers if x.input_quantizer.choice.searched]
    seen = []

    def spy(mode):
        if mode.activations == "forced":
            choices = [(x.input_quantizer.choice, x.weight_quantizer.choice) for x in searched]
            found = {(int(mode.forced[a]), int(mode.forced_weights[w])) for a, w in choices}
            assert len(found) == 1  # the same pair in all layers
            seen.extend(found)
        return quantization_mode(mode)

    monkeypatch.setattr(updates, "quantization_mode", spy)
    for step in range(3):
        model.train_step(batch)
        assert {a for a, _ in seen[3 * step :]} == {0, 1, 2}
    assert sorted(seen) == [(a, w) for a in range(3) for w in range(3)]


def test_weights_that_are_searched_alone_are_averaged_over(metamix, batch, changes):
    """Eq. 1 over the weights' candidates, of which there are more; the ends have their own."""
    space = SearchSpace(8, (8, 4, 3, 2), edge_weight_bits=(8, 4))
    model = metamix(space)
    layers = {layer.name: layer for layer in model.mac_layers}
    inner, end = (layers[name].weight_quantizer for name in ("project", "stem"))
    assert (inner.candidates, end.candidates) == ((8, 4, 3, 2), (8, 4))
    logs = {}
    changed = changes(model, lambda: logs.update(model.train_step(batch)))
    assert {f"loss_{bits}_weight_bits" for bits in (8, 4, 3, 2)} <= set(logs)
    for layer in layers:
        assert np.all(np.any(changed[f"{layer}/weight_quantizer/log_step"] != 0, axis=1)), layer
    alphas = {f"{layer}/weight_quantizer/alpha" for layer in layers}
    model.phase = "bit_search"
    assert set(changes(model, lambda: search_update(model, *batch, None))) == alphas


def test_weights_may_be_in_float_in_bit_meta(metamix, batch, changes):
    """As Table 1 has it; the search begins with steps of the kernels that it finds."""
    model = metamix(SPACES["pairs"])
    model = MetaMixModel.from_config(model.get_config() | {"meta_weights": "float"})
    model.compile(keras.optimizers.SGD(0.05), "sparse_categorical_crossentropy")
    model.calibrated = True
    changed = changes(model, lambda: model.train_step(batch))
    assert not any("weight_quantizer" in path for path in changed)
    assert any(path.endswith("kernel") for path in changed)
    model.phase = "bit_search"
    for layer in model.mac_layers:
        steps = np.array(layer.weight_quantizer.log_step)
        layer.weight_quantizer.initialize_steps(layer.kernel)
        np.testing.assert_array_equal(layer.weight_quantizer.log_step, steps)
    assert model.evaluation_mode().weights == "assigned"


# --- Eq. 1 ------------------------------------------------------------------------------------


def test_eq_1_is_the_average_of_the_candidates_losses(metamix, batch, loss):
    """Against three separately computed gradients, each with one bit-width assigned."""
    rate = 0.3
    model = metamix(optimizer=keras.optimizers.SGD(rate))
    reference = metamix()
    x, y = batch
    variables = reference.network.trainable_variables
    gradients, losses = [], []
    for bits in (8, 4, 3):
        reference.assign_bits(uniform_assignment(reference.network, bits, 4))
        mode = QuantizationMode(weights="off", streams=False)
        with tf.GradientTape() as tape, quantization_mode(mode):
            value = loss(y, reference.network(x, training=True))
        losses.append(float(value))
        gradients.append(tape.gradient(value, [v.value for v in variables]))
    before = [np.array(v) for v in model.network.trainable_variables]
    logs = model.train_step(batch)
    assert float(logs["loss"]) == pytest.approx(np.mean(losses), rel=1e-5)
    assert np.ptp(losses) > 1e-3  # the candidates do differ
    for i, (variable, value) in enumerate(
        zip(model.network.trainable_variables, before, strict=True)
    ):
        parts = [g[i] for g in gradients if g[i] is not None]
        mean = sum(tf.convert_to_tensor(g).numpy() for g in parts) / 3 if parts else 0.0
        np.testing.assert_allclose(
            np.array(variable), value - rate * mean, rtol=2e-4, atol=2e-6, err_msg=variable.path
        )


@pytest.mark.parametrize("strength", [0.0, 2.0])
def test_the_search_gradient_is_eq_3(strength, metamix, batch, loss):
    """The task loss of the mixture by a tape of its own, plus the cost term's closed form."""
    model, twin = (
        metamix(phase="bit_search", search_optimizer=keras.optimizers.SGD(1.0)) for _ in range(2)
    )
    model.set_objective(BUDGET, strength=strength)
    x, y = batch
    start = [np.array([0.3, -0.2, 0.1], np.float32), np.array([-0.1, 0.2, -0.4], np.float32)]
    for m in (model, twin):
        for alpha, value in zip(m.architecture_variables, start, strict=True):
            alpha.assign(value)
    alphas = [v.value for v in twin.architecture_variables]
    mode = QuantizationMode("mixture", "off", streams=False)
    with tf.GradientTape() as tape, quantization_mode(mode):
        tape.watch(alphas)
        value = loss(y, twin.network(x, training=True))
    slopes = tape.gradient(value, alphas)
    logs = search_update(model, x, y, None)
    assert float(logs["search_loss"]) == pytest.approx(float(value), rel=1e-5)
    chosen = 64 * (432 + 192) + 4 * (8 * 432 + 4 * 144)
    assert float(logs["bops"]) == pytest.approx(chosen, rel=1e-5)
    bits = np.array([8, 4, 3])
    for alpha, value, slope, macs in zip(
        model.architecture_variables, start, slopes, (432, 144), strict=True
    ):
        p = np.exp(value) / np.exp(value).sum()
        cost = np.sign(chosen - BUDGET) * macs * 4 * p * (bits - p @ bits) / BUDGET
        expected = slope.numpy() + strength * cost
        np.testing.assert_allclose(value - np.array(alpha), expected, rtol=1e-3, atol=1e-6)


# --- whole fits -------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=SPACES)
def fitted(request, tiny_model, data):
    """A fit through all phases, with how often train_step was traced in each."""
    model = MetaMixModel.from_float(tiny_model(), SPACES[request.param])
    traces, step = Counter(), model.train_step

    def counted(batch):
        traces[model.phase] += 1
        return step(batch)

    model.train_step = counted
    model.compile(
        keras.optimizers.Adam(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    target = {"activations": BUDGET, "pairs": 52_000, "same": 45_000}[request.param]
    callback = MetaMixCallback(target, meta_epochs=2, search_epochs=1, record_every=2, verbose=0)
    history = model.fit(
        *data, batch_size=8, epochs=5, callbacks=[callback], validation_data=data, verbose=0
    )
    return model, callback, history.history, traces


def test_a_fit_goes_through_the_phases(fitted):
    model, callback, history, _ = fitted
    expected = ["bit_meta", "bit_meta", "bit_search", "weight_training", "weight_training"]
    assert callback.phases == expected
    assert model.phase == "weight_training"
    assert len(history["search_loss"]) == 1
    for name in ("loss", "val_loss", "val_accuracy", "bops"):
        assert len(history[name]) == 5
        assert np.all(np.isfinite(history[name]))


def test_a_phase_is_traced_once(fitted):
    assert dict(fitted[3]) == {"bit_meta": 1, "bit_search": 1, "weight_training": 1}


def test_a_fit_meets_its_budget_and_records_what_it_chose(fitted):
    model, callback, history, _ = fitted
    assert callback.assignment == model.bit_assignment
    (budget,) = callback.budgets
    assert 0.97 * budget.limit <= bops(model, callback.assignment) <= budget.limit
    assert history["bops"][-1] == bops(model, callback.assignment)
    assert tuple(callback.assignment.activation_bits) == MACS
    for name in ("stem", "logits"):
        assert (callback.assignment[name].activation, callback.assignment[name].weight) == (8, 8)
    for layer in model.mac_layers:
        choice = layer.input_quantizer.choice
        if choice.searched:
            best = choice.candidates[int(np.argmax(np.array(choice.alpha)))]
            assert callback.argmax_assignment.activation_bits[layer.name] == best
    if 0.97 * budget.limit <= bops(model, callback.argmax_assignment) <= budget.limit:
        assert callback.assignment == callback.argmax_assignment
    if model.space.tied(edge=False):
        for name in ("depthwise", "project"):
            assert callback.assignment[name].activation == callback.assignment[name].weight


def test_the_search_is_recorded(fitted):
    model, callback, _, _ = fitted
    pairs = isinstance(model.space.weight_bits, tuple)
    names = {"depthwise", "project"}
    names |= {f"{name}/weights" for name in names} if pairs else set()
    assert [r["step"] for r in callback.probabilities] == [0, 2, 3]
    for record in callback.probabilities:
        assert set(record["layers"]) == names
        for p in record["layers"].values():
            assert len(p) == 3
            assert sum(p) == pytest.approx(1)


def test_a_second_fit_goes_on_in_weight_training(fitted, data):
    model, callback, _, traces = fitted
    again = MetaMixCallback(callback.budgets, verbose=0)
    model.fit(*data, batch_size=8, epochs=1, callbacks=[again], verbose=0)
    assert again.phases == ["weight_training"]
    assert again.assignment == model.bit_assignment == callback.assignment
    assert traces["weight_training"] == 1  # and is not traced anew


def test_fit_takes_a_dataset_and_re_estimates_statistics(metamix, data, changes):
    model = metamix(calibrated=False, run_eagerly=True)
    dataset = tf.data.Dataset.from_tensor_slices(data).batch(8)
    callback = MetaMixCallback(BUDGET, meta_epochs=0, search_epochs=1, verbose=0)
    model.fit(dataset, epochs=2, callbacks=[callback], verbose=0)
    assert model.calibrated
    assert callback.phases == ["bit_search", "weight_training"]
    assert bops(model, callback.assignment) <= BUDGET


def test_the_default_search_rate_is_one_over_the_search_steps(metamix, data):
    model = metamix(run_eagerly=True)
    callback = MetaMixCallback(BUDGET, meta_epochs=0, search_epochs=2, verbose=0)
    model.fit(*data, batch_size=8, epochs=1, callbacks=[callback], verbose=0)
    assert float(model.search_optimizer.learning_rate) == pytest.approx(1 / (2 * 3))
    own = metamix(run_eagerly=True, search_optimizer=keras.optimizers.SGD(0.123))
    own.fit(*data, batch_size=8, epochs=1, callbacks=[callback], verbose=0)
    assert float(own.search_optimizer.learning_rate) == pytest.approx(0.123)


# --- assignments by hand ----------------------------------------------------------------------


def test_set_bits_enters_weight_training(metamix, data):
    model = metamix(run_eagerly=True)
    bits = BitAssignment(
        {"stem": 8, "depthwise": 3, "project": 4, "logits": 8},
        {"stem": 8, "depthwise": 4, "project": 4, "logits": 8},
    )
    model.set_bits(bits)
    assert model.phase == "weight_training"
    assert model.bit_assignment == bits
    callback = MetaMixCallback(BUDGET, verbose=0)
    model.fit(*data, batch_size=8, epochs=1, callbacks=[callback], verbose=0)
    assert callback.phases == ["weight_training"]
    assert callback.assignment == bits == model.bit_assignment


def test_set_bits_quantizes_with_these_bits(metamix, data):
    model = metamix()
    outputs = []
    for a in (8, 4, 3):
        model.set_bits(uniform_assignment(model, a, 4))
        outputs.append(np.asarray(model(data[0])))
    for a, b in ((0, 1), (1, 2)):
        assert np.max(np.abs(outputs[a] - outputs[b])) > 1e-3


@pytest.mark.parametrize(
    ("activation", "weight", "message"),
    [
        ({"stem": 8, "other": 4}, {"stem": 8, "other": 4}, r"another model than 'tiny_metamix'"),
        ({"depthwise": 5}, {}, r"'depthwise': 5 activation bits are no candidate.*\[8, 4, 3\]"),
        ({"project": 2}, {}, r"'project': 2 activation bits"),
        ({"stem": 4}, {}, r"'stem': 4 activation bits.*\[8\]"),
        ({"depthwise": 3}, {"project": 8}, r"8 weight bits are no candidate.*\[4\]"),
    ],
    ids=str,
)
def test_bits_that_do_not_fit_are_refused_and_change_nothing(metamix, activation, weight, message):
    model = metamix()
    before = model.bit_assignment
    base = uniform_assignment(model, 4, 4)
    bits = BitAssignment(
        activation if "other" in activation else base.activation_bits | activation,
        weight if "other" in weight else base.weight_bits | weight,
    )
    with pytest.raises(ValueError, match=message):
        model.set_bits(bits)
    assert model.phase == "bit_meta"
    assert model.bit_assignment == before


def test_weight_bits_that_are_no_candidate_name_their_layer(metamix):
    model = metamix()
    base = uniform_assignment(model, 4, 4)
    with pytest.raises(ValueError, match="project"):
        model.set_bits(BitAssignment(base.activation_bits, base.weight_bits | {"project": 8}))


def test_tied_weights_refuse_another_bit_width_than_their_activation_s(metamix):
    model = metamix(SPACES["same"])
    base = uniform_assignment(model, 4, 4)
    with pytest.raises(ValueError, match="project"):
        model.set_bits(BitAssignment(base.activation_bits, base.weight_bits | {"project": 8}))


# --- files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "space"),
    [*((p, "activations") for p in PHASES), ("bit_search", "pairs"), ("weight_training", "same")],
)
def test_a_model_saved_in_a_phase_goes_on_as_if_it_had_not_been(
    phase, space, metamix, data, batch, tmp_path
):
    model = metamix(SPACES[space], phase=phase, optimizer=keras.optimizers.Adam(1e-2))
    for bits, layer in ((4, "depthwise"), (8, "project")):
        model.network.get_layer(layer).input_quantizer.choice.assign(bits)
    for _ in range(2):
        model.train_step(batch)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is MetaMixModel
    assert (loaded.phase, loaded.space, loaded.calibrated) == (phase, model.space, True)
    assert loaded.bit_assignment == model.bit_assignment
    np.testing.assert_array_equal(loaded(data[0]), model(data[0]))
    for ours, theirs in (
        (loaded.optimizer, model.optimizer),
        (loaded.search_optimizer, model.search_optimizer),
    ):
        for a, b in zip(ours.variables, theirs.variables, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=b.path)
    loaded.set_objective(BUDGET)
    model.reset_metrics()  # the mean since the epoch began is not saved
    for _ in range(2):
        logs, expected = loaded.train_step(batch), model.train_step(batch)
        for name in {"loss", "search_loss", "bops"} & set(expected):
            assert float(logs[name]) == float(expected[name]) > 0, name
    for a, b in zip(loaded.variables, model.variables, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=b.path)


def test_weights_load_into_a_fresh_model(metamix, data, tmp_path):
    model, other = (metamix(seed=s, phase="weight_training") for s in (0, 1))
    assert np.max(np.abs(np.asarray(model(data[0])) - np.asarray(other(data[0])))) > 1e-2
    model.save_weights(tmp_path / "m.weights.h5")
    other.load_weights(tmp_path / "m.weights.h5")
    np.testing.assert_array_equal(other(data[0]), model(data[0]))


@pytest.mark.parametrize("part", [0.0, 0.5, 0.98])
def test_a_truncated_file_is_an_error(part, metamix, tmp_path):
    path = tmp_path / "model.keras"
    metamix().save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises((ValueError, OSError, zipfile.BadZipFile)):
        keras.models.load_model(path)


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("calibrated", [True, False])
def test_nan_in_arrays_is_named(value, calibrated, metamix, data):
    x = data[0].copy()
    x[3, 2, 1, 0] = value
    with pytest.raises(ValueError, match="training images hold 1 NaN or Inf of 1536 values"):
        metamix(calibrated=calibrated).fit(x, data[1], verbose=0)


def test_nan_in_a_dataset_is_named(metamix, data):
    x = data[0].copy()
    x[9] = np.nan
    dataset = tf.data.Dataset.from_tensor_slices((x, data[1])).batch(8)
    callback = MetaMixCallback(BUDGET, verbose=0)
    model = metamix(run_eagerly=True)
    with pytest.raises(ValueError, match="step 2 of epoch 1, phase bit_meta: .* 64 NaN"):
        model.fit(dataset, epochs=1, callbacks=[callback], verbose=0)
    bad_first = tf.data.Dataset.from_tensor_slices((x[8:], data[1][8:])).batch(8)
    with pytest.raises(ValueError, match="calibration images hold 64 NaN or Inf"):
        metamix(calibrated=False).fit(bad_first, verbose=0)


@pytest.mark.parametrize("target", [46_847, 4.0e-9])
def test_a_budget_that_cannot_be_met_stops_before_training(target, metamix, data, changes):
    model = metamix()

    def fit():
        with pytest.raises(ValueError, match=r"Bops\(.*at least 46848.*58368"):
            model.fit(*data, callbacks=[MetaMixCallback(target)], verbose=0)

    assert changes(model, fit) == {}
    assert model.phase == "bit_meta"


def test_the_callback_refuses_other_models(tiny_model, data, loss):
    model = tiny_model()
    model.compile("sgd", loss)
    with pytest.raises(TypeError, match=r"MetaMixCallback trains a MetaMixModel.*Functional"):
        model.fit(*data, callbacks=[MetaMixCallback(BUDGET)], verbose=0)


@pytest.mark.parametrize("field", ["meta_epochs", "search_epochs"])
@pytest.mark.parametrize("value", [-1, 1.5, "1", None])
def test_the_callback_refuses_bad_epochs(field, value):
    with pytest.raises(ValueError, match=rf"{field}: expected a whole number, at least 0, found"):
        MetaMixCallback(BUDGET, **{field: value})


def test_an_unknown_cost_form_is_refused(metamix, data):
    with pytest.raises(ValueError, match=r"cost_form: expected one of.*'absolute'"):
        metamix().fit(*data, callbacks=[MetaMixCallback(BUDGET, cost_form="absolute")], verbose=0)


def test_bit_search_without_a_budget_is_refused(metamix, batch, tiny_model, loss):
    model = MetaMixModel.from_float(tiny_model(), SearchSpace())
    model.compile("sgd", loss)
    model.phase = "bit_search"
    with pytest.raises(ValueError, match=r"needs a budget.*MetaMixCallback"):
        model.train_step(batch)


def test_an_unknown_phase_is_refused(metamix):
    model = metamix()
    with pytest.raises(ValueError, match=r"expected one of \['bit_meta'.*'warm_up'"):
        model.phase = "warm_up"
    assert model.phase == "bit_meta"


# --- more than one device ---------------------------------------------------------------------

REPLICAS = """
import numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import keras
import keras_metamix as kmm

strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert strategy.num_replicas_in_sync == 2
generator = np.random.default_rng(0)
y = generator.integers(0, 4, 16)
x = (generator.normal(size=(16, 12, 12, 1)) + y[:, None, None, None]).astype("float32")
with strategy.scope():
    from keras_metamix.zoo import small_cnn
    float_model = small_cnn((12, 12, 1), 4, 2)
    model = kmm.MetaMixModel.from_float(float_model)
    model.compile(keras.optimizers.Adam(1e-3),
                  keras.losses.SparseCategoricalCrossentropy(from_logits=True))
alphas = [np.array(v) for v in model.architecture_variables]
target = kmm.bops(model, kmm.uniform_assignment(float_model, 4, 4))
callback = kmm.MetaMixCallback(target, verbose=0)
data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
history = model.fit(data, epochs=3, callbacks=[callback], verbose=0).history
assert callback.phases == ["bit_meta", "bit_search", "weight_training"], callback.phases
assert np.all(np.isfinite(history["loss"])), history
assert kmm.bops(model, callback.assignment) <= target
for before, alpha in zip(alphas, model.architecture_variables):
    assert np.any(np.array(alpha) != before)
for variable in [*model.trainable_variables, *model.architecture_variables]:
    values = [v.numpy() for v in strategy.experimental_local_results(variable.value)]
    assert len(values) == 2 and np.array_equal(*values), variable.path
print("replicas agree")

with strategy.scope():
    model.compile(keras.optimizers.SGD(0.1), model.loss)
for first in (1.0, np.nan):  # NaN in the first replica's half alone
    x[0, 0, 0] = first
    before = [np.array(v) for v in model.trainable_variables]
    model.fit(tf.data.Dataset.from_tensor_slices((x[:8], y[:8])).batch(8), verbose=0)
    moved = [np.any(np.array(v) != b) for v, b in zip(model.trainable_variables, before)]
    assert any(moved) == np.isfinite(first)
print("NaN of one stops both")
"""


@pytest.mark.slow
@pytest.mark.long
def test_two_replicas_train_through_all_phases():
    """In a process of its own: logical devices are configured before TensorFlow starts."""
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "2"}
    done = subprocess.run(
        [sys.executable, "-c", REPLICAS],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "replicas agree" in done.stdout
    assert "NaN of one stops both" in done.stdout


class _Stop(Exception):
    """Ends a fit as a crash would."""


class _CrashAt(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise _Stop


@pytest.fixture(scope="module")
def fit(metamix, data):
    """fit(*callbacks) -> (model, callback) of an epoch of each phase, and one more."""

    def run(*callbacks):
        model = metamix(optimizer=keras.optimizers.Adam(1e-2))
        callback = MetaMixCallback(BUDGET, 1, 1, verbose=0)
        settings = {"epochs": 4, "batch_size": 8, "shuffle": False, "verbose": 0}
        model.fit(*data, callbacks=[callback, *callbacks], **settings)
        return model, callback

    return run


@pytest.fixture(scope="module")
def whole(fit):
    """The model of a fit that nothing interrupts."""
    return fit()[0]


@pytest.mark.slow
@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_keras_own_backup_goes_on_in_the_phase_that_it_left(epoch, fit, whole, tmp_path):
    """The phase is saved with the weights, and is not entered a second time."""
    backup = str(tmp_path / "backup")
    with pytest.raises(_Stop):
        fit(keras.callbacks.BackupAndRestore(backup), _CrashAt(epoch))
    resumed, callback = fit(keras.callbacks.BackupAndRestore(backup))
    assert callback.phases == ["bit_search", "weight_training", "weight_training"][epoch - 1 :]
    assert resumed.bit_assignment == whole.bit_assignment
    for ours, theirs in zip(resumed.variables, whole.variables, strict=True):
        np.testing.assert_array_equal(np.array(ours), np.array(theirs), err_msg=ours.path)


# --- what a fit goes on from ------------------------------------------------------------------


def test_a_fresh_model_is_searched_whatever_keras_counts(metamix, data):
    callback = MetaMixCallback(BUDGET, verbose=0)
    metamix().fit(*data, initial_epoch=3, epochs=6, callbacks=[callback], verbose=0)
    assert callback.phases == ["bit_meta", "bit_search", "weight_training"]


def test_bits_that_another_budget_would_not_choose_are_kept_with_a_warning(metamix, data):
    model = metamix(run_eagerly=True)
    fit = {"batch_size": 8, "epochs": 1, "verbose": 0}
    model.fit(*data, callbacks=[MetaMixCallback(BUDGET, 0, 1, verbose=0)], **fit)
    kept, larger = model.bit_assignment, MetaMixCallback(57_000, verbose=0)
    chosen = select_bits(model, larger.budgets[0])
    others = sum(kept[name] != chosen[name] for name in MACS)
    assert others
    expected = rf"others for {others} of 4 layers.*select_bits.*prepare_weight_training"
    with pytest.warns(UserWarning, match=expected):
        model.fit(*data, callbacks=[larger], **fit)
    assert model.bit_assignment == kept
    model.set_bits(chosen)
    prepare_weight_training(model, data[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.fit(*data, callbacks=[larger], **fit)


def test_a_second_fit_in_the_search_follows_its_own_budget(metamix, data):
    """And not that of the step that was traced before."""
    alphas = {}
    for second in (48_000, 57_000):
        model = metamix()
        for budget in (48_000, second):
            callback = MetaMixCallback(budget, 0, 9, cost_strength=100.0, verbose=0)
            model.fit(*data, batch_size=8, epochs=1, callbacks=[callback], shuffle=False, verbose=0)
        assert model.phase == "bit_search"
        alphas[second] = np.concatenate([np.ravel(a) for a in model.architecture_variables])
    assert not np.allclose(alphas[48_000], alphas[57_000])


def test_a_smaller_budget_after_the_search_is_refused_with_what_to_do(metamix, data):
    model = metamix()
    model.fit(*data, epochs=3, callbacks=[MetaMixCallback(57_000, verbose=0)], verbose=0)
    smaller = MetaMixCallback(BUDGET, verbose=0)
    with pytest.raises(ValueError, match=r"the search of 'tiny_metamix' has ended.*select_bits"):
        model.fit(*data, epochs=1, callbacks=[smaller], verbose=0)
    model.set_bits(select_bits(model, smaller.budgets[0]))
    prepare_weight_training(model, data[0])
    model.fit(*data, epochs=1, callbacks=[smaller], verbose=0)
    assert bops(model, model.bit_assignment) <= smaller.budgets[0].limit

"""Checkpoints of one training: which stay, which are taken, and what a full disk leaves."""

import contextlib
import json
import resource
import runpy
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_metamix as kmm
from keras_metamix.diagnosis import NonFiniteError
from keras_metamix.launch.checkpoints import Checkpoints
from keras_metamix.launch.config import complete
from keras_metamix.launch.messages import EpochLines
from keras_metamix.launch.monitor import LOG, Monitor
from keras_metamix.launch.session import CHECKPOINTS, Session
from keras_metamix.zoo import small_cnn


class Counter:
    """A callback that knows something."""

    def __init__(self):
        self.seen = 0

    def get_state(self):
        return {"seen": self.seen}

    def set_state(self, state):
        self.seen = state["seen"]


class _KilledAfter(keras.callbacks.Callback):
    def __init__(self, batch):
        super().__init__()
        self.batch = batch

    def on_train_batch_end(self, batch, logs=None):
        if batch == self.batch:
            raise KeyboardInterrupt


def make_model(seed=0, width=2):
    keras.utils.set_random_seed(seed)
    model = kmm.MetaMixModel.from_float(small_cnn((12, 12, 1), 4, width))
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


@pytest.fixture
def checkpoints(tmp_path):
    """checkpoints(model) -> (Checkpoints of a folder, a callback that it keeps)."""

    def make(model, **settings):
        counter = Counter()
        found = Checkpoints(tmp_path / "run", model, [counter, object()], 10, **settings)
        return found, counter

    return make


def values(model):
    return [np.array(v) for v in (*model.variables, *model.optimizer.variables)]


def written(checkpoints, steps=(3, 6, 9)):
    """Three checkpoints of a model whose first kernel counts the steps."""
    kernel = checkpoints._trained.trainable_variables[0]
    for step in steps:
        kernel.assign(np.full(kernel.shape, step, "f"))
        checkpoints.step = step
        checkpoints.write()


def test_all_variables_come_back_in_another_model(checkpoints):
    first, counter = checkpoints(make_model(0))
    first._trained.phase = "bit_search"
    first._trained.optimizer.iterations.assign(7)
    counter.seen = 42
    written(first)
    again, other = checkpoints(make_model(1))
    assert again.restore() == 9 and not again.done
    assert other.seen == 42 and again._trained.phase == "bit_search"
    for ours, theirs in zip(values(again._trained), values(first._trained), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_two_newest_stay(checkpoints):
    found, _ = checkpoints(make_model())
    written(found)
    assert sorted(f.name for f in found.folder.glob("*.index")) == [
        "step-000000006.index",
        "step-000000009.index",
    ]
    assert len(list(found.folder.iterdir())) == 4


def test_steps_before_a_restart_are_not_trained_again(checkpoints):
    """Also where a callback has another step made when its fit begins."""
    images, labels = np.random.default_rng(0).normal(size=(40, 12, 12, 1)), np.arange(40) % 4

    def fit(stop):
        found, _ = checkpoints(make_model(), steps=3)
        found.restore()
        model = found._trained
        search = kmm.MetaMixCallback(kmm.Bops(share=0.5), 2, 0, meta="split", verbose=0)
        callbacks = [search, found, _KilledAfter(stop)]
        model.fit(images, labels, batch_size=4, shuffle=False, verbose=0, callbacks=callbacks)
        return int(model.optimizer.iterations)

    with pytest.raises(KeyboardInterrupt):
        fit(stop=4)
    assert fit(stop=None) == 10


def test_no_folder_is_step_0(checkpoints):
    assert checkpoints(make_model())[0].restore() == 0


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "no data", "index cut"])
def test_the_one_before_a_damaged_one_is_taken(damage, checkpoints, capsys):
    found, _ = checkpoints(make_model())
    written(found)
    (data,) = found.folder.glob("step-000000009.data*")
    content = bytearray(data.read_bytes())
    if damage == "cut":
        data.write_bytes(content[:-500])
    elif damage == "flipped":
        content[len(content) // 2] ^= 64
        data.write_bytes(content)
    elif damage == "empty":
        data.write_bytes(b"")
    elif damage == "no data":
        data.unlink()
    else:
        index = found.folder / "step-000000009.index"
        index.write_bytes(index.read_bytes()[:20])
    again, _ = checkpoints(make_model(1))
    assert again.restore() == 6
    assert float(np.array(again._trained.trainable_variables[0]).max()) == 6
    out = capsys.readouterr().out
    assert "step-000000009 is damaged" in out and "goes on from step 6" in out


@pytest.mark.parametrize("width", [2, 4])
def test_none_that_can_be_read_is_an_error(width, checkpoints):
    """All damaged, or all of another network."""
    found, _ = checkpoints(make_model())
    written(found)
    if width == 2:
        for data in found.folder.glob("*.data*"):
            data.write_bytes(b"")
    with pytest.raises(ValueError, match=r"run: expected a checkpoint .*found 2 that cannot be"):
        checkpoints(make_model(width=width))[0].restore()


@contextlib.contextmanager
def full_disk():
    """Files of more than 2,000 bytes cannot be written."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_leaves_the_earlier_ones(checkpoints):
    found, _ = checkpoints(make_model())
    written(found)
    before = {f: f.read_bytes() for f in found.folder.iterdir()}
    found.step = 12
    with full_disk(), pytest.raises(OSError, match="000012.*not be written.*000009 is intact"):
        found.write()
    assert {f: f.read_bytes() for f in found.folder.iterdir()} == before
    assert checkpoints(make_model(1))[0].restore() == 9


def test_a_worker_that_keeps_nothing_leaves_nothing(checkpoints):
    found, _ = checkpoints(make_model(), writes=False)
    found.write()
    assert not [*found.folder.iterdir()]
    with full_disk(), pytest.raises(OSError, match="could not be written"):
        found.write()
    assert not [*found.folder.iterdir()]


def test_a_file_in_the_folders_place_is_named(checkpoints, tmp_path):
    (tmp_path / "run").write_text("")
    found, _ = checkpoints(make_model())
    with pytest.raises(OSError, match=r"could not be written.*none before it"):
        found.write()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_not_written(value, checkpoints):
    found, _ = checkpoints(make_model())
    written(found)
    kernel = found._trained.network.get_layer("conv2").kernel
    kernel.assign(np.full(kernel.shape, value, "f"))
    found.step = 12
    with pytest.raises(NonFiniteError, match="No checkpoint at step 12: conv2/kernel"):
        found.write()
    assert not list(found.folder.glob("*12*"))


def test_minutes_and_steps(checkpoints, monkeypatch):
    found, _ = checkpoints(make_model(), steps=4, minutes=1.0)
    now = [found._written]
    monkeypatch.setattr("keras_metamix.launch.checkpoints.time.monotonic", lambda: now[0])
    steps = []
    monkeypatch.setattr(found, "write", lambda: steps.append(found.step))
    for batch in range(10):
        now[0] += 70 if batch == 6 else 1
        found.on_train_batch_end(batch, {"loss": 1.0})
        if steps and steps[-1] == found.step:
            found._written = now[0]
    assert steps == [4, 7, 8]
    found.on_train_batch_end(10, {})  # a step that was done before
    assert found.step == 10


# --- a folder of another run ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "refused"),
    [
        ("train.learning_rate", 0.1, True),
        ("seed", 7, True),
        ("space.activation_bits", (8, 4), True),
        ("export.runs", 3, False),
        ("checkpoint.minutes", 1.0, False),
        ("title", "another", False),
    ],
)
def test_a_folder_that_holds_another_experiment_is_refused(field, value, refused, tmp_path):
    file = Path(__file__).parents[2] / "configs" / "quickstart.py"
    config = runpy.run_path(str(file))["get_config"]()
    Session(complete(config), None, tmp_path).open()
    (tmp_path / CHECKPOINTS / "float").mkdir(parents=True)
    config.update_from_flattened_dict({field: value})
    other = complete(config)
    if not refused:
        Session(other, None, tmp_path).open()
        return
    with pytest.raises(ValueError, match=rf"holds an unfinished run with config\.{field}=.*found"):
        Session(other, None, tmp_path).open()
    assert (tmp_path / CHECKPOINTS / "float").is_dir()


# --- what is seen from outside ----------------------------------------------------------------


def test_the_log_forgets_what_is_done_again(tmp_path):
    lines = [
        {"training": "float", "step": 100},
        {"training": "metamix", "step": 10},
        {"training": "metamix", "step": 20},
    ]
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (tmp_path / LOG).write_text(text + '{"training": "meta')
    monitor = Monitor(tmp_path, "metamix")
    monitor.set_state({"step": 15})
    monitor.on_train_begin()
    kept = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    assert kept == lines[:2]


def test_the_log_and_tensorboard_hold_the_search(tmp_path):
    model = make_model()
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(32, 12, 12, 1)).astype("f"), generator.integers(0, 4, 32)
    budget = kmm.bops(model, kmm.uniform_assignment(model, 4, 4))
    callback = kmm.MetaMixCallback(budget, 0, 1, verbose=0)
    model.run_eagerly = True
    monitor = Monitor(tmp_path, "metamix", every=2)
    model.fit(x, y, batch_size=8, epochs=1, callbacks=[callback, monitor], verbose=0)
    lines = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    assert [(line["kind"], line["step"]) for line in lines] == [
        ("step", 2), ("step", 4), ("epoch", 4)]  # fmt: skip
    step, epoch = lines[1], lines[2]
    assert {"loss", "search_loss", "bops", "loss_8_bits", "loss_4_bits", "loss_3_bits"} <= set(step)
    mean = np.mean([step[f"loss_{b}_bits"] for b in (8, 4, 3)])
    assert abs(mean - step["loss"]) < 1.0  # one step's against the epoch's mean
    assert epoch["activation_bits"] == dict(model.bit_assignment.activation_bits)
    assert epoch["alpha_entropy"].keys() == {"conv2", "conv3"}
    for entropy in epoch["alpha_entropy"].values():
        assert 0.9 * np.log(3) < entropy <= np.log(3)
    quantizer = model.network.get_layer("conv2").input_quantizer
    assert epoch["step_size"]["conv2"] == pytest.approx(float(quantizer.step()), rel=1e-6)
    (events,) = (tmp_path / "tensorboard" / "metamix").iterdir()
    assert events.stat().st_size > 1000


@pytest.mark.parametrize(("epoch", "left"), [(0, 1), (1, 0), (2, 2), (3, 1), (4, 0), (5, 0)])
def test_epochs_left_are_those_of_the_phase(epoch, left):
    assert EpochLines("x", (2, 3, 1))._epochs_left(epoch) == left

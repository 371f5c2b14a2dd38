"""Runs that are killed, that several devices share, and whose checkpoints are damaged.

All of them are `long`; CI runs two by name.
"""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.long]
ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("resumed_run.py")
QUICKSTART = ROOT / "configs" / "quickstart.py"
MIXER = ROOT / "configs" / "bitmixer_quickstart.py"


def start(config, workdir, kill="-", *fields, workers=None, task=0):
    """A process that runs the experiment; with `workers` one of several."""
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tflite'}",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    if workers:
        cluster = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": task}}
        environment["TF_CONFIG"] = json.dumps(cluster)
    command = [sys.executable, str(SCRIPT), str(config), str(workdir), kill, *fields]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, text=True, **pipes)


def finish(process, status=0):
    """Its standard output, once it has ended as expected."""
    out, err = process.communicate(timeout=400)
    assert process.returncode == status, (process.returncode, out[-1500:], err[-3000:])
    return out if status != 1 else out + err


def ports(count):
    """Addresses that are free now."""
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    names = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
    for s in sockets:
        s.close()
    return names


def arrays(workdir):
    """Every array of model.keras: weights, batch norm, alphas, optimizers."""
    found = {}
    with zipfile.ZipFile(workdir / "model.keras") as file:
        content = h5py.File(io.BytesIO(file.read("model.weights.h5")))
        content.visititems(
            lambda name, item: (
                found.__setitem__(name, np.array(item)) if isinstance(item, h5py.Dataset) else None
            )
        )
    return found


def records(workdir):
    """What is comparable of metrics.json and of the log."""
    metrics = json.loads((workdir / "metrics.json").read_text())
    epochs = [{k: v for k, v in e.items() if k != "seconds"} for e in metrics["epochs"]]
    lines = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    log = [{k: v for k, v in line.items() if k != "time"} for line in lines]
    return epochs, (metrics["search"] or {}).get("alphas"), log


def assert_equal_runs(ours, theirs):
    """The same run to the last bit."""
    expected, found = arrays(theirs), arrays(ours)
    assert len(expected) > 60 and expected.keys() == found.keys()
    for name, array in expected.items():
        assert array.tobytes() == found[name].tobytes(), name
    for name in ("model.tflite", "float.tflite"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    assert records(ours) == records(theirs)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The experiment, not interrupted."""
    workdir = tmp_path_factory.mktemp("whole")
    finish(start(QUICKSTART, workdir))
    return workdir


def steps(seed):
    """A random step of each phase of ten steps, and a write in between."""
    random = np.random.default_rng(seed)
    float_step, *rest = (int(n) for n in random.integers(1, 10, 4))
    meta, search, weights = (f"metamix:{10 * i + n}" for i, n in enumerate(rest))
    return [
        f"float:{float_step}",
        meta,
        search,
        f"write:{random.integers(1, 4)}",
        weights,
        "export",
    ]


@pytest.mark.parametrize("seed", range(4))
def test_a_run_killed_in_every_phase_ends_as_one_that_was_not(seed, whole, tmp_path):
    for kill in steps(seed):
        finish(start(QUICKSTART, tmp_path, kill), -signal.SIGKILL)
        assert not (tmp_path / "metrics.json").exists()
    finish(start(QUICKSTART, tmp_path))
    assert_equal_runs(tmp_path, whole)
    assert not (tmp_path / "checkpoints").exists()


def test_a_split_search_killed_within_each_phase_ends_as_one_that_was_not(tmp_path):
    split = "search.meta=split"
    finish(start(QUICKSTART, tmp_path / "whole", "-", split))
    for kill in ("metamix:4", "metamix:15", "metamix:25"):
        finish(start(QUICKSTART, tmp_path / "killed", kill, split), -signal.SIGKILL)
    finish(start(QUICKSTART, tmp_path / "killed", "-", split))
    assert_equal_runs(tmp_path / "killed", tmp_path / "whole")


def test_bit_mixer_killed_in_every_stage_ends_as_one_that_was_not(tmp_path):
    finish(start(MIXER, tmp_path / "whole"))
    for kill in ("bitmixer:7", "bitmixer:14", "write:2", "bitmixer:25", "export"):
        finish(start(MIXER, tmp_path / "killed", kill), -signal.SIGKILL)
    finish(start(MIXER, tmp_path / "killed"))
    assert_equal_runs(tmp_path / "killed", tmp_path / "whole")


def test_damaged_checkpoints(whole, tmp_path):
    """The newest is cut short: the one before is taken, which is said. Then no other is left."""
    finish(start(QUICKSTART, tmp_path, "metamix:8"), -signal.SIGKILL)
    folder = tmp_path / "checkpoints" / "metamix"
    (newest,) = folder.glob("step-000000006.data*")
    newest.write_bytes(newest.read_bytes()[:-1000])
    (tmp_path / "checkpoints" / "metamix" / "step-000000009_temp").mkdir()  # a write cut off
    out = finish(start(QUICKSTART, tmp_path))
    assert "step-000000006 is damaged" in out
    assert "metamix: goes on from step 3" in out
    assert_equal_runs(tmp_path, whole)


# --- several devices --------------------------------------------------------------------------


def numbers(workdir):
    """Losses and probabilities of a run, for comparison within rounding."""
    epochs, alphas, _ = records(workdir)
    return [e["loss"] for e in epochs], alphas["history"]


def test_two_replicas_train_as_one_device(whole, tmp_path):
    finish(start(QUICKSTART, tmp_path, "-", "distribute=mirrored"))
    _assert_close(tmp_path, whole)


def test_two_workers_train_as_one_device_and_survive_a_kill(whole, tmp_path):
    """The second worker dies: the first stops with an error, and both go on later."""
    workers = ports(2)
    fields = "distribute=multi_worker", "checkpoint.steps=3"
    pair = [start(QUICKSTART, tmp_path, kill, *fields, workers=workers, task=task)
            for task, kill in enumerate(("-", "metamix:15"))]  # fmt: skip
    finish(pair[1], -signal.SIGKILL)
    out, err = pair[0].communicate(timeout=400)
    assert pair[0].returncode == 1, out
    assert "another worker has stopped, and so does this one: start all of them again" in err
    workers = ports(2)
    pair = [start(QUICKSTART, tmp_path, "-", *fields, workers=workers, task=task)
            for task in range(2)]  # fmt: skip
    out = finish(pair[0])
    finish(pair[1])
    assert "metamix: goes on from step 1" in out
    _assert_close(tmp_path, whole)


def _assert_close(ours, theirs):
    """Sums of float32 in another order: the losses agree to 1e-4 of their size or better."""
    found, expected = numbers(ours), numbers(theirs)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-3)
    for name, history in expected[1].items():
        np.testing.assert_allclose(found[1][name], history, atol=1e-3)
    assert (ours / "bits.json").read_text() == (theirs / "bits.json").read_text()

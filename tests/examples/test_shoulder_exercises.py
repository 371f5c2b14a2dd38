"""The example over time: how it reads its recordings; long, the whole of it."""

import importlib.util
import io
import pickle
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

import metamix_tflite as mt

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def example():
    """example(name) -> a module of examples/, imported from its file beside its siblings."""
    sys.path.insert(0, str(EXAMPLES))
    before = set(sys.modules)

    def load(name):
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
            sys.modules[name] = module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        return sys.modules[name]

    yield load
    sys.path.remove(str(EXAMPLES))
    for name in {path.stem for path in EXAMPLES.glob("*.py")} - before:
        sys.modules.pop(name, None)


@pytest.fixture
def wheel(tmp_path):
    """wheel(object) -> a wheel whose recordings are that object."""

    def make(held):
        file, path = io.BytesIO(), tmp_path / "seglearn.whl"
        np.save(file, np.array(held, object), allow_pickle=True)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("seglearn/data/watch_dataset.npy", file.getvalue())
        return zipfile.ZipFile(path)

    return make


def recordings(lengths, rng):
    return {
        "X": [rng.normal(size=(length, 6)) for length in lengths],
        "y": np.arange(len(lengths)) % 7,
        "subject": np.arange(len(lengths)) + 1,
    }


def test_recordings_become_windows_that_overlap_by_half(example, wheel):
    module = example("watch_recordings")
    held = recordings((127, 128, 256), np.random.default_rng(0))
    windows = module.read_windows(wheel(held))
    assert windows.exercise.tolist() == [1, 2, 2, 2]
    assert windows.subject.tolist() == [2, 3, 3, 3]
    expected = [held["X"][1], *(held["X"][2][n : n + 128] for n in (0, 64, 128))]
    np.testing.assert_array_equal(windows.motion, np.float32(expected))


def test_subjects_are_apart_and_scales_are_of_those_trained_on(example):
    module, rng = example("watch_recordings"), np.random.default_rng(0)
    held = recordings((300, 300, 300), rng)
    train, test = module.cut(*held.values()).split([2])
    assert (set(train.subject), set(test.subject)) == ({1, 3}, {2})
    np.testing.assert_allclose(train.motion.mean((0, 1)), 0, atol=1e-6)
    np.testing.assert_allclose(train.motion.std((0, 1)), 1, rtol=1e-5)
    assert np.all(np.abs(test.motion.mean((0, 1))) > 1e-4)


class Call:
    """Pickles as a call of a function."""

    def __reduce__(self):
        return print, ("called",)


def test_a_pickle_that_calls_anything_is_refused(example, wheel, capsys):
    module = example("watch_recordings")
    with pytest.raises(pickle.UnpicklingError, match=r"builtins\.print, which is refused"):
        file = io.BytesIO()
        np.save(file, np.array(Call(), object), allow_pickle=True)
        module.read_recordings(file.getvalue())
    with pytest.raises(ValueError, match=r"seglearn\.whl: expected recordings in .*'X'"):
        module.read_windows(wheel({"y": 1}))
    assert capsys.readouterr().out == ""


@pytest.mark.slow
@pytest.mark.long
def test_the_whole_example(example, tmp_path):
    module, data = example("shoulder_exercises"), example("watch_recordings")
    # The folder of an earlier run saves the download, and is all there is without a network.
    cache = EXAMPLES.parent / "runs" / "shoulder_exercises" / "wheels"
    try:
        archive = data.SEGLEARN.open(cache if cache.is_dir() else tmp_path / "wheels")
    except FileNotFoundError as error:
        pytest.skip(f"the wheel cannot be had: {error}")
    with archive:
        windows = data.read_windows(archive)
    assert len(windows.motion) == 3605
    result = module.run(tmp_path, windows)
    assert result.float_accuracy > 0.75  # 0.85; one in seven by chance
    assert result.file_accuracy > result.float_accuracy - 0.05
    assert (result.differing, result.outputs, result.delegated) == (0, 8015, True)
    assert 0.97 * result.limit <= result.bops <= result.limit
    flat = (tmp_path / "model.tflite").read_bytes()
    assert len(flat) == result.file_bytes
    assert mt.convert(keras.models.load_model(tmp_path / "model.keras")) == flat

"""The network of quantized layers by hand: a short run of the whole example."""

import importlib.util
from pathlib import Path

import keras
import pytest

import keras_metamix as kmm
import metamix_tflite as mt


@pytest.fixture(scope="module")
def example():
    """examples/by_hand.py as a module."""
    path = Path(__file__).parents[2] / "examples" / "by_hand.py"
    spec = importlib.util.spec_from_file_location("by_hand", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_its_file_is_exact_and_is_that_of_the_saved_model(example, tmp_path):
    accuracy, report = example.run(tmp_path, images=640, epochs=2)
    assert accuracy > 0.2  # of 10 classes; 0.86 after the whole run
    assert (report.outputs, report.differing, report.max_lsb) == (20_000, 0, 0)
    assert report.delegated
    flat = (tmp_path / "model.tflite").read_bytes()
    inner = dict.fromkeys(("reduce", "expand", "project"), 4)
    expected = kmm.BitAssignment(*2 * [{"stem": 8, **inner, "logits": 8}])
    mt.verify(flat, expected)
    saved = keras.models.load_model(tmp_path / "model.keras")
    assert saved.bit_assignment == expected
    assert mt.convert(saved) == flat

"""LiteRT for Microcontrollers, and a package that plays its failures."""

import importlib.util
import os

import keras
import pytest
from keras import layers

import keras_metamix as kmm
import metamix_tflite as mt
from keras_metamix.zoo.small import small_mobilenet
from metamix_tflite import devices
from metamix_tflite.devices import micro
from metamix_tflite.read.files import read_file

installed = pytest.mark.skipif(
    importlib.util.find_spec("tflite_micro") is None,
    reason="tflite-micro is not installed (pip install tflite-micro)",
)


@pytest.fixture(scope="module")
def model(quantized):
    keras.utils.set_random_seed(0)
    return quantized(small_mobilenet((12, 12, 1), width=8), 1)[0]


@installed
@pytest.mark.parametrize("io", ["float32", "int8"])
def test_a_file_runs(model, io):
    flat = mt.convert(model, weight_container="int8", io=io)
    report = devices.measure("micro", {"a": flat}, runs=4)
    (row,) = report.rows
    assert "refused" not in row and row["file_bytes"] == len(flat)
    assert 0 < row["activations_bytes"] < row["arena_bytes"]
    assert row["values"] == 4 * 10 and 0 <= row["differing"] <= row["values"]
    assert 0 <= row["largest_steps"] < 128 and 0 <= row["same_class_fraction"] <= 1


@installed
@pytest.mark.parametrize("container", ["fast", "int8"])
def test_8_bits_run_within_two_steps(quantized, everything, container):
    model, _ = quantized(everything, 0, space=kmm.SearchSpace((8,), 8))
    for io in ("float32", "int8"):
        flat = mt.convert(model, weight_container=container, io=io)
        (row,) = devices.measure("micro", {"a": flat}).rows
        assert row["largest_steps"] <= 2 and row["values"] == 20 * 3


@installed
def test_int4_convolutions_run(quantized):
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(6, 3, activation="relu", name="first")(image)
    x = layers.Conv2D(6, 3, activation="relu", name="square")(x)
    x = layers.DepthwiseConv2D(3, activation="relu", name="depthwise")(x)
    source = keras.Model(image, layers.Conv2D(2, 2, name="last")(x))
    model, _ = quantized(source, 0, space=kmm.SearchSpace((8,), 4))
    flat = mt.convert(model, weight_container="smallest")
    assert {t.name for t in read_file(flat).tensors if t.type == "INT4"} == {
        "square/weights",
        "depthwise/weights",
    }
    (row,) = devices.measure("micro", {"a": flat}).rows
    assert row["largest_steps"] <= 2


@installed
def test_int4_is_refused_in_the_runtimes_words(model):
    report = devices.measure("micro", {"a": mt.convert(model)}, runs=1)
    (row,) = report.rows
    assert "FULLY_CONNECTED" in row["refused"] and "arena_bytes" not in row
    assert any('target="micro"' in note for note in report.notes)


@installed
def test_outputs_that_tell_nothing_are_noted(model, remake):
    def edit(file):
        graph = file.subgraphs[0]
        weights = next(o for o in reversed(graph.operators) if len(o.inputs) == 3).inputs[1]
        buffer = file.buffers[graph.tensors[weights].buffer]
        buffer.data = 0 * buffer.data

    files = {
        "dead": remake(mt.convert(model, weight_container="int8"), edit),
        "alive": mt.convert(model, weight_container="int8"),
    }
    notes = devices.measure("micro", files, runs=3).notes
    assert [n.split(":")[0] for n in notes if "tell nothing" in n] == ["dead"]


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """stand_in(body of from_bytes): a package of the runtime's name."""

    def make(body):
        package = tmp_path / "tflite_micro"
        package.mkdir()
        (package / "__init__.py").write_text("")
        (package / "runtime.py").write_text(
            "import os, signal, sys, time\n\n\nclass Interpreter:\n    @classmethod\n"
            f"    def from_bytes(cls, flat, arena_size):\n        {body}\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))
        paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
        monkeypatch.setenv("PYTHONPATH", paths)

    return make


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "ended by SIGSEGV"),
        (
            "print('kernel.cc:9 type was not true.', file=sys.stderr); "
            "raise RuntimeError('TFLM failed to allocate tensors')",
            "kernel.cc:9 type was not true.",
        ),
        ("sys.exit(7)", "exit status 7"),
    ],
)
def test_a_refusal_is_a_row(stand_in, resnet, body, message):
    stand_in(body)
    (row,) = devices.measure("micro", {"a": resnet[2]}, runs=1).rows
    assert row == {"file": "a", "file_bytes": len(resnet[2]), "refused": message}


def test_a_file_that_takes_too_long_is_named(stand_in, resnet):
    stand_in("time.sleep(30)")
    with pytest.raises(OSError, match="slow: TFLM takes longer than 2 s"):
        devices.measure("micro", {"slow": resnet[2]}, runs=1, timeout=2)


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(devices.DeviceUnavailable, match=r"pip install 'keras-metamix\[micro\]'"):
        devices.measure("micro", {})


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="runs: expected at least 1, found 0"):
        micro.Options(runs=0)

"""`gpu`: what LiteRT's accelerator computes on a software Vulkan, and what is said without one."""

import ctypes
import json
import subprocess
from pathlib import Path

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from keras import layers

import keras_metamix as kmm
import metamix_tflite as mt
from metamix_tflite.devices import DeviceUnavailable, gpu, measure

SWIFTSHADER = Path("/usr/lib/chromium/vk_swiftshader_icd.json")  # of Debian's chromium-common
QUICK = {"runs": 2, "warmup": 0}


def software_vulkan():
    try:
        ctypes.CDLL("libvulkan.so.1")
    except OSError:
        return False
    return SWIFTSHADER.is_file()


needs_vulkan = pytest.mark.skipif(
    not software_vulkan(), reason="no software Vulkan: Debian's libvulkan1 and chromium-common"
)


def network(*operations):
    x = image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="first")(x)
    for operation in operations:
        x = operation(x)
    return keras.Model(image, x, name="network")


def residual(x):
    return layers.Add(name="sum")([x, layers.Conv2D(8, 3, padding="same", name="branch")(x)])


NETWORKS = {
    "pointwise": [layers.Conv2D(6, 1, name="pointwise")],
    "depthwise": [layers.DepthwiseConv2D(3, padding="same", name="depthwise")],
    "strided": [layers.Conv2D(6, 3, strides=2, padding="same", name="strided")],
    "residual": [residual],
    "head": [layers.GlobalAveragePooling2D(name="mean"), layers.Dense(5, name="logits")],
}


@pytest.fixture(scope="module")
def swiftshader():
    """swiftshader(operations, activation bits) -> the row of a network, and the notes."""

    def run(operations, bits):
        keras.utils.set_random_seed(0)
        model = kmm.MetaMixModel.from_float(network(*operations), kmm.SearchSpace((8, 4, 3, 2)))
        kmm.calibrate(model, np.random.default_rng(0).normal(size=(32, 8, 8, 3)).astype("f"))
        model.set_bits(kmm.uniform_assignment(network(*operations), bits, 4))
        files = {"model": mt.convert(model, golden=8)}
        report = measure("gpu", files, vulkan_icd=SWIFTSHADER, **QUICK)
        (row,) = report.rows
        return row, report.notes

    return run


@needs_vulkan
@pytest.mark.parametrize("bits", [8, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_accelerator_rounds_by_a_step_at_most(name, bits, swiftshader):
    row, notes = swiftshader(NETWORKS[name], bits)
    assert (row["whole_on_gpu"], row["operators_on_cpu"]) == (True, 0)
    assert row["values"] >= 40 and row["max_steps"] <= 1
    assert row["differing"] <= 0.01 * row["values"]
    assert (row["median_us"], row["low_us"], row["high_us"]) == (None, None, None)
    assert any("SwiftShader" in note for note in notes)
    assert any("latency would mean nothing" in note for note in notes)


@needs_vulkan
@pytest.mark.xfail(reason="LiteRT 2.3's accelerator: integer 1x1 convolutions with strides")
def test_strided_pointwise_convolutions(swiftshader):
    row, _ = swiftshader([layers.Conv2D(6, 1, strides=2, name="strided")], 8)
    assert row["max_steps"] <= 1


@needs_vulkan
@pytest.mark.parametrize("container", ["int8", "fast"])
def test_the_gpu_s_target_has_no_strided_pointwise_convolution(container):
    """A slice and a product in its place, which the accelerator gets right."""
    keras.utils.set_random_seed(0)
    operations = [layers.Conv2D(8, 1, strides=2, name="strided"), layers.Conv2D(8, 1, name="two")]
    model = kmm.QuantizedModel.from_float(network(*operations), 8, 2)
    kmm.calibrate(model, np.random.default_rng(0).normal(size=(32, 8, 8, 3)).astype("f"))
    flat = mt.convert(model, "gpu", container, golden=8)
    assert "FULLY_CONNECTED" in {operator.op for operator in mt.verify(flat).operators}
    (row,) = measure("gpu", {"model": flat}, vulkan_icd=SWIFTSHADER, **QUICK).rows
    assert row["values"] >= 40 and row["max_steps"] <= 1
    assert row["differing"] <= 0.01 * row["values"]


@needs_vulkan
def test_integer_ends_a_point_and_a_stranger_s_file(resnet):
    import tensorflow as tf

    from metamix_tflite.read.files import only_signature

    model, _, _, bits = resnet
    float_network = keras.Sequential([keras.Input((4, 4, 2)), layers.Conv2D(3, 3)])
    points = mt.convert(model, operating_points={"a": bits, "b": bits}, golden=2)
    files = {
        "int8": mt.convert(model, io="int8"),
        "point": only_signature(points, "b"),
        "float": tf.lite.TFLiteConverter.from_keras_model(float_network).convert(),
    }
    report = measure("gpu", files, vulkan_icd=SWIFTSHADER, precision="float16", **QUICK)
    assert [row["values"] for row in report.rows] == [20, 10, None]
    assert "Files without golden outputs were compared with nothing." in report.notes
    assert "computing in float16" in report.notes[0]


@needs_vulkan
def test_operators_that_the_cpu_runs_are_reported(resnet, remake):
    convolutions = operators = 0

    def edit(model):  # the accelerator knows CONV_2D to version 6, the CPU's kernels to 8
        nonlocal convolutions, operators
        codes = {
            number
            for number, code in enumerate(model.operatorCodes)
            if code.builtinCode == schema.BuiltinOperator.CONV_2D
        }
        for number in codes:
            model.operatorCodes[number].version = 7
        convolutions = sum(op.opcodeIndex in codes for op in model.subgraphs[0].operators)
        operators = len(model.subgraphs[0].operators)

    report = measure("gpu", {"model": remake(resnet[2], edit)}, vulkan_icd=SWIFTSHADER, **QUICK)
    (row,) = report.rows
    assert row["whole_on_gpu"] is False
    assert convolutions <= row["operators_on_cpu"] < operators  # and some beside them
    assert any("ran on the CPU" in note for note in report.notes)
    assert row["values"] == 20


@needs_vulkan
def test_a_file_that_it_fails_on_is_named():
    with pytest.raises(OSError, match="broken: the GPU fails on it|gpu: "):
        measure("gpu", {"broken": b"no file at all"}, vulkan_icd=SWIFTSHADER, **QUICK)


def test_without_a_driver_it_says_how_to_get_one(resnet, tmp_path):
    no_driver = tmp_path / "none.json"
    no_driver.write_text("{}")
    with pytest.raises(DeviceUnavailable, match=r"^gpu: no Vulkan (driver|loader) was found.*\.$"):
        measure("gpu", {"model": resnet[2]}, vulkan_icd=no_driver, **QUICK)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int8"}, "--precision: expected float32 or float16, found 'int8'"),
        ({"vulkan_icd": Path("none.json")}, "--vulkan_icd: expected a file, found no none.json"),
        ({"runs": 0}, "runs: expected at least 1, found 0"),
        ({"warmup": -1}, "warmup: expected at least 0, found -1"),
        ({"timeout": 0}, "timeout: expected at least 1, found 0"),
        ({"serial": ["a"]}, "--serial: device 'gpu' takes --precision"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        measure("gpu", {}, **options)


@pytest.fixture
def pretend(monkeypatch):
    """pretend(log, status, columns) makes the file's process end so."""

    def end(log, status=0, columns=None):
        def run(command, **_):
            if columns is not None:
                Path(command[4]).write_text(json.dumps(columns))
            return subprocess.CompletedProcess(command, status, "", log)

        monkeypatch.setattr(subprocess, "run", run)

    return end


COLUMNS = {
    "whole_on_gpu": True,
    "median_us": 9.0,
    "low_us": 8.0,
    "high_us": 10.0,
    "values": 4,
    "differing": 0,
}
ADAPTER = "I0 environment.cc:532] Selected adapter: {}, arch=x, vendor=y, adapterType={}\n"


def test_latency_of_a_real_gpu_is_shown(pretend):
    pretend(ADAPTER.format("Somebody's GPU", "Discrete GPU"), columns=COLUMNS)
    report = measure("gpu", {"a": b"", "b": b""})
    assert [row["median_us"] for row in report.rows] == [9.0, 9.0]
    assert report.notes[0] == "Somebody's GPU (Discrete GPU), computing in float32."
    assert not any("software" in note for note in report.notes)


@pytest.mark.parametrize(
    ("log", "left"),
    [
        (
            "3 operations will run on the GPU, and the remaining 5 operations will run on the CPU.",
            5,
        ),
        ("another LiteRT's words", None),
    ],
)
def test_how_many_operators_the_cpu_runs_is_read_from_the_log(log, left, pretend):
    log = ADAPTER.format("GPU", "Integrated GPU") + log
    pretend(log, columns=COLUMNS | {"whole_on_gpu": False})
    (row,) = measure("gpu", {"a": b""}).rows
    assert (row["whole_on_gpu"], row["operators_on_cpu"]) == (False, left)


@pytest.mark.parametrize(
    ("log", "status", "message"),
    [
        ("Couldn't load Vulkan: libvulkan.so.1: cannot open\nNo adapters found", 1, "no Vulkan lo"),
        ("Found no drivers!\nERROR: No adapters found", 1, "gpu: no Vulkan driver was found: inst"),
        ("ERROR: something else", 1, "accelerator did not start: ERROR: something else"),
        ("", 0, "accelerator did not start: .*without a word"),
        (
            ADAPTER.format("GPU", "Integrated GPU") + "RuntimeError: too large",
            1,
            "a: the GPU fails",
        ),
        (ADAPTER.format("GPU", "Integrated GPU"), -11, "a: the GPU fails .* SIGSEGV"),
    ],
)
def test_how_it_fails_is_one_line(log, status, message, pretend):
    pretend(log, status)
    with pytest.raises(OSError, match=message) as raised:
        measure("gpu", {"a": b""})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("kind", "software"),
    [("CPU / Software", True), ("CPU", True), ("Discrete GPU", False), ("Integrated GPU", False)],
)
def test_software_is_recognised_by_the_adapter(kind, software):
    assert gpu.is_software(kind) is software

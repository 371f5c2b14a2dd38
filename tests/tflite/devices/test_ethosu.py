"""Vela, Arm's compiler, and a program that plays what it does on other machines."""

import re
import subprocess
import sys
from pathlib import Path

import keras
import pytest
from keras import layers

import keras_metamix as kmm
import metamix_tflite as mt
from metamix_tflite import devices
from metamix_tflite.devices import ethosu
from metamix_tflite.devices.ethosu_layers import layer_prices
from metamix_tflite.read.files import read_file

VELA = Path(sys.executable).with_name("vela")
installed = pytest.mark.skipif(
    not VELA.exists(), reason="Vela is not installed (pip install ethos-u-vela)"
)
OWN = """
[System_Config.Own]
core_clock=1e9
axi0_port=Sram
axi1_port=OffChipFlash
Sram_clock_scale=1.0
Sram_burst_length=32
Sram_read_latency=32
Sram_write_latency=32
OffChipFlash_clock_scale=0.125
OffChipFlash_burst_length=128
OffChipFlash_read_latency=64
OffChipFlash_write_latency=64

[Memory_Mode.Shared]
const_mem_area=Axi1
arena_mem_area=Axi0
cache_mem_area=Axi0
"""


@pytest.fixture(scope="module")
def model(quantized):
    """A sum, a mean, depthwise and dense layers, of 8-bit activations; 4-bit weights."""
    keras.utils.set_random_seed(0)
    image = keras.Input((16, 16, 3), name="image")
    x = layers.Conv2D(16, 3, 2, "same", activation="relu", name="stem")(image)
    y = layers.DepthwiseConv2D(3, padding="same", activation="relu", name="depthwise")(x)
    x = layers.Add(name="sum")([x, layers.Conv2D(16, 1, name="project")(y)])
    x = layers.Conv2D(32, 3, padding="same", activation="relu", name="wide")(x)
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    source = keras.Model(image, layers.Dense(5, name="logits")(x))
    return quantized(source, 0, space=kmm.SearchSpace(8, (8, 4, 2)))[0]


@pytest.fixture(scope="module")
def flat(model):
    return mt.convert(model, "ethosu")


@pytest.fixture
def played(tmp_path, monkeypatch):
    """played(shell lines) -> files of a program in Vela's place: it runs them to compile."""

    def make(compiles):
        path = tmp_path / "vela"
        listed = (
            "echo ' System_Config.Ethos_U55_High_End_Embedded'; echo ' Memory_Mode.Shared_Sram'"
        )
        path.write_text(
            f'#!/bin/sh\ncase "$1" in --version) echo 9;; --list-configs) {listed};;\n'
            f"*) touch {tmp_path}/started\n{compiles};; esac\n"
        )
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
        return tmp_path

    return make


@installed
@pytest.mark.parametrize("accelerator", ["ethos-u55-32", "ethos-u65-256", "ethos-u85-256"])
def test_a_file_is_compiled(flat, accelerator):
    report = devices.measure("ethosu", {"a": flat}, accelerator=accelerator)
    whole, *kinds = report.rows
    assert whole["count"] == whole["on_npu"] == sum(row["count"] for row in kinds)
    assert whole["cycles"] == sum(row["cycles"] for row in kinds) > 0
    assert {row["operator"]: row["count"] for row in kinds}["Conv2D"] == 4  # one is the dense layer
    stored = whole["flash_bytes"] or whole["dram_bytes"]  # by the memory mode
    assert stored > whole["weights_bytes"] > 0 and whole["sram_bytes"] > 0
    (note,) = report.notes
    assert note.endswith("no NPU was run.") and f"for {accelerator}, " in note


@installed
def test_a_file_with_float_ends_leaves_them_to_the_cpu(model, flat):
    report = devices.measure("ethosu", {"f": mt.convert(model, weight_container="int8"), "i": flat})
    left = [row["operator"] for row in report.rows if row["on_npu"] < row["count"]]
    assert left == ["all", "Quantize", "Dequantize"]
    for kind, reason in (("Quantize", "Operation has .* Float32"), ("Dequantize", "Unsupported")):
        pattern = f"f: {kind} stays on the CPU: {reason}"
        assert [bool(re.match(pattern, note)) for note in report.notes].count(True) == 1
    of_float, of_int8 = (row for row in report.rows if row["operator"] == "all")
    assert of_float["count"] - 2 == of_float["on_npu"] == of_int8["on_npu"]
    assert of_float["cycles"] == of_int8["cycles"]


@installed
def test_fewer_bits_of_weights_take_less(model):
    sizes = []
    for bits in (8, 2):
        model.set_bits(kmm.uniform_assignment(model.network, 8, bits))
        flat = mt.convert(model, "ethosu", golden=0)
        sizes.append(devices.measure("ethosu", {"a": flat}).rows[0]["weights_bytes"])
    assert sizes[0] > 2 * sizes[1]


@installed
def test_layers_and_the_fixed_cost_are_the_whole(quantized):
    """With activations of 4 bits the prices of two layers have a change of scale in them."""
    keras.utils.set_random_seed(0)
    image = keras.Input((12, 12, 3), name="image")
    x = layers.Conv2D(8, 3, activation="relu", name="stem")(image)
    y = layers.Conv2D(8, 3, padding="same", activation="relu", name="one")(x)
    x = layers.Add(name="sum")([x, layers.Conv2D(8, 1, name="two")(y)])
    x = layers.Activation("sigmoid", name="table")(x)
    source = keras.Model(image, layers.Dense(5, name="logits")(layers.Flatten(name="flat")(x)))
    small = quantized(source, 0, space=kmm.SearchSpace((8, 4), 4))[0]
    small.set_bits(kmm.uniform_assignment(small.network, 4, 4))
    flat = mt.convert(small, "ethosu")
    scales = [o.op for o in read_file(flat).operators].count("MUL")
    assert scales
    vela = ethosu.compiler(ethosu.Options())
    compiled = vela.compile("a", flat)
    prices = layer_prices(flat, compiled)
    assert [*prices] == ["stem", "one", "two", "logits"]
    by_kind = dict.fromkeys(("Conv2D", "Mul", "Add", "Sigmoid"), 0)
    for operator in compiled.operators:
        by_kind[operator.kind] += operator.cycles
    assert sum(p.cycles for p in prices.values()) == by_kind["Conv2D"] + by_kind["Mul"]
    assert sum(p.weight_bytes for p in prices.values()) <= compiled.read_only_bytes
    assert all(price.weight_bytes >= 8 * 2 for price in prices.values())


@installed
def test_an_ini_of_ones_own(flat, tmp_path):
    path = tmp_path / "own.ini"
    path.write_text(OWN)
    own = {"vela_config": path, "system_config": "Own", "memory_mode": "Shared"}
    (row, *_) = devices.measure("ethosu", {"a": flat}, **own).rows
    assert row["time_us"] == pytest.approx(row["cycles"] / 1e9 * 1e6)
    with pytest.raises(ValueError, match="--memory_mode: expected one of Shared, found 'Other'"):
        devices.measure("ethosu", {"a": flat}, **own | {"memory_mode": "Other"})
    path.write_text("nothing")
    with pytest.raises(ValueError, match=r"--vela_config=.*own.ini: expected an .ini of Vela"):
        devices.measure("ethosu", {"a": flat}, **own)


@installed
def test_what_vela_compiled_is_reported_in_one_sentence(flat, tmp_path):
    (tmp_path / "model.tflite").write_bytes(flat)
    command = [VELA, "model.tflite", "--output-dir=."]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    compiled = (tmp_path / "model_vela.tflite").read_bytes()
    for call in (mt.verify, read_file, lambda f: devices.measure("ethosu", {"a": f})):
        with pytest.raises(ValueError, match=r"compiled by Vela for an Ethos-U NPU, .*made from\."):
            call(compiled)


@pytest.mark.parametrize(
    ("code", "compiler"), [("ethos-u", "Vela"), ("edgetpu-custom-op", "edgetpu_compiler")]
)
def test_custom_operators_of_compilers(resnet, remake, code, compiler):
    def edit(file):
        file.operatorCodes[0].customCode = code.encode()

    compiled = remake(resnet[2], edit)
    with pytest.raises(mt.VerificationError, match=f"^This file was compiled by {compiler} for an"):
        mt.verify(compiled)


def test_files_that_vela_does_not_take_never_reach_it(resnet, model, played):
    folder = played("exit 1")
    with pytest.raises(ValueError, match=r"^a: \d+ of its tensors are of INT4, .*=\"ethosu\""):
        devices.measure("ethosu", {"a": mt.convert(resnet[0], weight_container="smallest")})
    points = dict.fromkeys(("low", "high"), model.bit_assignment)
    with pytest.raises(ValueError, match=r"^b: expected one signature, .*a file of its own"):
        devices.measure("ethosu", {"b": mt.convert(model, "ethosu", operating_points=points)})
    assert not (folder / "started").exists()


@pytest.mark.parametrize(
    ("compiles", "message"),
    [
        ("kill -FPE $$", "^a: Vela 9 does not compile it: ended by SIGFPE"),
        ("echo 'a.b.Error: \"No good\"' >&2; exit 1", "^a: Vela 9 does not compile it: No good$"),
        ("exit 0", "^a: Vela 9 does not compile it: exit status 0"),
    ],
)
def test_a_failure_is_reported_in_velas_words(flat, played, compiles, message):
    folder = played(compiles)
    with pytest.raises(ValueError, match=message):
        devices.measure("ethosu", {"a": flat})
    assert (folder / "started").exists()


def test_a_compilation_that_takes_too_long(flat, played):
    played("sleep 30")
    with pytest.raises(OSError, match="a: Vela takes longer than 1 s"):
        devices.measure("ethosu", {"a": flat}, timeout=1)


def test_it_says_how_to_get_vela(flat, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(devices.DeviceUnavailable, match=r"pip install 'keras-metamix\[ethosu\]'"):
        devices.measure("ethosu", {"a": flat})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accelerator": "u55"}, "--accelerator: expected one of ethos-u55-32, .*found 'u55'"),
        ({"optimise": "Speed"}, "--optimise: expected one of Performance, Size, found 'Speed'"),
        (
            {"vela_config": Path("a.ini")},
            "--vela_config: expected --system_config and --memory_mode",
        ),
        ({"timeout": 0}, "timeout: expected at least 1, found 0"),
    ],
)
def test_mistakes_in_options(options, message):
    with pytest.raises(ValueError, match=message):
        devices.measure("ethosu", {}, **options)


@pytest.mark.parametrize("accelerator", ethosu.ACCELERATORS)
def test_every_accelerator_has_defaults(accelerator):
    found = ethosu.Options(accelerator)
    family = accelerator.split("-")[1].upper()
    assert f"_{family}_" in found.system_config and "Sram" in found.memory_mode

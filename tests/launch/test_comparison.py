"""`metamix-benchmark --compare`: other tools' files of the same model, made and measured."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from ml_collections import config_flags  # noqa: F401  a config file takes it
from PIL import Image

import keras_metamix as kmm
import metamix_tflite as mt
from configs import quickstart
from keras_metamix import data, zoo
from keras_metamix.launch import benchmark
from keras_metamix.launch.config import complete
from keras_metamix.launch.profile_ethosu import vela_table
from keras_metamix.report.side_by_side import comparison_markdown
from metamix_tflite.devices import ethosu

ACCELERATOR = "ethos-u55-64"
VELA = Path(sys.executable).with_name("vela").exists()
QUICK = ("--runs=5", "--warmup=1", "--calibration_images=20")
OURS = ["ours, fast", "ours, smallest"]
NPU = ["ours, int8", "ours x0.9, int8", "uniform A4W4, int8"] if VELA else []
POST_TRAINING = ["stock int8 PTQ", "LiteRT Quantizer int8", "LiteRT Quantizer w4a8"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What `metamix-train` leaves, of a float model that saw the data for a moment."""
    run = tmp_path_factory.mktemp("run")
    config = quickstart.get_config()
    config.search.budgets = (0.9,)
    (run / "config.json").write_text(json.dumps(complete(config).to_dict()))
    (images, labels), _ = data.load_extract()
    keras.utils.set_random_seed(0)
    model = zoo.small_cnn(width=8)
    images = np.asarray(data.normalize(images[:1000]))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-2), loss)
    model.fit(images, labels[:1000], batch_size=50, epochs=3, verbose=0)
    model.save(run / "float.keras")
    quantized = kmm.MetaMixModel.from_float(model, kmm.SearchSpace(8, (4, 3, 2)))
    kmm.calibrate(quantized, images[:200])
    for bits, name in ((2, "model_x0.9"), (3, "uniform"), (4, "model")):
        quantized.set_bits(kmm.uniform_assignment(model, 8, bits))
        quantized.save(run / f"{name}.keras")
    if VELA:
        table = vela_table(model, kmm.SearchSpace(8, (4, 3, 2)), ethosu.Options(ACCELERATOR))
        (run / "latency_table.json").write_text(json.dumps(table))
    return run, model, quantized


@pytest.fixture
def run(trained, tmp_path, monkeypatch):
    """A copy of it, in the working directory."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    for file in trained[0].iterdir():
        os.link(file, folder / file.name)
    return folder


@pytest.fixture
def no_tfmot(monkeypatch):
    """As where it is not installed."""
    find = importlib.util.find_spec
    absent = "tensorflow_model_optimization"
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == absent else find(n))


@pytest.mark.slow
@pytest.mark.long
def test_files_of_all_tools(run, trained, no_tfmot, command):
    flags = ("--output=side", *QUICK, *((f"--accelerator={ACCELERATOR}",) if VELA else ()))
    status, out, err = command(benchmark, "--compare=run", *flags)
    assert status == 0, err
    found = json.loads((run.parent / "side.json").read_text())
    rows = {row["name"]: row for row in found["rows"]}
    assert [*rows] == ["float", *POST_TRAINING, *OURS, *NPU]
    assert found["missing"] == [
        {
            "name": "tfmot int8 QAT",
            "reason": "tensorflow_model_optimization is missing: "
            'pip install "keras-metamix[baseline]"',
        }
    ]

    _, model, quantized = trained
    _, (images, labels) = data.load_extract()
    images = np.asarray(data.normalize(images))
    expected = {"float": model.predict(images, verbose=0)}
    expected["ours, fast"] = quantized.predict(images, verbose=0)
    for name, outputs in expected.items():
        accuracy = np.mean(outputs.argmax(-1) == labels)
        assert rows[name]["scores"]["accuracy"] == pytest.approx(accuracy, abs=2e-3)
        assert rows[name]["top1_agreement"] > 0.998
    flat = mt.convert(quantized)
    assert rows["ours, fast"]["file_bytes"] == len(flat)
    assert (run / "comparison" / "ours_fast.tflite").read_bytes() == flat
    assert found["parity"][0]["differing"] == 0

    base = rows["stock int8 PTQ"]
    assert rows["float"]["differing"] is None and base["differing"] > 0
    assert [name for name, row in rows.items() if row["delegated"]] == [
        "float", "stock int8 PTQ", "LiteRT Quantizer int8", "ours, fast", *NPU
    ]  # fmt: skip
    for name, row in rows.items():
        file = f"{'_'.join(name.lower().replace(',', '').split())}.tflite"
        assert row["file_bytes"] == (run / "comparison" / file).stat().st_size
        assert row["size_ratio"] == row["file_bytes"] / base["file_bytes"]
        assert row["latency_ratio"] == row["latency_us"] / base["latency_us"]
    for name in POST_TRAINING:  # a network that learned something, and files that kept it
        assert rows["float"]["scores"]["accuracy"] - 0.1 < rows[name]["scores"]["accuracy"] > 0.3

    if VELA:
        npu = {row["name"]: row for row in found["npu"]["rows"]}
        assert {"stock int8 PTQ", "LiteRT Quantizer int8", "ours, int8"} <= {*npu}
        assert "float" not in npu and "LiteRT Quantizer w4a8" not in npu
        assert npu["ours, int8"]["stored_ratio"] < 0.9
        assert npu["ours, int8"]["cycles"] < npu["stock int8 PTQ"]["cycles"]
        assert rows["ours, int8"]["scores"] == rows["ours, fast"]["scores"]
        predicted = {row["name"]: row for row in found["npu"]["predictions"]}
        assert [*predicted] == NPU
        for name, row in predicted.items():  # of weights that did not train
            for key in ("cycles", "stored_bytes"):
                assert len({*row[key]}) == 1 and row[key][0] == npu[name][key]
        stored = [npu[name]["stored_bytes"] for name in NPU]
        assert stored[1] < stored[2] < stored[0]
    page = (run.parent / "side.md").read_text()
    assert page == comparison_markdown(found, "side.png")
    assert "**Not measured: tfmot int8 QAT**" in page and "![" in page
    assert Image.open(run.parent / "side.png").width == 900
    assert all(str(line.split()[1]) in out for line in out.splitlines() if "wrote" in line)


@pytest.mark.slow
@pytest.mark.long  # a process that starts TensorFlow again, and trains
def test_tfmot_in_a_process_of_its_own(run, command):
    status, _, err = command(benchmark, "--compare=run", "--qat_epochs=1", *QUICK)
    assert status == 0, err
    found = json.loads((run / "comparison.json").read_text())
    assert found["missing"] == [] and found["qat_epochs"] == 1 and found["our_epochs"] == 8
    rows = {row["name"]: row for row in found["rows"]}
    row = rows["tfmot int8 QAT"]
    assert (
        row["scores"]["accuracy"] > rows["float"]["scores"]["accuracy"]
    )  # it went on training, on ten times the data
    assert row["top1_agreement"] > 0.97 and row["delegated"]
    assert "tensorflow-model-optimization" in found["run"]["versions"]


@pytest.mark.slow
@pytest.mark.long
def test_what_tfmot_cannot_take_is_said(run, command):
    inputs = keras.Input((28, 28, 1))
    x = keras.layers.Conv2D(4, 3, 2)(inputs)
    x = keras.layers.Activation("hard_silu", name="act")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(10)(x))
    quantized = kmm.MetaMixModel.from_float(model)
    kmm.calibrate(quantized, np.random.default_rng(0).normal(size=(20, 28, 28, 1)))
    quantized.set_bits(kmm.uniform_assignment(model, 8, 4))
    for name, saved in (("float.keras", model), ("model.keras", quantized)):
        (run / name).unlink()
        saved.save(run / name)
    status, _, err = command(benchmark, "--compare=run", "--qat_epochs=1", *QUICK)
    assert status == 0, err
    (missing,) = json.loads((run / "comparison.json").read_text())["missing"]
    assert missing["name"] == "tfmot int8 QAT" and "hard_silu" in missing["reason"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--compare=none",), "--compare=none: expected what metamix-train leaves there, found no"),
        (("--compare=run", "a.tflite"), "--compare: expected no MODEL.tflite beside it."),
        (("--compare=run", "--device=edgetpu"), "--compare: expected no --device beside it."),
        (("--compare=run", "--json=a"), "--compare: expected no --json beside it."),
        (("--compare=run", "--kernels=builtin"), "--kernels: device 'local with --compare' takes"),
        (("--compare=run", "--output=no/side"), "--output: expected a folder no, found none"),
        (("--compare=run", "--runs=0"), "runs: expected at least 1, found 0."),
        (("--compare=run", "--qat_epochs=0"), "qat_epochs: expected at least 1, found 0."),
        (("--compare=run", "--calibration_images=0"), "calibration_images: expected at least 1"),
        (("a.tflite", "--output=side"), "--output: expected --compare=RUN beside it."),
    ],
)
def test_wrong_flags(flags, message, run, command):
    (run.parent / "a.tflite").write_bytes(b"TFL3")
    before = {*run.parent.rglob("*")}
    status, out, err = command(benchmark, *flags)
    assert (status, out, err.count("\n")) == (1, "", 1), err
    assert err.partition(": ")[2].startswith(message)
    assert {*run.parent.rglob("*")} == before


@pytest.mark.parametrize("name", ["config.json", "float.keras", "model.keras"])
def test_a_run_that_lacks_a_file(name, run, command):
    (run / name).unlink()
    status, out, err = command(benchmark, "--compare=run")
    assert (status, out) == (1, "") and err.rstrip().endswith(f"found no {name}.")


def test_a_file_in_the_place_of_the_folder(run, command):
    (run / "comparison").touch()
    status, out, err = command(benchmark, "--compare=run", *QUICK)
    assert (status, out) == (1, "") and "--compare: expected a folder run/comparison" in err


def test_a_damaged_config(run, command):
    (run / "config.json").unlink()
    (run / "config.json").write_text("{")
    status, _, err = command(benchmark, "--compare=run")
    assert status == 1 and err.count("\n") == 1 and "config.json: " in err


def test_a_model_that_was_not_quantized(run, trained, command):
    (run / "model.keras").unlink()
    kmm.MetaMixModel.from_float(trained[1]).save(run / "model.keras")
    status, out, err = command(benchmark, "--compare=run")
    assert (status, out) == (1, "") and "model.keras: expected a model in phase" in err

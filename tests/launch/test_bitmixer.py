"""metamix-train, -export and -benchmark with a Bit-Mixer: small runs, and what is refused."""

import importlib.util
import json
import re
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_metamix as kmm
import metamix_tflite as mt
from keras_metamix import zoo
from keras_metamix.launch import benchmark, export, messages
from keras_metamix.launch import config as config_fields
from keras_metamix.launch.train import run_experiment
from keras_metamix.report import read_results

CONFIGS = Path(__file__).parents[2] / "configs"
IMAGENET = ("bitmixer_resnet18", "bitmixer_mobilenet_v2")


def load(name, argument=""):
    """A config as the launcher loads it."""
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument) if argument else module.get_config()


@pytest.fixture
def config():
    """The quickstart config with a network and schedule of seconds."""
    config = load("bitmixer_quickstart")
    config.model.name, config.model.width, config.model.stem_strides = "small_cnn", 4, 2
    config.float.epochs, config.mixer.stage_epochs = 1, (1, 1, 1)
    config.mixer.images, config.mixer.front, config.export.runs = 256, 3, 10
    config.mixer.operating_points = {"full": 1.0, "eco": 0.3}
    return config


@pytest.fixture(scope="module")
def mixer_file(tmp_path_factory):
    """A .keras of an untrained mixer with step sizes, and the bits of two points beside it."""
    folder = tmp_path_factory.mktemp("mixer")
    keras.utils.set_random_seed(0)
    model = kmm.BitMixerModel.from_float(zoo.small_cnn(width=4, stem_strides=2))
    images = np.random.default_rng(0).normal(size=(8, 28, 28, 1)).astype(np.float32)
    kmm.calibrate(model, images)
    model.stage = "layer_wise"
    model.save(folder / "mixer.keras")
    for name, bits in (("full", 4), ("eco", 2)):
        model.uniform_bits(bits).save(folder / f"{name}.json")
    return folder


@pytest.mark.slow
def test_an_experiment_writes_one_file_with_its_operating_points(config, tmp_path, capsys):
    run_experiment(config, tmp_path)
    printed = capsys.readouterr().out
    for stage in ("float", "activations", "network_wide", "layer_wise"):
        assert re.search(rf"{stage} +epoch", printed), stage
    names = ("full.bits.json", "eco.bits.json", "model.tflite", "model.keras", "pareto.png")
    for name in (*names, "metrics.json", "report.html"):
        assert (tmp_path / name).stat().st_size > 0, name
    assert not list(tmp_path.glob(".*"))  # no temporary file

    points = {n: kmm.BitAssignment.load(tmp_path / f"{n}.bits.json") for n in ("full", "eco")}
    flat = (tmp_path / "model.tflite").read_bytes()
    mt.verify(flat, points)
    results = read_results(tmp_path)
    rows = {row.name: row for row in results.rows}
    assert list(rows) == ["float", "full", "eco"]
    model = keras.models.load_model(tmp_path / "model.keras")
    low, high = (kmm.bops(model, model.uniform_bits(bits)) for bits in (2, 4))
    assert rows["full"].bops == high
    assert low <= rows["eco"].bops <= low + 0.3 * (high - low)
    for name in points:
        assert rows[name].parity.differing == 0 and rows[name].parity.delegated
        assert rows[name].scores["accuracy"] > 0.3  # ten classes, three epochs
    mixer = results.mixer
    assert [point.name for point in mixer.points[:2]] == ["full", "eco"] and mixer.unit == "BOPs"
    assert all(point.cost <= point.budget for point in mixer.points)
    for point in mixer.points[:2]:  # of the training graph: the file's, but for a rare rounding
        assert point.cost == rows[point.name].bops
        assert point.score == pytest.approx(rows[point.name].scores["accuracy"], abs=2e-3)
    assert [point.bits for point in mixer.uniform] == [4, 3, 2]
    page = (tmp_path / "report.html").read_text()
    assert "test accuracy at &#39;full&#39;" in page and "<h2>Search</h2>" not in page
    told = mt.verify(flat, points)["eco"].metadata["run"]
    assert told["title"] == config.title
    assert mt.convert(model, operating_points=points, run=told) == flat


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", ["bitmixer_resnet18", "bitmixer_mobilenet_v2"])
def test_a_smoke_run_writes_exact_operating_points(name, tmp_path):
    config = load(name, "smoke")
    config.data.dir = str(tmp_path / "tfds")
    run_experiment(config, tmp_path / "run")
    rows = read_results(tmp_path / "run").rows
    assert [row.name for row in rows] == ["float", "full", "balanced", "eco"]
    for row in rows[1:]:
        assert row.parity.differing == 0 and row.parity.delegated


@pytest.mark.parametrize("name", IMAGENET)
def test_a_recipe_has_the_published_values(name):
    config = config_fields.complete(load(name))
    assert config.space.activation_bits == (4, 3, 2) and config.space.weight_bits == "same"
    assert sum(config.mixer.stage_epochs) == 160


@pytest.mark.parametrize(
    ("section", "field", "value", "message"),
    [
        ("", "method", "metamax", "config.method: expected one of"),
        ("mixer", "batch_norm", "none", "batch_norm: expected one of"),
        ("mixer", "budget", "joules", "config.mixer.budget: expected some of bops, size, latency"),
        ("mixer", "method", "luck", "config.mixer.method: expected one of"),
        ("mixer", "operating_points", {}, "operating_points: expected at least one"),
        ("mixer", "operating_points", {"eco": -0.1}, "operating_points.eco: expected a share"),
        ("space", "weight_bits", (4, 2), "expected 'same' or one bit-width"),
        ("mixer", "colour", "red", "config.mixer.colour: no such field"),
        ("train", "optimizer", "sdg", "sdg"),
        ("export", "weight_container", "tiny", "tiny"),
    ],
)
def test_a_bad_config_is_refused_before_training(config, tmp_path, section, field, value, message):
    with config.ignore_type():
        (config[section] if section else config)[field] = value
    with pytest.raises(ValueError, match=re.escape(message)):
        run_experiment(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_export_writes_a_signature_for_each_point(mixer_file, tmp_path, capsys):
    output = tmp_path / "mixer.tflite"
    points = [f"--point={n}={mixer_file / n}.json" for n in ("full", "eco")]
    arguments = ["x", str(mixer_file / "mixer.keras"), f"--output={output}", *points]
    export.main(export.parse_flags(arguments))
    printed = capsys.readouterr().out
    assert printed.count("0 of 500 outputs differ") == 2
    bits = {n: kmm.BitAssignment.load(mixer_file / f"{n}.json") for n in ("full", "eco")}
    mt.verify(output.read_bytes(), bits)

    table = tmp_path / "times.json"
    arguments = ["x", str(output), "--runs=3", "--warmup=0", f"--json={table}"]
    benchmark.main(benchmark.parse_flags(arguments))
    rows = json.loads(table.read_text())
    assert [row["file"] for row in rows] == [f"{output}:full", f"{output}:eco"]


def test_export_writes_a_mixer_at_given_bits(mixer_file, tmp_path):
    output = tmp_path / "eco.tflite"
    bits = mixer_file / "eco.json"
    arguments = ["x", str(mixer_file / "mixer.keras"), f"--output={output}", f"--bits={bits}"]
    export.main(export.parse_flags(arguments))
    mt.verify(output.read_bytes(), kmm.BitAssignment.load(bits))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--point=eco"], "--point: expected NAME=BITS.json, found 'eco'"),
        (["--point=a={eco}", "--point=a={full}"], "expected each name once, found 'a' again"),
        (["--point=a={eco}", "--bits={full}"], "--point: expected no --bits beside it"),
        (["--point=a=nothing.json"], "nothing.json"),
    ],
)
def test_bad_points_are_refused_by_flag(mixer_file, tmp_path, capsys, flags, message):
    files = {n: mixer_file / f"{n}.json" for n in ("eco", "full")}
    flags = [flag.format(**files) for flag in flags]
    output = tmp_path / "mixer.tflite"
    arguments = ["x", str(mixer_file / "mixer.keras"), f"--output={output}", *flags]
    assert messages.exit_status(export.main, export.parse_flags(arguments)) == 1
    assert message in capsys.readouterr().err
    assert not output.exists()

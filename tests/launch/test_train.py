"""metamix-train: the quickstart config made small, and what is wrong with a config."""

import importlib.util
import re
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_metamix as kmm
import metamix_tflite as mt
from keras_metamix.data import load_extract, normalize
from keras_metamix.launch import datasets, doctor, training
from keras_metamix.launch.config import complete
from keras_metamix.launch.train import run_experiment
from keras_metamix.report import read_results

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.py"


@pytest.fixture
def config():
    """The quickstart config with a network and schedule of seconds."""
    spec = importlib.util.spec_from_file_location("quickstart", QUICKSTART)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.model.name, config.model.width, config.model.stem_strides = "small_cnn", 4, 2
    config.float.epochs, config.train.epochs, config.train.batch_size = 1, 3, 256
    config.train.uniform = False  # test_imagenet_recipes.py has one beside
    config.export.runs = 10
    return config


@pytest.mark.slow
def test_an_experiment_writes_what_its_table_says(config, tmp_path, capsys):
    config.search.budgets = (1.05,)
    run_experiment(config, tmp_path)
    printed = capsys.readouterr().out
    for name in ("bits.json", "model.keras", "model.tflite", "metrics.json", "report.html"):
        assert (tmp_path / name).stat().st_size > 0
        assert f"wrote {tmp_path / name}" in printed.replace("\n", "")
    assert not list(tmp_path.glob(".*"))  # no temporary file
    for phase in ("float", "bit_meta", "bit_search", "weight_training"):
        assert re.search(rf"{phase} +epoch", printed), phase

    results = read_results(tmp_path)
    assert [row.name for row in results.rows] == ["float", "MetaMix", "MetaMix x1.05"]
    (_, ours, further), (budget,) = results.rows, results.search.budgets
    assert [point.name for point in results.search.points] == ["MetaMix", "MetaMix x1.05"]
    point = results.search.points[1]
    assert point.cost == further.bops <= point.budget == 1.05 * budget.limit
    assert further.parity.differing == 0 and 0 < point.images < 0.2 and point.epochs == 0
    others = [tmp_path / f"model_x1.05.{kind}" for kind in ("tflite", "bits.json", "keras")]
    mt.verify(others[0].read_bytes(), kmm.BitAssignment.load(others[1]))
    assert kmm.bops(keras.models.load_model(others[2]), kmm.BitAssignment.load(others[1])) == (
        point.cost
    )
    assert "several budgets, the training" in (tmp_path / "report.html").read_text()
    assert budget.cost == "bops" and ours.bops == budget.found <= budget.limit
    assert ours.parity.differing == 0 and ours.parity.outputs == 20_000
    assert ours.scores["accuracy"] > 0.3  # ten classes, an epoch of weight training
    assert results.run.config["train"]["epochs"] == 3 and results.mixer is None

    bits = kmm.BitAssignment.load(tmp_path / "bits.json")
    flat = (tmp_path / "model.tflite").read_bytes()
    told = mt.verify(flat, bits).metadata["run"]
    assert told["title"] == config.title
    assert told["validation_accuracy"] == results.epochs[-1].validation_score
    model = keras.models.load_model(tmp_path / "model.keras")
    assert model.bit_assignment == bits
    assert kmm.bops(model, bits) == ours.bops
    assert mt.convert(model, run=told) == flat

    doctor.main(doctor.parse_flags(["metamix-doctor", str(tmp_path), "--images=64"]))
    printed = capsys.readouterr().out
    assert re.search(r"Accuracy on 64 images: quantized .*, float \d", printed)
    assert all(f"\n{layer.name} " in printed for layer in results.layers)


@pytest.mark.slow
@pytest.mark.long  # minutes: three trainings at four candidates, and a point's
def test_weight_bits_under_a_budget_of_bytes(config, tmp_path, capsys):
    config.model.name, config.model.width = "small_mobilenet", 16
    config.space.activation_bits, config.space.weight_bits = (8,), (8, 4, 3, 2)
    config.space.edge_weight_bits = (8, 4)
    config.search.target_size, config.search.budgets = "60 kB", (0.95,)
    config.search.point_epochs, config.train.uniform = 1, True
    run_experiment(config, tmp_path)
    assert "60,000 bytes" in capsys.readouterr().out
    results = read_results(tmp_path)
    assert [r.name for r in results.rows] == [
        "float", "uniform A8W4", "MetaMix", "MetaMix x0.95"
    ]  # fmt: skip
    (budget,) = results.search.budgets
    row, further = results.rows[2:]
    assert budget.cost == "size_bytes" and budget.written == row.file_bytes <= 60_000
    assert budget.found == pytest.approx(row.file_bytes, rel=0.01)
    assert further.file_bytes <= 57_000 and results.search.points[1].epochs == 1
    assert further.parity.differing == row.parity.differing == 0
    assert any(name.endswith("/weights") for name in results.search.alphas.history)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("search.budgets", (0.9, -1), r"search.budgets\[1\]: .*above 0, found -1"),
        ("search.budgets", (1e-9,), r"search.budgets=1e-09: .*expected at least \d+ BOPs"),
        ("search.target_bops", 4.0e-9, r"target_bops=4e-09: .*expected at least \d+ BOPs"),
        ("model.name", "resnet", r"config.model.name: expected one of .*found 'resnet'"),
        ("data.name", "mnist", r"config.data.name: expected one of .*found 'mnist'"),
        ("train.epochs", 2, r"config.train.epochs=2 leaves no epoch for weight training"),
        ("space.activation_bits", (9, 4), r"activation_bits: expected a bit-width .*found 9"),
        ("export.weight_container", "tiny", r"weight_container: expected one of .*'tiny'"),
    ],
)
def test_what_is_wrong_is_said_before_training(config, field, value, message, tmp_path, capsys):
    config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=message):
        run_experiment(config, tmp_path / "run")
    assert "epoch" not in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_a_folder_without_the_data_is_named(config, tmp_path, monkeypatch):
    monkeypatch.setenv("FASHION_MNIST_DIR", str(tmp_path / "nothing"))
    config.data.name, config.data.dir = "fashion_mnist", str(tmp_path / "tfds")
    with pytest.raises(FileNotFoundError, match="FASHION_MNIST_DIR.*nothing"):
        run_experiment(config, tmp_path / "run")


def pictures(batches):
    return {image.tobytes() for images, _ in batches.as_numpy_iterator() for image in images}


@pytest.mark.parametrize("held", [0.1, 250, 0])
def test_three_sets_of_images(config, held):
    """What trains, what validates that, and what measures the result have no image in common."""
    (images, _), (test_images, _) = load_extract()
    config.data.augment, config.data.validation = False, held
    found = datasets.load_data(complete(config))
    size = int(held if held >= 1 else 10_000 * held)
    assert found.counts == {"training": 10_000 - size, "validation": size, "test": 2000}
    assert found.steps == (10_000 - size) // 256
    trained = pictures(found.train.take(2 * found.steps))
    whole = {image.tobytes() for image in normalize(images)}
    tested = {image.tobytes() for image in normalize(test_images)}
    assert pictures(found.test) == tested and trained <= whole
    if not held:
        assert found.validation is None and " images and not validated; " in found.notes[0]
        return
    validated = pictures(found.validation)
    assert validated <= whole and not validated & trained and not validated & tested
    assert len(validated) > 0.98 * size  # a few images are in the set twice
    assert f" validated on {size:,} others of the training set; " in found.notes[0]


def test_images_are_enlarged(config):
    """To twice the size: along each side three quarters of the nearest pixel, one of the next."""
    config.data.augment, config.data.image_size = False, 56
    found = datasets.load_data(complete(config))
    share = np.zeros((56, 28))
    for place in range(56):
        near = place // 2
        share[place, near] += 0.75
        share[place, np.clip(near + (1 if place % 2 else -1), 0, 27)] += 0.25
    pixels = load_extract()[1][0][:50, ..., 0].astype(np.float64)
    expected = normalize(np.rint(share @ pixels @ share.T).astype(np.uint8))
    np.testing.assert_allclose(found.test_images[:50, ..., 0], expected, atol=0.012)  # 1 of 255
    assert found.train.element_spec[0].shape[1:] == found.test_images.shape[1:] == (56, 56, 1)


def test_nan_in_the_training_data_is_counted(config):
    config = complete(config)
    data = datasets.load_data(config)
    model = training.float_network(config, data)
    images, labels = next(iter(data.train))
    images = np.array(images)
    images[0, 0, 0, 0] = np.nan
    metamix = kmm.MetaMixModel.from_float(model, training.search_space(config))
    metamix.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match="1 NaN or Inf"):
        metamix.fit(images, labels, callbacks=[kmm.MetaMixCallback(1e9)])

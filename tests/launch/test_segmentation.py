"""Segmentation in an experiment: task, scores, data, and a small run from end to end."""

import json

import keras
import numpy as np
import pytest
from ml_collections import config_flags  # noqa: F401  a config file takes it

import keras_metamix as kmm
import metamix_tflite as mt
from configs import quickstart, segmentation
from keras_metamix import data, zoo
from keras_metamix.data import scenes
from keras_metamix.launch import benchmark, datasets, tasks
from keras_metamix.launch.config import complete
from keras_metamix.launch.optimization import compile_model
from keras_metamix.launch.results import Candidate, masks, measure
from keras_metamix.launch.train import run_experiment
from keras_metamix.report import read_results
from keras_metamix.report.pictures import decoded


@pytest.fixture
def config():
    return segmentation.get_config("smoke")


def one_hot(classes):
    """Logits that give the classes."""
    return np.eye(6, dtype=np.float32)[classes]


def iou_by_hand(truth, found):
    """Class by class, as it is defined."""
    shares = []
    for number in range(6):
        both = np.logical_and(truth == number, found == number).sum()
        either = np.logical_or(truth == number, found == number).sum()
        if either:
            shares.append(both / either)
    return sum(shares) / len(shares)


@pytest.mark.parametrize("most", [6, 4])  # all classes occur, or two of them nowhere
def test_scores_of_maps(most):
    generator = np.random.default_rng(most)
    truth = generator.integers(0, most, (5, 8, 9))
    found = np.where(
        generator.random(truth.shape) < 0.6, truth, generator.integers(0, most, (8, 9))
    )
    scores = tasks.SEGMENTATION.scores(one_hot(found), truth.astype(np.uint8))
    assert [*scores] == ["mean IoU", "pixel accuracy"]
    assert scores["mean IoU"] == pytest.approx(iou_by_hand(truth, found), rel=1e-12)
    assert scores["pixel accuracy"] == np.mean(truth == found)
    metric = keras.metrics.MeanIoU(6, sparse_y_pred=False)
    metric.update_state(truth, one_hot(found))
    assert float(metric.result()) == pytest.approx(scores["mean IoU"], rel=1e-6)


def test_what_classes_count():
    """One that nobody names is left out; one that only the outputs name is 0."""
    truth = np.array([[0, 0, 1, 1]])
    score = tasks.SEGMENTATION.scores
    assert score(one_hot(truth), truth)["mean IoU"] == 1
    assert score(one_hot(np.array([[0, 5, 1, 1]])), truth)["mean IoU"] == pytest.approx(0.5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_keras_measures_what_the_file_is_scored_by(config, smoothing):
    config.train.label_smoothing = smoothing
    experiment = complete(config)
    found = datasets.load_data(experiment)
    model = zoo.small_unet(found.test_images.shape[1:], found.classes, 4, 2)
    compile_model(model, experiment, 1e-3)
    told = model.evaluate(found.test, verbose=0, return_dict=True)
    scores = tasks.SEGMENTATION.scores(
        model.predict(found.test_images, verbose=0), found.test_labels
    )
    assert told["mean_iou"] == pytest.approx(scores["mean IoU"], abs=1e-4)
    assert told["accuracy"] == pytest.approx(scores["pixel accuracy"], abs=1e-4)


def test_the_data_set_names_the_task(config):
    assert datasets.task_of(complete(config)) is tasks.SEGMENTATION
    assert datasets.task_of(complete(quickstart.get_config())) is tasks.CLASSIFICATION
    labels = np.array([0, 1, 1])
    assert tasks.CLASSIFICATION.scores(one_hot([0, 1, 2]), labels) == {"accuracy": 2 / 3}


def test_no_garment_that_tests_or_validates_is_trained_on(config, monkeypatch):
    composed, made = [], scenes.compose

    def compose(images, labels, count, size, seed):
        composed.append({image.tobytes() for image in images})
        return made(images, labels, count, size, seed)

    monkeypatch.setattr(scenes, "compose", compose)
    found = datasets.load_data(complete(config))
    trained, validated, tested = composed
    (images, _), (test_images, _) = data.load_extract()
    assert tested == {image.tobytes() for image in test_images} and not tested & trained
    assert len(images) == 10_000 and 8_800 < len(trained) < 8_900 and len(validated) > 1_100
    assert len(trained & validated) < 5  # a few images are in the set twice
    assert found.counts == {"training": 64, "validation": 8, "test": 16}
    assert found.test_labels.shape == (16, 48, 48) and found.classes == 5
    assert next(found.validation.as_numpy_iterator())[1].shape == (8, 48, 48)


def test_an_image_that_cannot_be_halved_so_often(config, tmp_path):
    config.data.image_size = 50
    with pytest.raises(ValueError, match=r"multiples of 4 .*found 50 x 50"):
        run_experiment(config, tmp_path / "run")


def test_too_small_a_scene_names_the_field(config):
    config.data.image_size = 32
    with pytest.raises(ValueError, match="config.data: image_size: expected .*40"):
        datasets.load_data(complete(config))


@pytest.fixture(scope="module")
def small():
    """A U-Net of few weights, calibrated, its file and its data."""
    experiment = complete(segmentation.get_config("smoke"))
    found = datasets.load_data(experiment)
    keras.utils.set_random_seed(0)
    float_model = zoo.small_unet(found.test_images.shape[1:], found.classes, 4, 1)
    model = kmm.MetaMixModel.from_float(float_model)
    kmm.calibrate(model, found.test_images)
    model.set_bits(kmm.uniform_assignment(float_model, 4, 4))
    return experiment, found, model, Candidate("MetaMix", "m.tflite", mt.convert(model), model)


def test_a_file_is_scored_pixel_by_pixel(small):
    experiment, found, model, candidate = small
    (row,) = measure([candidate], found.test_images, found.test_labels, experiment)
    outputs = np.asarray(model(found.test_images, training=False))
    assert row.parity.differing == 0 and row.parity.outputs == outputs.size
    expected = iou_by_hand(found.test_labels, outputs.argmax(-1))
    assert row.scores["mean IoU"] == pytest.approx(expected, abs=1e-3)
    assert row.scores["pixel accuracy"] == pytest.approx(
        np.mean(outputs.argmax(-1) == found.test_labels), abs=1e-3
    )


def test_the_picture_shows_what_the_file_gives(small):
    _, found, _, candidate = small
    picture = masks(candidate, found)
    assert picture.classes == [*scenes.CLASSES]
    truth, given = (decoded(text)[..., 0] for text in (picture.truth, picture.found))
    np.testing.assert_array_equal(truth, np.concatenate([*found.test_labels[:6]], axis=1))
    classes = mt.Runner(candidate.flat).predict(found.test_images[:6]).argmax(-1)
    np.testing.assert_array_equal(given, np.concatenate([*classes], axis=1))


@pytest.mark.slow
@pytest.mark.long  # two minutes, tfmot in a process of its own among them
def test_a_segmentation_from_end_to_end(config, tmp_path, monkeypatch, command, capsys):
    monkeypatch.chdir(tmp_path)
    run_experiment(config, tmp_path / "run")
    assert "mean IoU" in capsys.readouterr().out
    results = read_results(tmp_path / "run")
    assert results.metrics == ["mean IoU", "pixel accuracy"] and results.masks is not None
    assert [row.name for row in results.rows] == ["float", "uniform A4W4", "MetaMix"]
    for row in results.rows[1:]:
        assert row.parity.differing == 0 and row.parity.delegated
        assert row.parity.outputs == 16 * 48 * 48 * 5
    assert all(0 < epoch.validation_score < 1 for epoch in results.epochs)
    assert results.search.budgets[0].found <= results.search.budgets[0].limit

    flags = ("--compare=run", "--runs=5", "--warmup=1", "--calibration_images=8", "--qat_epochs=1")
    status, _, err = command(benchmark, *flags)
    assert status == 0, err
    found = json.loads((tmp_path / "run" / "comparison.json").read_text())
    rows = {row["name"]: row for row in found["rows"]}
    assert found["metrics"] == results.metrics and found["parity"][0]["differing"] == 0
    assert rows["ours, fast"]["scores"] == results.rows[-1].scores
    assert rows["float"]["scores"] == results.rows[0].scores

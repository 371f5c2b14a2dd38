"""Figures have a bar, line or panel for each thing that they show."""

import json

import numpy as np
import pytest

import keras_metamix.report as report
from keras_metamix.report.plots import operating_points


def made(metrics):
    return report.Results.from_json(json.dumps(metrics))


def test_bits_figure_has_a_bar_for_each_layer_and_series(metrics):
    layers = metrics["layers"]
    top, bottom = report.bits_per_layer(made(metrics)).axes
    assert [bar.get_height() for bar in top.patches] == [
        layer["activation_bits"] for layer in layers
    ]
    assert [bar.get_height() for bar in bottom.patches] == [layer["macs"] for layer in layers]
    assert top.collections[0].get_offsets()[:, 1].tolist() == [
        layer["weight_bits"] for layer in layers
    ]
    assert bottom.get_yscale() == "log"


def test_alpha_figure_has_a_panel_for_each_searched_layer(metrics):
    panels = [axis for axis in report.alpha_trajectories(made(metrics)).axes if axis.get_visible()]
    assert [axis.get_title(loc="left") for axis in panels] == list(
        metrics["search"]["alphas"]["history"]
    )
    for axis in panels:
        assert len(axis.lines) == 3
        assert axis.lines[0].get_xdata()[-1] == metrics["search"]["alphas"]["steps"][-1]
        assert sum(line.get_ydata()[-1] for line in axis.lines) == pytest.approx(1)


def test_training_figure_has_budget_and_phases(metrics):
    top, bottom = report.training_curves(made(metrics)).axes
    assert [len(line.get_xdata()) for line in top.lines] == [20, 20]
    assert list(bottom.lines[1].get_ydata()) == [190_000_000] * 2
    assert len(top.patches) == len(bottom.patches) == 9  # 8 alternating epochs, then one run


def test_training_figure_has_the_latency_that_is_searched_against(latency_metrics):
    _, bottom = report.training_curves(made(latency_metrics)).axes
    curve, budget = (list(line.get_ydata()) for line in bottom.lines)
    assert curve == [230.0 - number for number in range(20)] and budget == [220.0] * 2
    assert bottom.get_ylabel() == "predicted latency"
    assert bottom.yaxis.get_major_formatter()(100, 0) == "100 µs"


def test_each_budget_has_a_panel(metrics):
    for number, epoch in enumerate(metrics["epochs"]):
        epoch["costs"]["size_bytes"] = 70_000 + number
    budget = {"cost": "size_bytes", "limit": 72_000, "found": 70_019}
    metrics["search"]["budgets"].append(budget)
    _, bops, size = report.training_curves(made(metrics)).axes
    assert list(bops.lines[1].get_ydata()) == [190_000_000] * 2
    assert list(size.lines[0].get_ydata()) == [70_000 + number for number in range(20)]
    assert list(size.lines[1].get_ydata()) == [72_000] * 2
    assert size.get_ylabel() == "file size"


def test_training_without_a_search_or_validation_is_one_curve(mixer_metrics):
    for epoch in mixer_metrics["epochs"]:
        epoch["validation_loss"] = epoch["validation_score"] = None
    figure = report.training_curves(made(mixer_metrics))
    (axis,) = figure.axes
    assert axis.get_ylabel() == "accuracy" and axis.get_xlabel() == "epoch"
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "training accuracy" in labels and "validation accuracy" not in labels


def test_pareto_has_the_points_and_the_uniform_bits(mixer_metrics):
    results = made(mixer_metrics)
    (axis,) = operating_points(results.mixer, results.metric).axes
    assert list(axis.lines[0].get_xdata()) == [70e6, 150e6, 189e6]
    assert [len(c.get_offsets()) for c in axis.collections] == [1, 1]
    assert {text.get_text() for text in axis.texts} == {"full", "eco"}
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("BOPs", "test accuracy")


def test_masks_have_a_strip_for_images_truth_and_file(mask_metrics):
    figure = report.masks(made(mask_metrics))
    strips = [axis.images[0].get_array() for axis in figure.axes]
    assert [axis.get_ylabel() for axis in figure.axes] == ["image", "truth", "file"]
    assert strips[0][1, 7].tolist() == [5 * 31] * 3  # second image, second row and column
    assert len(np.unique(strips[1].reshape(-1, 4), axis=0)) == 3
    assert len(np.unique(strips[2].reshape(-1, 4), axis=0)) == 2
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == mask_metrics["masks"]["classes"]


def test_scatter_has_a_marker_for_each_row(metrics):
    (axis,) = report.score_against_bops(made(metrics)).axes
    assert len(axis.collections) == 3
    metrics["rows"][0]["bops"] = None
    (axis,) = report.score_against_bops(made(metrics)).axes
    assert len(axis.collections) == 2 and len(axis.lines) == 2  # float accuracy and the budget

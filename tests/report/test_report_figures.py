"""Figures have a bar, line or panel for each thing that they show."""

import json

import numpy as np
import pytest

import keras_metamix.report as report
from keras_metamix.report.plots import operating_points
from keras_metamix.report.sections import rank_correlation, sections


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


def test_scatter_has_a_marker_for_each_row_but_float(metrics):
    """32 x 32 bits would squeeze the others: it is a line, with its BOPs in the legend."""
    figure = report.score_against_cost(made(metrics))
    (axis,) = figure.axes
    assert len(axis.collections) == 2 and len(axis.lines) == 2  # float accuracy and the budget
    assert axis.get_xscale() == "linear" and axis.get_xlim()[1] < 1e9
    assert "float: 91.71 %, 10.4 G BOPs" in [t.get_text() for t in figure.legends[0].get_texts()]
    metrics["rows"][1]["bops"] = 1_000_000
    (axis,) = report.score_against_cost(made(metrics)).axes
    assert axis.get_xscale() == "log"
    metrics["rows"][1]["bops"] = None
    (axis,) = report.score_against_cost(made(metrics)).axes
    assert len(axis.collections) == 1 and len(axis.lines) == 3


def test_under_a_budget_of_bytes_the_scatter_is_over_file_sizes(metrics):
    metrics["search"]["budgets"][0] |= {"cost": "size_bytes", "limit": 50_000.0}
    for epoch in metrics["epochs"]:
        epoch["costs"]["size_bytes"] = 50_000.0
    (axis,) = report.score_against_cost(made(metrics)).axes
    assert axis.get_xlabel() == "file size"
    drawn = {float(c.get_offsets()[0, 0]) for c in axis.collections}
    assert drawn == {float(row["file_bytes"]) for row in metrics["rows"][1:]}
    assert list(axis.lines[-1].get_xdata()) == [50_000.0] * 2


def test_the_bits_figure_says_what_it_is_of(metrics, mixer_metrics):
    expected = {
        "MetaMix: 4.62 bits of activations and 4.17 of weights on average, 189 M BOPs": metrics,
        "eco: 4 bits of activations and 4 of weights on average, 70.0 M BOPs": mixer_metrics,
    }
    for text, given in expected.items():
        top = report.bits_per_layer(made(given)).axes[0]
        assert top.get_title(loc="left") == f"quickstart, {text}"


def test_what_the_search_moved(metrics):
    """Bars are the last record's probabilities; the dot lies within that of the chosen bits."""
    metrics["layers"][9]["activation_bits"] = 4  # block_3_project, whose most probable are 3
    results = made(metrics)
    (axis,) = report.search_moves(results).axes
    history = metrics["search"]["alphas"]["history"]
    heights = [bar.get_height() for bar in axis.patches]
    ends = [share for records in history.values() for share in records[-1]]
    assert heights == pytest.approx(ends)
    dots = [found.get_offsets()[0] for found in axis.collections]
    assert len(dots) == len(history) == 10
    for place, (name, dot) in enumerate(zip(history, dots, strict=True)):
        chosen = [8, 4, 3].index(results.chosen_bits[name])
        below = sum(history[name][-1][:chosen])
        assert dot[0] == place and below < dot[1] < below + history[name][-1][chosen]
    (caption,) = [d.caption for d in sections(results).drawings if d.key == "moves"]
    ends = [records[-1][2] for records in history.values()]
    assert f"differ by {max(ends) - min(ends):.2f} at most" in caption
    assert "; in 1 of 10 the budget chose another than the most probable one." in caption


def test_an_analysis_has_a_figure_for_each_of_the_paper_s(analysed_metrics):
    analysis = analysed_metrics["analysis"]
    found = {
        d.key: d.draw(made(analysed_metrics)) for d in sections(made(analysed_metrics)).drawings[4:]
    }
    assert {*found} > {"instability", "distributions", "running_variance", "gaussian", "traces"}
    for axis, weights in zip(found["instability"].axes, ("float", "quantized"), strict=True):
        expected = [
            [layer[number] for layer in state["change"].values()]
            for state in analysis["instability"]["states"]
            if state["weights"] == weights
            for number in range(2)
        ]
        assert [line.get_ydata().tolist() for line in axis.lines] == expected
    panels = found["distributions"].axes
    assert [len(axis.patches) for axis in panels] == [3] * 4
    assert panels[0].patches[2].get_data().values.tolist() == [0.2, 0.6, 0.2]
    curves = found["running_variance"].axes[0].lines[:-1]
    assert {line.get_label(): line.get_ydata()[-1] for line in curves} == {
        "8 bits": 1.0,
        "random bits": 0.7,
        "bit-meta": 0.9,
    }
    signed, unsigned = found["gaussian"].axes
    assert signed.lines[1].get_ydata().tolist() == [1.0, 1.08] and len(unsigned.lines) == 1
    bits, traces, by_operation = found["traces"].axes
    macs = {layer["name"]: layer["macs"] for layer in analysed_metrics["layers"]}
    heights = [bar.get_height() for bar in traces.patches]
    assert heights[:2] == [4.0, 2.0] and np.isnan(heights[2])  # a negative estimate has no bar
    names = [*analysis["traces"]]
    assert by_operation.patches[1].get_height() == pytest.approx(2.0 / macs[names[1]])
    assert len(bits.patches) == 3


def test_ranks_agree_as_spearman_says():
    """Without ties 1 - 6 sum d^2 / (n (n^2 - 1)); with ties Pearson's of the mean ranks."""
    assert rank_correlation([1, 2, 3, 4, 5], [5, 6, 7, 8, 7.5]) == pytest.approx(1 - 6 * 2 / 120)
    ranks = np.corrcoef([1.5, 1.5, 3.5, 3.5], [1, 3, 2, 4])[0, 1]
    assert rank_correlation([3, 3, 4, 4], [10, 30, 20, 40]) == pytest.approx(ranks)

"""Reading metrics, writing the page, and the launcher: errors are named, writes are atomic."""

import json
import os
import sys

import numpy as np
import pytest
from PIL import Image

import keras_metamix.report as report
from keras_metamix.launch import report as launcher
from keras_metamix.launch.messages import exit_status
from keras_metamix.report.pictures import decoded, encoded


def made(metrics):
    return report.Results.from_json(json.dumps(metrics))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda m: m.pop("rows"), r"metrics\.json: rows is missing"),
        (
            lambda m: m["rows"][1].pop("scores"),
            r"metrics\.json: rows\[1\]\.scores is missing",
        ),
        (
            lambda m: m["rows"][0]["scores"].update(accuracy="high"),
            r"rows\[0\]\.scores\['accuracy'\]: expected a finite number, at least 0, found 'high'",
        ),
        (
            lambda m: m["rows"][0].update(average_bits=[8]),
            r"rows\[0\]\.average_bits: expected 2 values, found \[8\]",
        ),
        (
            lambda m: m["layers"][2].update(macs=True),
            r"layers\[2\]\.macs: expected a whole number, at least 0, found True",
        ),
        (
            lambda m: m["search"]["alphas"]["history"].update(head=[[1.0]]),
            r"metrics\.json: search\.alphas\.history\['head'\]: expected 400 records .* of 3 "
            "probabilities, found 1 records of",
        ),
        (lambda m: m["notes"].append(3), r"notes\[1\]: expected text, found 3"),
    ],
)  # fmt: skip
def test_malformed_metrics_are_named(metrics, tmp_path, spoil, message):
    spoil(metrics)
    file = tmp_path / "metrics.json"
    file.write_text(json.dumps(metrics))
    with pytest.raises(ValueError, match=message):
        report.read_results(file)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda m: m["search"]["budgets"][0].pop("found"),
            r"metrics: search\.budgets\[0\]\.found is missing",
        ),
        (
            lambda m: m["search"].update(budgets=[8.5]),
            r"budgets\[0\]: expected a section of fields, found 8\.5",
        ),
        (
            lambda m: m["epochs"][3]["costs"].pop("latency_us"),
            r"epochs\[3\]\.costs: missing key 'latency_us'",
        ),
    ],
)
def test_a_malformed_latency_budget_is_named(latency_metrics, spoil, message):
    made(latency_metrics)
    spoil(latency_metrics)
    with pytest.raises(ValueError, match=message):
        made(latency_metrics)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda m: m.update(metrics=[]), r"metrics: expected at least one, found none"),
        (
            lambda m: m["rows"][2]["scores"].pop("mean IoU"),
            r"rows\[2\]\.scores: missing key 'mean IoU'",
        ),
        (
            lambda m: m["masks"].update(truth="no picture"),
            r"masks\.truth: expected a PNG in base64, found something else",
        ),
        (
            lambda m: m["masks"].update(found=encoded(np.zeros((1, 4, 6, 1), np.uint8))),
            r"masks\.truth: expected pictures of one size, found",
        ),
        (
            lambda m: m["masks"].update(classes=["ground", "top"]),
            r"masks\.truth: expected numbers below 2, one for each class, found 2",
        ),
    ],
)
def test_malformed_scores_and_masks_are_named(mask_metrics, spoil, message):
    made(mask_metrics)
    spoil(mask_metrics)
    with pytest.raises(ValueError, match=message):
        made(mask_metrics)


def test_pictures_are_what_was_encoded():
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 4, 3)).astype(np.uint8)
    np.testing.assert_array_equal(decoded(encoded(images)), np.concatenate([*images], axis=1))


@pytest.mark.parametrize("kind", ["metrics", "latency_metrics", "mixer_metrics", "mask_metrics"])
def test_results_are_what_was_written(kind, request, tmp_path):
    results = made(request.getfixturevalue(kind))
    (tmp_path / "metrics.json").write_text(results.to_json())
    assert report.read_results(tmp_path) == results
    assert report.read_results(tmp_path / "metrics.json") == results
    assert json.loads(results.to_json())["rows"][1]["average_bits"] == [4.0, 4.0]


def test_a_failed_write_leaves_the_old_page(metrics, tmp_path, monkeypatch):
    page = tmp_path / "report.html"
    page.write_text("old")

    def refuse(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        report.write_report(made(metrics), page)
    assert page.read_text() == "old"
    assert list(tmp_path.iterdir()) == [page]


@pytest.fixture
def run_report(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["metamix-report"])

    def run(*arguments):
        command = ["metamix-report", *map(str, arguments)]
        return exit_status(launcher.main, launcher.parse_flags(command))

    return run


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda i: i["states"][1]["change"].update(head=[0.1]),
            r"instability\.states\[1\]\.change\['head'\]: expected 2 values, found 1",
        ),
        (
            lambda i: i["states"][0]["histogram"].pop(),
            r"states\[0\]\.histogram: expected 3 of 3 bins, found \[3, 3\]",
        ),
    ],
)
def test_a_malformed_analysis_is_named(analysed_metrics, spoil, message):
    assert made(analysed_metrics).analysis.instability.traced == "block_1_project"
    spoil(analysed_metrics["analysis"]["instability"])
    with pytest.raises(ValueError, match=message):
        made(analysed_metrics)


def test_figures_are_pictures(metrics, tmp_path, run_report):
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    assert run_report(tmp_path, f"--figures={tmp_path}") == 0
    pictures = sorted(tmp_path.glob("*.png"))
    assert {p.stem for p in pictures} == {"alphas", "epochs", "layers", "moves", "rows"}
    data = report.Results.from_json((tmp_path / "figures.json").read_bytes())
    assert data == report.read_results(tmp_path)
    for picture in pictures:
        assert Image.open(picture).size[0] >= 900


def test_launcher_writes_the_page_and_prints_the_table(metrics, tmp_path, capsys, run_report):
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    assert run_report(tmp_path) == 0
    printed = capsys.readouterr().out
    assert "MetaMix" in printed and printed.endswith(f"{tmp_path / 'report.html'}\n")
    other = tmp_path / "other.html"
    assert run_report(tmp_path / "metrics.json", f"--output={other}") == 0
    assert other.read_text() == (tmp_path / "report.html").read_text()


def test_launcher_names_a_missing_folder(metrics, tmp_path, capsys, run_report):
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    assert run_report(tmp_path, f"--output={tmp_path / 'no' / 'page.html'}") == 1
    assert f"expected a folder {tmp_path / 'no'}, found none" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, "{", "[]", "{}"])
def test_launcher_fails_in_one_line(tmp_path, capsys, content, run_report):
    file = tmp_path / "metrics.json"
    if content is not None:
        file.write_text(content)
    assert run_report(file) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith(f"metamix-report: {file}: ")

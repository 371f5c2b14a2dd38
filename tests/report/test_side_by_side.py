"""Page, table and picture of files side by side."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from keras_metamix.report.side_by_side import (
    comparison_cells,
    comparison_figure,
    comparison_markdown,
    comparison_table,
)

DOCS = Path(__file__).parents[2] / "docs"


def row(name, accuracy, size, latency, partitions=1, differing=0, steps=0):
    return {
        "name": name,
        "scores": {"accuracy": accuracy},
        "file_bytes": size,
        "size_ratio": size / 4e6,
        "latency_us": latency,
        "latency_ratio": latency / 1000,
        "delegated": partitions == 1,
        "partitions": partitions,
        "outputs": 20_000,
        "differing": differing,
        "max_steps": steps,
        "top1_agreement": 0.995,
    }


@pytest.fixture
def comparison():
    return {
        "title": "a [bold] run",
        "metrics": ["accuracy"],
        "rows": [
            row("float", 0.8765, 14e6, 1300, differing=None),
            row("stock int8 PTQ", 0.87, 4e6, 1000, differing=500, steps=3),
            row("ours, fast", 0.875, 2.6e6, 900),
            row("ours, smallest", 0.874, 2.4e6, 2000, partitions=18),
        ],
        "missing": [{"name": "tfmot int8 QAT", "reason": "layer 'act': no such layer"}],
        "parity": [{"name": "ours, fast", "differing": 0, "outputs": 20_000}],
        "images": {"test": 2000, "calibration": 200},
        "qat_epochs": 1,
        "our_epochs": 8,
        "threads": 2,
        "runs": 50,
        "notes": ["A note of the data."],
        "run": {
            "machine": "a CPU",
            "date": "2026-11-22",
            "versions": {"keras": "3.15"},
            "command": "metamix-benchmark --compare=run",
            "seconds": 61.0,
        },
    }


def test_cells(comparison):
    cells = {name: rest for name, *rest in comparison_cells(comparison)}
    assert cells["float"][1:] == ["14.0 MB (3.50x)", "1.30 ms (1.30x)", "whole", "99.50 %", "–"]
    assert cells["stock int8 PTQ"][-1] == "2.50 %, at most 3"
    assert cells["ours, fast"] == [
        "87.50 %", "2.60 MB (0.65x)", "900 µs (0.90x)", "whole", "99.50 %", "0 of 20,000"
    ]  # fmt: skip
    assert cells["ours, smallest"][3] == "18 parts"


def test_page(comparison):
    page = comparison_markdown(comparison, "side.png")
    title, conclusion, _, _, rule, *rows = page.splitlines()
    assert title == "# a [bold] run: side by side" and rule.startswith("| --- | ---: |")
    assert all(line.count("|") == 8 for line in rows[:4])
    for text in (
        "*ours, fast* takes 0.65 times the bytes and 0.90 times the latency of stock int8 PTQ",
        "Its test accuracy is 87.50 %, compared with 87.00 % for stock int8 PTQ.",
        "Of its 20,000 output values, 0 differ",
    ):
        assert text in conclusion
    for text in (
        "](side.png)",
        "**Not measured: tfmot int8 QAT**: layer 'act': no such layer",
        "tfmot trained for 1 epoch from the same float model",
        "ours trained for 8 epochs",
        "50 inferences of one image on 2 threads",
        "ours, fast: 0 of 20,000 values differ from the folded",
        "- A note of the data.",
        "a CPU, 2026-11-22; keras 3.15",
        "`metamix-benchmark --compare=run`, 1 min 1 s",
    ):
        assert text in page


def test_the_conclusion_names_tfmot_and_the_npu(comparison):
    comparison["rows"].append(row("tfmot int8 QAT", 0.88, 4e6, 1000))
    ours = {"name": "ours, int8", "cycles_ratio": 0.5, "stored_ratio": 0.25}
    ours |= {"cycles": 500, "stored_bytes": 1000, "operators": 3, "on_npu": 2}
    comparison["rows"].append(row("ours, int8", 0.875, 3.6e6, 1000))
    npu = {"accelerator": "ethos-u55-256", "compiler": "Vela 5", "rows": [ours], "predictions": []}
    conclusion = comparison_markdown(comparison | {"npu": npu}, "side.png").splitlines()[1]
    assert "87.00 % for stock int8 PTQ and 88.00 % for tfmot int8 QAT." in conclusion
    assert conclusion.endswith(
        "On ethos-u55-256, *ours, int8* is estimated to take 0.50 times the cycles and 0.25 times "
        "the stored bytes of stock int8 PTQ."
    )


def test_few_images_compare_no_accuracy(comparison):
    comparison["images"]["test"] = 16
    conclusion = comparison_markdown(comparison, "side.png").splitlines()[1]
    assert "only 16 test images, too few to compare the accuracy." in conclusion
    assert "87.50 %" not in conclusion


@pytest.mark.parametrize("numbers", sorted(DOCS.glob("comparison_*.json")), ids=lambda p: p.stem)
def test_a_page_is_that_of_its_numbers(numbers):
    page = numbers.with_suffix(".md").read_text(encoding="utf-8")
    comparison = json.loads(numbers.read_text(encoding="utf-8"))
    assert page == comparison_markdown(comparison, f"{numbers.stem}.png")


def test_a_column_for_each_metric(comparison):
    comparison["metrics"] = ["mean IoU", "pixel accuracy"]
    for found in comparison["rows"]:
        found["scores"] = {"mean IoU": 0.625, "pixel accuracy": 0.9}
    page = comparison_markdown(comparison, "side.png").splitlines()
    assert page[3].startswith("| file | test mean IoU | test pixel accuracy | size |")
    assert page[5].startswith("| float | 62.50 % | 90.00 % | 14.0 MB")
    assert comparison_figure(comparison).axes[0].get_xlabel() == "test mean IoU, %"


def test_table_shows_names_verbatim(comparison):
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(comparison_table(comparison))
    text = console.export_text()
    assert "a [bold] run: side by side" in text and "1.30 ms (1.30x)" in text


def test_picture(comparison):
    figure = comparison_figure(comparison)
    accuracy, size, latency = figure.axes
    for axis, key in ((size, "file_bytes"), (latency, "latency_us")):
        assert [bar.get_width() for bar in axis.patches] == [r[key] for r in comparison["rows"]]
    assert [t.get_text() for t in accuracy.get_yticklabels()] == [
        r["name"] for r in comparison["rows"]
    ]
    low, high = accuracy.get_xlim()
    assert low < 87.0 and high > 87.65
    colours = {tuple(bar.get_facecolor()) for bar in size.patches[2:]}
    assert len(colours) == 1 and colours.isdisjoint(
        tuple(bar.get_facecolor()) for bar in size.patches[:2]
    )


def test_equal_accuracies_have_an_axis(comparison):
    for found in comparison["rows"]:
        found["scores"] = {"accuracy": 0.0}
    low, high = comparison_figure(comparison).axes[0].get_xlim()
    assert high - low > 1

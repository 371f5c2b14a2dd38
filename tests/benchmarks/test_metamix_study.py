"""What the page of the study says of results, against sums by hand."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def page():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import metamix_study_page
    finally:
        sys.path.remove(str(BENCHMARKS))
    return metamix_study_page


def result(accuracy, bits="A4W4"):
    layers = {"stem": "A8W8", "block1_conv": bits, "logits": "A8W8"}
    return {
        "accuracy": accuracy,
        "loss": 1 - accuracy,
        "cost": 0.98,
        "bits": layers,
        "start": "metamix",
        "cpu_seconds": 1.0,
    }


def seeds(gains, spread=0.01):
    found = {}
    for seed, gain in enumerate(gains):
        chance = {f"random {n}": result(0.8 + spread * (n - 1), "A2W4") for n in range(3)}
        other = {"sensitivity, float network": result(0.81)}
        found[str(seed)] = chance | other | {"metamix": result(0.8 + gain)}
    return found


def test_an_interval_is_student_s(page):
    mean, half = page.mean_interval([1.0, 2.0, 4.0])
    assert mean == pytest.approx(7 / 3)
    # 4.3027 is the 97.5 % quantile of Student's t with two degrees of freedom.
    assert half == pytest.approx(4.30265 * np.sqrt((16 / 9 + 1 / 9 + 25 / 9) / 2 / 3), rel=1e-4)
    assert page.mean_interval([5.0]) == (5.0, float("inf"))


@pytest.mark.parametrize(
    ("gains", "seen"),
    [
        ([0.03, 0.031, 0.029], "3 seeds: better"),
        ([-0.03, -0.031, -0.029], "3 seeds: worse"),
        ([0.03, -0.03, 0.001], "3 seeds: a tie within the interval"),
        ([0.03], "one seed, which shows nothing"),
    ],
)
def test_the_first_lines_say_what_the_differences_show(gains, seen, page, tmp_path):
    results = {"float": {"0": {"float network": {"accuracy": 0.9}}}, "A842": seeds(gains)}
    study = {
        "arguments": {"data": "drawn", "batch": 8, "passes": 1.0},
        "results": {"mobilenet": results},
    }
    page.write_page(tmp_path / "study", json.loads(json.dumps(study)))
    text = (tmp_path / "study.md").read_text()
    first = next(line for line in text.splitlines() if line.startswith("- "))
    assert first.startswith("- mobilenet, A842: **metamix differs from the mean random assignment")
    assert seen in first
    assert f"{100 * np.mean(gains):+.2f}" in first
    assert "| metamix |" in text and "| random, mean |" in text
    assert (tmp_path / "study_mobilenet.png").stat().st_size > 10_000
    mean_bits = next(line for line in text.splitlines() if line.startswith("| random | 8.0"))
    assert mean_bits == "| random | 8.0 | 2.0 | 8.0 |"
    assert "took 1 s of CPU time (median of " in text

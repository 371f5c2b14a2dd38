"""Bit-Mixer's page: what its operating points cost and reach, beside uniform bit-widths."""

from __future__ import annotations

from matplotlib.figure import Figure

from keras_metamix.report import numbers, plots
from keras_metamix.report.results import Mixer, Results
from keras_metamix.report.sections import (
    RESULTS,
    Drawing,
    Fact,
    Sections,
    against,
    epochs_drawing,
    layers_drawing,
    points_against,
    rows_drawing,
)

_EPOCHS = (
    "Accuracy after each epoch; the shades are the stages. Validation accuracy is of images held "
    "out of training, at the most bits in all layers; training accuracy is of the bits that each "
    "step drew."
)
_PARETO = (
    "Test accuracy of one network over what its bits cost: the operating points of the file by "
    "name, others chosen by budget, and uniform bit-widths."
)


def sections(results: Results, mixer: Mixer) -> Sections:
    """The page's own parts."""
    names = [point.name for point in mixer.points if point.name]
    pareto = Drawing(
        "pareto",
        RESULTS,
        _PARETO,
        lambda _: draw_pareto(mixer),
        lambda _: bool(mixer.points and mixer.uniform),
    )
    layers = layers_drawing(f", at operating point {names[-1]!r}" if names else "")
    return Sections(
        budget="",
        facts=_facts(results, mixer, names),
        drawings=[pareto, rows_drawing(), layers, epochs_drawing(_EPOCHS)],
        ours=names,
    )


def draw_pareto(mixer: Mixer) -> Figure:
    """Test accuracy over cost of all points and of the uniform bit-widths."""
    return plots.pareto_front(
        [{"name": p.name, "cost": p.cost, "accuracy": p.test_accuracy} for p in mixer.points],
        [{"bits": u.bits, "cost": u.cost, "accuracy": u.test_accuracy} for u in mixer.uniform],
        mixer.unit,
        "test accuracy",
    )


def _facts(results: Results, mixer: Mixer, names: list[str]) -> list[Fact]:
    """The best and the cheapest operating point, the range of BOPs, and the one file."""
    rows = {row.name: row for row in results.rows}
    points = sorted((rows[name] for name in names if name in rows), key=lambda r: -(r.bops or 0))
    if not points:
        return []
    most, fewest, reference = points[0], points[-1], rows.get("float")
    best = f"test accuracy at {most.name!r}"
    size = f"one file with {len(points)} operating points"
    if reference is not None:
        best += points_against(reference.test_accuracy, most.test_accuracy)
        size += against(reference.file_bytes, most.file_bytes, "smaller")
    if mixer.separate_bytes:
        size += f"; {numbers.size(mixer.separate_bytes)} as files of their own"
    lost = points_against(most.test_accuracy, fewest.test_accuracy, f"{most.name!r}")
    ratio = (most.bops or 0) / fewest.bops if fewest.bops else 1
    return [
        Fact(numbers.percent(most.test_accuracy), best),
        Fact(numbers.percent(fewest.test_accuracy), f"test accuracy at {fewest.name!r}{lost}"),
        Fact(numbers.count(fewest.bops), f"BOPs at {fewest.name!r}, {numbers.ratio(ratio)} fewer"),
        Fact(numbers.size(most.file_bytes), size),
    ]

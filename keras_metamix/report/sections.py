"""What a method gives its page: head figures, drawings, a line on the budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from matplotlib.figure import Figure

from keras_metamix.report import numbers, plots
from keras_metamix.report.results import Results


@dataclasses.dataclass(frozen=True)
class Fact:
    """A number at the head of a page, and what it is."""

    value: str
    label: str


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A figure of a page.

    Attributes:
      key: its name, that of its file too.
      section: the title it stands under.
      caption: the sentence below it.
      draw: makes it.
      has_data: whether a run has what it draws.
      empty: a sentence in its place where a run has not.
    """

    key: str
    section: str
    caption: str
    draw: Callable[[Results], Figure]
    has_data: Callable[[Results], bool]
    empty: str = ""


@dataclasses.dataclass(frozen=True)
class Sections:
    """A page's own parts.

    Attributes:
      ours: names of the rows to set off.
    """

    budget: str
    facts: list[Fact]
    drawings: list[Drawing]
    ours: list[str]


RESULTS, LAYERS, TRAINING, SEARCH = "Results", "Bits per layer", "Training", "Search"


def rows_drawing() -> Drawing:
    """Test accuracy over BOPs."""
    caption = "Test accuracy of each exported file over its bit operations."
    return Drawing(
        "rows", RESULTS, caption, plots.accuracy_against_bops, lambda results: bool(results.rows)
    )


def layers_drawing(whose: str = "") -> Drawing:
    """Bits and MACs of each layer."""
    caption = (
        "Activation bits (bars) and weight bits (ticks) of each layer in network order, above its "
        f"multiply-accumulate operations{whose}."
    )
    return Drawing(
        "layers", LAYERS, caption, plots.bits_per_layer, lambda results: bool(results.layers)
    )


def epochs_drawing(caption: str) -> Drawing:
    """Accuracy and costs of each epoch."""
    return Drawing(
        "epochs",
        TRAINING,
        caption,
        plots.training_curves,
        lambda results: bool(results.epochs),
        "No epochs were recorded.",
    )


def against(reference: float, ours: float, better: str, whom: str = "float") -> str:
    """`, 3.90x smaller than float`; a loss is called one: `, 1.20x slower than float`."""
    if not ours or not reference:
        return ""
    if ours <= reference:
        return f", {numbers.ratio(reference / ours)} {better} than {whom}"
    worse = {"smaller": "larger", "faster": "slower"}[better]
    return f", {numbers.ratio(ours / reference)} {worse} than {whom}"


def points_against(reference: float, ours: float, whom: str = "float") -> str:
    """`, -0.69 points against float`."""
    return f", {100 * (ours - reference):+.2f} points against {whom}"

"""Operating points: assignments of bits with what they cost and how well they do."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_metamix.assignment import BitAssignment
from keras_metamix.checks import require_whole
from keras_metamix.cost import Bops, Budget


@dataclasses.dataclass(frozen=True)
class OperatingPoint:
    """An assignment with what it costs and how well it does.

    Attributes:
      bits: the assignment.
      cost: in the unit of its budget, of several that of the first.
      metrics: what `evaluate` gave, "loss" among them; empty where it was not evaluated.
      images: of the training data, that were read to ready the network for these bits.
      epochs: that it was trained for besides.
      file: the model at these bits, a .keras file; "" where none was asked for.
    """

    bits: BitAssignment
    cost: float
    metrics: Mapping[str, float]
    images: int = 0
    epochs: int = 0
    file: str = ""


def even_budgets(budgets: int | Sequence[Any]) -> list[Any]:
    """The budgets of a front: so many of BOPs, evenly from the fewest bits to the most, or given.

    Raises:
      ValueError: there is none.
    """
    if not isinstance(budgets, Sequence):
        require_whole("budgets", budgets, 1)
        return [Bops(share=float(share)) for share in np.linspace(0, 1, budgets)]
    if not budgets:
        raise ValueError("budgets: expected at least one, found none.")
    return list(budgets)


def unbeaten(points: Iterable[OperatingPoint]) -> list[OperatingPoint]:
    """From the cheapest to the best: those that no other one beats in cost and loss."""
    front: list[OperatingPoint] = []
    for point in sorted(points, key=lambda point: (point.cost, point.metrics["loss"])):
        if not front or point.metrics["loss"] < front[-1].metrics["loss"]:
            front.append(point)
    return front


def cost_axis(budget: Budget) -> str:
    """What a budget is counted in, for the axis of a figure."""
    axes = {"us": "predicted latency, µs", "bytes": "predicted file size, bytes", "BOPs": "BOPs"}
    return axes.get(budget.unit, "cost")


def plot_front(
    path: str | os.PathLike[str],
    points: Sequence[OperatingPoint],
    uniform: Mapping[int, OperatingPoint],
    axis: str,
) -> None:
    """Writes a picture of points, beside those of uniform bit-widths.

    Raises:
      ValueError: their metrics have no accuracy.
    """
    if "accuracy" not in points[0].metrics:
        raise ValueError(
            "plot: expected a model compiled with metrics=['accuracy'], found metrics "
            f"{[*points[0].metrics]}."
        )
    from keras_metamix import report  # it draws with matplotlib, which training does not need

    drawn = [(p.cost, p.metrics["accuracy"], "") for p in points]
    rows = [(p.cost, p.metrics["accuracy"], bits) for bits, p in uniform.items()]
    report.save_figure(report.pareto_front(drawn, rows, axis), path)

"""Chooses bit-widths for a device from a trained Bit-Mixer, without training."""

from __future__ import annotations

import dataclasses
import numbers
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from keras_metamix import report
from keras_metamix.assignment import BitAssignment
from keras_metamix.bitmixer.model import BitMixerModel
from keras_metamix.checks import require_number, require_whole, shown
from keras_metamix.cost import LayerCost, assignment_bops, weight_bytes
from keras_metamix.files import written_whole
from keras_metamix.graph.layer_costs import layer_costs
from keras_metamix.knapsack import knapsack
from keras_metamix.latency_table import LatencyTable

Method = Literal["solver", "greedy"]
Table = list[list[float]]
# What one layer costs at each candidate bit-width: {layer: {activation bits: price}}.
Prices = Mapping[str, Mapping[int, float]]
Cost = Literal["bops", "size"] | Prices | LatencyTable
_UNITS = {"bops": "BOPs", "size": "bytes of weights, scales and biases"}


@dataclasses.dataclass(frozen=True)
class OperatingPoint:
    """An assignment with what it costs and how well it does.

    Attributes:
      bits: the assignment.
      cost: in the unit of the prices: BOPs for one image, bytes, or those of a latency table.
      metrics: what `evaluate` gave, "loss" among them; empty where it was not evaluated.
    """

    bits: BitAssignment
    cost: float
    metrics: Mapping[str, float]


def choose_bits(
    model: BitMixerModel,
    data: Any,
    budget: float,
    cost: Cost = "bops",
    method: Method = "solver",
    verbose: int = 1,
) -> OperatingPoint:
    """The best assignment under a budget; nothing is trained, and the model's bits stay.

    Args:
      model: trained and compiled.
      data: what `model.evaluate` takes as `x` (a data set), or a pair (images, labels). A few
        hundred images of the training data do; not the test set.
      budget: the most that the assignment may cost.
      cost: "bops" (Eq. 6 of MetaMix), "size" (bytes of weights, scales and biases), or a table
        {layer: {activation bits: price}}, or a LatencyTable: microseconds of a whole inference.
      method: "solver" measures each layer alone at each bit-width, the others at their highest, and
        solves the knapsack of the losses' sum; "greedy" lowers one layer after the other, each
        time the one whose loss rises least for what it saves, measured with all others as they are.
      verbose: 1 prints how many assignments were measured.

    Raises:
      ValueError: a budget that no assignment meets, an unknown cost or method, prices missing.
    """
    return _points(model, data, [budget], cost, method, verbose)[0]


def choose_points(
    model: BitMixerModel,
    data: Any,
    budgets: Mapping[str, float],
    cost: Cost = "bops",
    method: Method = "solver",
    verbose: int = 1,
) -> dict[str, OperatingPoint]:
    """`choose_bits` for several budgets by name; what is measured serves them all."""
    if not isinstance(budgets, Mapping) or not budgets:
        raise ValueError(f"budgets: expected at least one by name, found {shown(budgets)}.")
    points = _points(model, data, list(budgets.values()), cost, method, verbose)
    return dict(zip(budgets, points, strict=True))


def pareto_front(
    model: BitMixerModel,
    data: Any,
    budgets: int | Sequence[float] = 8,
    cost: Cost = "bops",
    method: Method = "solver",
    plot: str | os.PathLike[str] | None = None,
    verbose: int = 1,
) -> list[OperatingPoint]:
    """Operating points from the cheapest to the best, none of which another one beats.

    Args:
      budgets: how many, evenly from the lowest to the highest cost, or the budgets themselves.
      plot: a PNG to write, of the points' accuracy on `data` over their cost, beside the uniform
        bit-widths'; the model has to be compiled with metrics=["accuracy"] then.
      model, data, cost, method, verbose: see `choose_bits`.

    Raises:
      ValueError: see `choose_bits`; no accuracy to plot.
    """
    if not isinstance(budgets, Sequence):
        require_whole("budgets", budgets, 1)
        budgets = [float(b) for b in np.linspace(*cost_range(model, cost), budgets)]
    if not budgets:
        raise ValueError("budgets: expected at least one, found none.")
    points = _points(model, data, list(budgets), cost, method, verbose)
    points.sort(key=lambda point: (point.cost, point.metrics["loss"]))
    front: list[OperatingPoint] = []
    for point in points:
        if not front or point.metrics["loss"] < front[-1].metrics["loss"]:
            front.append(point)
    if plot is not None:
        _plot(plot, front, uniform_points(model, data, cost), cost)
    return front


def uniform_points(
    model: BitMixerModel, data: Any, cost: Cost = "bops"
) -> dict[int, OperatingPoint]:
    """The operating points of one bit-width everywhere but at the ends, by bit-width."""
    prices, points, rest = price_table(model, cost), {}, _rest(model, cost)
    before, measure = model.bit_assignment, _Measure(model, data, verbose=0)
    try:
        for number, bits in enumerate(model.space.activation_bits):
            chosen = [number if bits in row else 0 for row in prices.values()]
            price = rest + sum(
                row[b] for row, b in zip(prices.values(), measure.bits(chosen), strict=True)
            )
            found = measure.assignment(chosen), price, measure.metrics(chosen)
            points[bits] = OperatingPoint(*found)
    finally:
        model.set_bits(before)
    return points


def _plot(
    path: str | os.PathLike[str],
    front: Sequence[OperatingPoint],
    uniform: Mapping[int, OperatingPoint],
    cost: Cost,
) -> None:
    if "accuracy" not in front[0].metrics:
        raise ValueError(
            "plot: expected a model compiled with metrics=['accuracy'], found metrics "
            f"{[*front[0].metrics]}."
        )
    points = [{"name": "", "cost": p.cost, "accuracy": p.metrics["accuracy"]} for p in front]
    rows = [
        {"bits": bits, "cost": p.cost, "accuracy": p.metrics["accuracy"]}
        for bits, p in uniform.items()
    ]
    figure = report.pareto_front(points, rows, cost_unit(cost))
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", facecolor="white")


def cost_unit(cost: Cost) -> str:
    """What a cost is counted in, for the axis of a figure."""
    if isinstance(cost, LatencyTable):
        return "predicted latency, µs"
    return _UNITS.get(cost, "cost") if isinstance(cost, str) else "cost"


def price_table(model: BitMixerModel, cost: Cost) -> dict[str, dict[int, float]]:
    """What each layer costs at each of its candidate bit-widths.

    Raises:
      ValueError: an unknown cost, or a price that is missing; names the layer.
    """
    if not isinstance(model, BitMixerModel):
        raise TypeError(f"Expected a BitMixerModel, found {type(model).__name__}.")
    if isinstance(cost, LatencyTable):
        measured = cost.prices(model)
        cost = {
            layer.name: {
                bits: measured[layer.name][bits, _weight_bits(layer, bits)]
                for bits in layer.input_quantizer.candidates
            }
            for layer in model.mac_layers
        }
    table = {}
    for layer, layer_cost in zip(model.mac_layers, layer_costs(model.network), strict=True):
        row = {}
        for bits in layer.input_quantizer.candidates:
            row[bits] = _price(layer_cost, bits, _weight_bits(layer, bits), cost)
        table[layer.name] = row
    return table


def cost_range(model: BitMixerModel, cost: Cost) -> tuple[float, float]:
    """What the fewest and the most bits cost."""
    rows = [row.values() for row in price_table(model, cost).values()]
    rest = _rest(model, cost)
    return rest + sum(map(min, rows)), rest + sum(map(max, rows))


def _rest(model: BitMixerModel, cost: Cost) -> float:
    """What the model costs besides its layers' prices."""
    return cost.costs(model).constant if isinstance(cost, LatencyTable) else 0


def _price(layer: LayerCost, activation: int, weight: int, cost: Cost) -> float:
    if isinstance(cost, Mapping):
        row = cost.get(layer.name)
        found = row.get(activation) if isinstance(row, Mapping) else row
        wanted = f"a price of layer {layer.name!r} at {activation} bits"
        if found is None:
            raise ValueError(f"cost: expected {wanted}, found none.")
        require_number(f"cost: {wanted}", None if found is row else found, 0)
        return found
    bits = BitAssignment({layer.name: activation}, {layer.name: weight})
    if cost == "bops":
        return assignment_bops([layer], bits)
    if cost == "size":
        return weight_bytes([layer], bits)
    raise ValueError(f"cost: expected 'bops', 'size' or a table of prices, found {cost!r}.")


def _weight_bits(layer: Any, activation: int) -> int:
    return activation if layer.tied else layer.weight_quantizer.candidates[0]


class _Measure:
    """Losses of a model at assignments given as one candidate number for each layer."""

    def __init__(self, model: BitMixerModel, data: Any, verbose: int):
        self.model, self.data, self.verbose = model, data, verbose
        self.layers = model.mac_layers
        self.count = 0

    def bits(self, chosen: Sequence[int]) -> list[int]:
        """Activation bits of each layer."""
        return [
            layer.input_quantizer.candidates[number]
            for layer, number in zip(self.layers, chosen, strict=True)
        ]

    def assignment(self, chosen: Sequence[int]) -> BitAssignment:
        activations, weights = {}, {}
        for layer, bits in zip(self.layers, self.bits(chosen), strict=True):
            activations[layer.name] = bits
            weights[layer.name] = _weight_bits(layer, bits)
        return BitAssignment(activations, weights)

    def metrics(self, chosen: Sequence[int]) -> dict[str, float]:
        self.count += 1
        if self.verbose and sys.stdout.isatty():
            print(f"\r[Bit-Mixer] assignments measured: {self.count}", end="", flush=True)
        self.model.set_bits(self.assignment(chosen))
        arrays = self.data if isinstance(self.data, tuple) else (self.data,)
        found: Any = self.model.evaluate(*arrays, verbose=0, return_dict=True)
        if "loss" not in found or not np.isfinite(found["loss"]):
            raise ValueError(
                "data: expected images and labels that give a finite loss, found "
                f"{found.get('loss', 'no image')}."
            )
        return {name: float(value) for name, value in found.items()}

    def end(self) -> None:
        """Says how many were measured."""
        if self.verbose:
            start = "\r" if sys.stdout.isatty() else ""
            print(f"{start}[Bit-Mixer] assignments measured: {self.count}", flush=True)


def _points(
    model: BitMixerModel, data: Any, budgets: list[float], cost: Cost, method: Method, verbose: int
) -> list[OperatingPoint]:
    """The operating point of each budget, in their order."""
    table = [list(row.values()) for row in price_table(model, cost).values()]
    rest = _rest(model, cost)
    least = rest + sum(min(row) for row in table)
    for budget in budgets:
        if not isinstance(budget, numbers.Real) or not budget >= least * (1 - 1e-12):
            raise ValueError(
                f"budget={shown(budget)}: expected at least {least:.6g}, what the fewest bits "
                f"cost; the most cost {rest + sum(max(row) for row in table):.6g}."
            )
    if method not in METHODS:
        raise ValueError(f"method: expected one of {list(METHODS)}, found {method!r}.")
    before = model.bit_assignment
    measure = _Measure(model, data, verbose)
    try:
        points = []
        layers_least = sum(min(row) for row in table)  # a difference may round to below it
        layers_budgets = [max(budget - rest, layers_least) for budget in budgets]
        for chosen in METHODS[method](measure, table, layers_budgets):
            price = rest + sum(row[number] for row, number in zip(table, chosen, strict=True))
            metrics = measure.metrics(chosen)
            points.append(OperatingPoint(measure.assignment(chosen), price, metrics))
        return points
    finally:
        model.set_bits(before)
        measure.end()


def _solve(measure: _Measure, table: Table, budgets: list[float]) -> list[list[int]]:
    """Knapsacks over the losses' rises, each layer alone below its highest bit-width."""
    base = measure.metrics([0] * len(table))["loss"]
    values = []
    for row, prices in enumerate(table):
        rises = [0.0]
        for number in range(1, len(prices)):
            chosen = [number if i == row else 0 for i in range(len(table))]
            rises.append(measure.metrics(chosen)["loss"] - base)
        values.append([-rise for rise in rises])
    return [knapsack(values, table, budget) for budget in budgets]


def _descend(measure: _Measure, table: Table, budgets: list[float]) -> list[list[int]]:
    """One layer after the other at its next cheaper bit-width, from budget to budget."""
    chosen = [0] * len(table)
    loss = measure.metrics(chosen)["loss"]
    found: dict[float, list[int]] = {}
    for budget in sorted(budgets, reverse=True):
        while sum(r[n] for r, n in zip(table, chosen, strict=True)) > budget:
            steps = []
            for row, prices in enumerate(table):
                now = prices[chosen[row]]
                cheaper = [n for n in range(chosen[row] + 1, len(prices)) if prices[n] < now]
                if cheaper:
                    lower = [*chosen[:row], cheaper[0], *chosen[row + 1 :]]
                    rise = measure.metrics(lower)["loss"] - loss
                    steps.append((rise / (now - prices[cheaper[0]]), lower))
            chosen = min(steps)[1]
            loss = measure.metrics(chosen)["loss"]
        found[budget] = chosen
    return [found[budget] for budget in budgets]


METHODS: dict[str, Callable[[_Measure, Table, list[float]], list[list[int]]]] = {
    "solver": _solve,
    "greedy": _descend,
}

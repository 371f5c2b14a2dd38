"""Chooses bit-widths for a device from a trained Bit-Mixer, without training."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from keras_metamix.assignment import BitAssignment
from keras_metamix.bitmixer.model import BitMixerModel
from keras_metamix.cost import LayerCost
from keras_metamix.graph.layer_costs import layer_costs
from keras_metamix.knapsack import knapsack

Method = Literal["solver", "greedy"]
Table = list[list[float]]
# What one layer costs at each candidate bit-width: {layer: {activation bits: price}}.
Prices = Mapping[str, Mapping[int, float]]
Cost = Literal["bops", "size"] | Prices


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
        {layer: {activation bits: price}}, such as latencies.
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
    points = _points(model, data, list(budgets.values()), cost, method, verbose)
    return dict(zip(budgets, points, strict=True))


def pareto_front(
    model: BitMixerModel,
    data: Any,
    budgets: int | Sequence[float] = 8,
    cost: Cost = "bops",
    method: Method = "solver",
    verbose: int = 1,
) -> list[OperatingPoint]:
    """Operating points from the cheapest to the best, none of which another one beats.

    Args:
      budgets: how many, evenly from the lowest to the highest cost, or the budgets themselves.
      model, data, cost, method, verbose: see `choose_bits`.
    """
    if isinstance(budgets, int):
        prices = price_table(model, cost)
        low = sum(min(row.values()) for row in prices.values())
        high = sum(max(row.values()) for row in prices.values())
        budgets = [float(b) for b in np.linspace(low, high, budgets)]
    points = _points(model, data, list(budgets), cost, method, verbose)
    points.sort(key=lambda point: (point.cost, point.metrics["loss"]))
    front: list[OperatingPoint] = []
    for point in points:
        if not front or point.metrics["loss"] < front[-1].metrics["loss"]:
            front.append(point)
    return front


def price_table(model: BitMixerModel, cost: Cost) -> dict[str, dict[int, float]]:
    """What each layer costs at each of its candidate bit-widths.

    Raises:
      ValueError: an unknown cost, or a price that is missing; names the layer.
    """
    table = {}
    for layer, layer_cost in zip(model.mac_layers, layer_costs(model.network), strict=True):
        row = {}
        for bits in layer.input_quantizer.candidates:
            row[bits] = _price(layer_cost, bits, _weight_bits(layer, bits), cost)
        table[layer.name] = row
    return table


def _price(layer: LayerCost, activation: int, weight: int, cost: Cost) -> float:
    if isinstance(cost, Mapping):
        found = cost.get(layer.name, {}).get(activation)
        if found is None:
            raise ValueError(
                f"cost: expected a price of layer {layer.name!r} at {activation} bits, found none."
            )
        return found
    if cost == "bops":
        return layer.macs * activation * weight
    if cost == "size":
        return -(-layer.weights * weight // 8) + 8 * layer.output_channels
    raise ValueError(f"cost: expected 'bops', 'size' or a table of prices, found {cost!r}.")


def _weight_bits(layer: Any, activation: int) -> int:
    quantizer = layer.weight_quantizer
    return activation if quantizer.follows else quantizer.candidates[0]


class _Measure:
    """Losses of a model at assignments given as one candidate number for each layer."""

    def __init__(self, model: BitMixerModel, data: Any, verbose: int):
        self.model, self.data, self.verbose = model, data, verbose
        self.layers = model.mac_layers
        self.count = 0

    def assignment(self, chosen: Sequence[int]) -> BitAssignment:
        activations, weights = {}, {}
        for layer, number in zip(self.layers, chosen, strict=True):
            bits = layer.input_quantizer.candidates[number]
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
    least = sum(min(row) for row in table)
    for budget in budgets:
        if not budget >= least * (1 - 1e-12):
            raise ValueError(
                f"budget={budget!r}: expected at least {least:.6g}, what the fewest bits cost; the "
                f"most cost {sum(max(row) for row in table):.6g}."
            )
    if method not in METHODS:
        raise ValueError(f"method: expected one of {list(METHODS)}, found {method!r}.")
    before = model.bit_assignment
    measure = _Measure(model, data, verbose)
    try:
        points = []
        for chosen in METHODS[method](measure, table, [max(b, least) for b in budgets]):
            price = sum(row[number] for row, number in zip(table, chosen, strict=True))
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

"""Chooses bit-widths for a device from a trained Bit-Mixer, without training."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np

from keras_metamix.assignment import BitAssignment
from keras_metamix.bitmixer.model import BitMixerModel
from keras_metamix.checks import found_model, one_of, shown
from keras_metamix.cost import (
    Bops,
    Budget,
    Pair,
    PricedBudget,
    as_budgets,
    require_all_reachable,
    select,
)
from keras_metamix.points import OperatingPoint

Name = TypeVar("Name")
Method = Literal["solver", "greedy"]
Budgets = tuple[PricedBudget, ...]  # all of which an operating point meets


def choose_bits(
    model: BitMixerModel,
    data: Any,
    budget: Budget | Sequence[Budget] | float,
    method: Method = "solver",
    verbose: int = 1,
) -> OperatingPoint:
    """The best assignment under a budget; nothing is trained, and the model's bits stay.

    Args:
      model: trained and compiled.
      data: what `model.evaluate` takes as `x` (a data set), or a pair (images, labels). A few
        hundred images of the training data do; not the test set.
      budget: Bops, Size (of a file of this point alone), Latency or Priced, several of them in a
        list, all of which are met, or a number of BOPs. At least 97 % of it is used where an
        assignment does, see `cost.select`.
      method: "solver" measures each layer alone at each bit-width, the others at their highest, and
        solves the knapsack of the losses' sum; "greedy" lowers one layer after the other, each
        time the one whose loss rises least for what it saves, measured with all others as they are,
        then raises what still fits, so that it uses what it can, not 97 % for certain.
      verbose: 1 prints how many assignments were measured.

    Raises:
      TypeError: no budget.
      ValueError: one that no assignment meets, an unknown method, prices missing.
    """
    return _points(model, data, [budget], method, verbose)[0]


def choose_points(
    model: BitMixerModel,
    data: Any,
    budgets: Mapping[str, Any],
    method: Method = "solver",
    verbose: int = 1,
) -> dict[str, OperatingPoint]:
    """`choose_bits` for several budgets by name; what is measured serves them all."""
    if not isinstance(budgets, Mapping) or not budgets:
        raise ValueError(f"budgets: expected at least one by name, found {shown(budgets)}.")
    points = _points(model, data, list(budgets.values()), method, verbose)
    return dict(zip(budgets, points, strict=True))


def uniform_points(
    model: BitMixerModel, data: Any, budget: Budget | None = None
) -> dict[int, OperatingPoint]:
    """The operating points of one bit-width everywhere but at the ends, by bit-width.

    Args:
      model, data: see `choose_bits`.
      budget: what the points' cost is counted in, whatever its limit; default: BOPs.
    """
    bits = {bits: model.uniform_bits(bits) for bits in model.space.activation_bits}
    return measured_points(model, data, bits, budget or Bops(share=1.0))


def measured_points(
    model: BitMixerModel, data: Any, bits: Mapping[Name, BitAssignment], budget: Budget
) -> dict[Name, OperatingPoint]:
    """The operating points of given assignments, by the same names; see `uniform_points`."""
    priced, measure = budget.priced(model), _Measure(model, data, verbose=0)
    before = model.bit_assignment
    try:
        return {
            name: OperatingPoint(found, priced.total(found), measure.metrics_of(found))
            for name, found in bits.items()
        }
    finally:
        model.set_bits(before)


class _Measure:
    """Losses of a model at assignments given as one candidate number for each layer."""

    def __init__(self, model: BitMixerModel, data: Any, verbose: int):
        self.model, self.data, self.verbose = model, data, verbose
        self.pairs: list[list[Pair]] = [list(p) for p in model.cost_table.choices.values()]
        self.names = list(model.cost_table.choices)
        self.count = 0
        self._known: dict[tuple[int, ...], dict[str, float]] = {}

    def assignment(self, chosen: Sequence[int]) -> BitAssignment:
        """The bits of each layer's candidate."""
        found = [row[number] for row, number in zip(self.pairs, chosen, strict=True)]
        activations, weights = zip(*found, strict=True)
        return BitAssignment(
            dict(zip(self.names, activations, strict=True)),
            dict(zip(self.names, weights, strict=True)),
        )

    def metrics(self, chosen: Sequence[int]) -> dict[str, float]:
        """What `evaluate` says; asked once for each assignment."""
        if tuple(chosen) not in self._known:
            self._known[tuple(chosen)] = self.metrics_of(self.assignment(chosen))
        return self._known[tuple(chosen)]

    def metrics_of(self, bits: BitAssignment) -> dict[str, float]:
        """What `evaluate` says of an assignment."""
        self.count += 1
        if self.verbose and sys.stdout.isatty():
            print(f"\r[Bit-Mixer] assignments measured: {self.count}", end="", flush=True)
        self.model.set_bits(bits)
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
    model: BitMixerModel, data: Any, budgets: list[Any], method: Method, verbose: int
) -> list[OperatingPoint]:
    """The operating point of each budget, in their order."""
    if not isinstance(model, BitMixerModel):
        raise TypeError(f"Expected a BitMixerModel, found {found_model(model)}.")
    one_of("method", method, [*METHODS])
    priced = [tuple(part.priced(model) for part in as_budgets(b)) for b in budgets]
    for budget in priced:
        require_all_reachable(budget)
    before = model.bit_assignment
    measure = _Measure(model, data, verbose)
    try:
        points = []
        for budget in priced:
            chosen = METHODS[method](measure, budget)
            bits, metrics = measure.assignment(chosen), measure.metrics(chosen)
            points.append(OperatingPoint(bits, budget[0].total(bits), metrics))
        return points
    finally:
        model.set_bits(before)
        measure.end()


def _solve(measure: _Measure, budgets: Budgets) -> list[int]:
    """A knapsack over the losses' rises, each layer alone below its highest bit-width."""
    top = [0] * len(measure.pairs)
    base, scores = measure.metrics(top)["loss"], {}
    for row, (name, pairs) in enumerate(zip(measure.names, measure.pairs, strict=True)):
        lower = ([*top[:row], number, *top[row + 1 :]] for number in range(len(pairs)))
        scores[name] = {
            pair: base - measure.metrics(chosen)["loss"]
            for pair, chosen in zip(pairs, lower, strict=True)
        }
    bits = select(scores, budgets)
    return [
        pairs.index((bits[name].activation, bits[name].weight))
        for name, pairs in zip(measure.names, measure.pairs, strict=True)
    ]


def _descend(measure: _Measure, budgets: Budgets) -> list[int]:
    """One layer after the other at its next cheaper bit-width; then back, where that fits."""
    chosen = [0] * len(measure.pairs)
    while exceeded := [b for b in budgets if b.total(measure.assignment(chosen)) > b.limit]:
        loss, steps = measure.metrics(chosen)["loss"], []
        for row, name in enumerate(measure.names):
            prices = _prices(name, measure.pairs[row], exceeded)
            now = prices[chosen[row]]
            cheaper = [n for n in range(chosen[row] + 1, len(prices)) if prices[n] < now]
            if cheaper:
                lower = [*chosen[:row], cheaper[0], *chosen[row + 1 :]]
                rise = measure.metrics(lower)["loss"] - loss
                steps.append((rise / (now - prices[cheaper[0]]), lower))
        if not steps:
            told = ", ".join(budget.name for budget in exceeded)
            raise ValueError(f"method='greedy' found no assignment within {told}: try 'solver'.")
        chosen = min(steps)[1]
    return _climb(measure, budgets, chosen)


def _climb(measure: _Measure, budgets: Budgets, chosen: list[int]) -> list[int]:
    """One layer after the other at its next bit-width, until 97 % are used or none fits."""
    while not any(b.uses(b.total(measure.assignment(chosen))) for b in budgets):
        raised = [
            [*chosen[:row], number - 1, *chosen[row + 1 :]]
            for row, number in enumerate(chosen)
            if number
        ]
        fits = [
            up for up in raised if all(b.total(measure.assignment(up)) <= b.limit for b in budgets)
        ]
        if not fits:
            break
        chosen = min(fits, key=lambda up: measure.metrics(up)["loss"])
    return chosen


def _prices(name: str, pairs: Sequence[Pair], budgets: Sequence[PricedBudget]) -> list[float]:
    """Of a layer's pairs; of several budgets as the sum of their limits' shares."""
    if len(budgets) == 1:
        return budgets[0].row(name, pairs)
    rows = [[price / b.limit for price in b.row(name, pairs)] for b in budgets]
    return [sum(column) for column in zip(*rows, strict=True)]


METHODS: dict[str, Callable[[_Measure, Budgets], list[int]]] = {
    "solver": _solve,
    "greedy": _descend,
}

"""Chooses bit-widths for a device from a trained Bit-Mixer, without training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

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
from keras_metamix.sensitivity import BitMeasure

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
    """The operating points of one bit-width everywhere but at the edges, by bit-width.

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
    priced, measure = budget.priced(model), BitMeasure(model, data, verbose=0)
    before = model.bit_assignment
    try:
        return {
            name: OperatingPoint(found, priced.total(found), measure.metrics_of(found))
            for name, found in bits.items()
        }
    finally:
        model.set_bits(before)


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
    measure = BitMeasure(model, data, verbose)
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


def _solve(measure: BitMeasure, budgets: Budgets) -> list[int]:
    """A knapsack over the losses' rises, each layer alone below its highest bit-width."""
    bits = select(measure.each_alone(), budgets)
    return measure.numbers(bits)


def _descend(measure: BitMeasure, budgets: Budgets) -> list[int]:
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
            text = ", ".join(budget.name for budget in exceeded)
            raise ValueError(f"method='greedy' found no assignment within {text}: try 'solver'.")
        chosen = min(steps)[1]
    return _climb(measure, budgets, chosen)


def _climb(measure: BitMeasure, budgets: Budgets, chosen: list[int]) -> list[int]:
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


METHODS: dict[str, Callable[[BitMeasure, Budgets], list[int]]] = {
    "solver": _solve,
    "greedy": _descend,
}

"""From learned scores to one assignment that meets the budget."""

from __future__ import annotations

import dataclasses
import itertools
import numbers

import numpy as np

from keras_metamix.assignment import BitAssignment
from keras_metamix.checks import shown
from keras_metamix.knapsack import knapsack
from keras_metamix.layers.bit_choice import BitChoice
from keras_metamix.pair_costs import PairCosts


@dataclasses.dataclass(frozen=True)
class LayerScores:
    """The candidates of one layer with their log-probabilities.

    Attributes:
      pairs: candidate (activation bits, weight bits).
      scores: log-probability of each pair.
    """

    pairs: tuple[tuple[int, int], ...]
    scores: tuple[float, ...]


def layer_scores(activation: BitChoice, weight: BitChoice) -> LayerScores:
    """Log-probability of every candidate pair of a MAC layer.

    Args:
      activation, weight: its choices; the same one where weights take the activation's bit-width.
    """
    scores = activation.log_probabilities()
    if weight is activation:
        pairs = [(bits, bits) for bits in activation.candidates]
        return LayerScores(tuple(pairs), tuple(map(float, scores)))
    pairs = itertools.product(activation.candidates, weight.candidates)
    sums = np.add.outer(scores, weight.log_probabilities()).ravel()
    return LayerScores(tuple(pairs), tuple(map(float, sums)))


def argmax_assignment(scores: dict[str, LayerScores]) -> BitAssignment:
    """Every layer's most probable candidate, whatever it costs."""
    best = {name: s.pairs[int(np.argmax(s.scores))] for name, s in scores.items()}
    return _assignment(best)


def check_budget(costs: PairCosts, scores: dict[str, LayerScores], target: float) -> None:
    """Raises ValueError for a budget that no assignment meets, naming what can be had."""
    rows = _prices(costs, scores)
    low, high = (costs.constant + sum(map(end, rows)) for end in (min, max))
    if not isinstance(target, numbers.Real) or isinstance(target, bool) or not target >= low:
        raise ValueError(
            f"{costs.target}={shown(target)}: expected at least {low} {costs.unit} ({low:.4g}), "
            "what the model costs at the cheapest bits everywhere; at the dearest bits it costs "
            f"{high} ({high:.4g})."
        )


def budgeted_assignment(
    costs: PairCosts, scores: dict[str, LayerScores], target: float
) -> BitAssignment:
    """The most probable assignment that costs at most `target`.

    The argmax where it fits; else a multiple-choice knapsack over log-probabilities, solved
    to optimality as an integer program (HiGHS through scipy).
    """
    check_budget(costs, scores, target)
    prices = _prices(costs, scores)
    # The least is met, by the check: the difference may be below it by a rounding.
    budget = max(target - costs.constant, sum(map(min, prices)))
    chosen = knapsack([entry.scores for entry in scores.values()], prices, budget)
    picked = zip(scores.items(), chosen, strict=True)
    return _assignment({name: entry.pairs[number] for (name, entry), number in picked})


def _prices(costs: PairCosts, scores: dict[str, LayerScores]) -> list[list[float]]:
    """Of each layer's candidates."""
    return [costs.row(name, entry.pairs) for name, entry in scores.items()]


def _assignment(pairs: dict[str, tuple[int, int]]) -> BitAssignment:
    return BitAssignment(
        {n: a for n, (a, _) in pairs.items()}, {n: w for n, (_, w) in pairs.items()}
    )

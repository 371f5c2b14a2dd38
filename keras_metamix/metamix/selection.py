"""From learned scores to one assignment that meets the budget."""

from __future__ import annotations

import dataclasses
import itertools
import numbers
from typing import Any

import numpy as np

from keras_metamix.assignment import BitAssignment
from keras_metamix.checks import shown
from keras_metamix.cost import LayerCost, assignment_bops
from keras_metamix.knapsack import knapsack


@dataclasses.dataclass(frozen=True)
class LayerScores:
    """The candidates of one layer with their log-probabilities.

    Attributes:
      pairs: candidate (activation bits, weight bits).
      scores: log-probability of each pair.
    """

    pairs: tuple[tuple[int, int], ...]
    scores: tuple[float, ...]


def layer_scores(activation: Any, weight: Any, tied: bool) -> LayerScores:
    """Log-probability of every candidate pair of a MAC layer.

    Args:
      activation, weight: its quantizers, with `candidates` and, where there is a choice, `alpha`.
      tied: whether the weights have the activation's bit-width.
    """
    scores = _log_probabilities(activation)
    if tied:
        pairs = [(bits, bits) for bits in activation.candidates]
        return LayerScores(tuple(pairs), tuple(map(float, scores)))
    pairs = itertools.product(activation.candidates, weight.candidates)
    sums = np.add.outer(scores, _log_probabilities(weight)).ravel()
    return LayerScores(tuple(pairs), tuple(map(float, sums)))


def _log_probabilities(chooser: Any) -> np.ndarray:
    if not chooser.searched:
        return np.zeros(1)
    alpha = np.asarray(chooser.alpha, np.float64)
    return alpha - np.logaddexp.reduce(alpha)


def argmax_assignment(scores: dict[str, LayerScores]) -> BitAssignment:
    """Every layer's most probable candidate, whatever it costs."""
    best = {name: s.pairs[int(np.argmax(s.scores))] for name, s in scores.items()}
    return _assignment(best)


def smallest_bops(layers: list[LayerCost], scores: dict[str, LayerScores]) -> int:
    """BOPs of the cheapest assignment."""
    cheapest = {name: min(s.pairs, key=lambda p: p[0] * p[1]) for name, s in scores.items()}
    return assignment_bops(layers, _assignment(cheapest))


def check_budget(layers: list[LayerCost], scores: dict[str, LayerScores], target: float) -> None:
    """Raises ValueError for a budget that no assignment meets, naming what can be had."""
    low = smallest_bops(layers, scores)
    if not isinstance(target, numbers.Real) or isinstance(target, bool) or not target >= low:
        most = {name: max(s.pairs, key=lambda p: p[0] * p[1]) for name, s in scores.items()}
        high = assignment_bops(layers, _assignment(most))
        raise ValueError(
            f"target_bops={shown(target)}: expected at least {low} BOPs ({low:.4g}), what the "
            f"model costs at the fewest bits everywhere; at the most bits it costs {high} "
            f"({high:.4g})."
        )


def budgeted_assignment(
    layers: list[LayerCost], scores: dict[str, LayerScores], target: float
) -> BitAssignment:
    """The most probable assignment of at most `target` BOPs.

    The argmax where it fits; else a multiple-choice knapsack over log-probabilities, solved
    to optimality as an integer program (HiGHS through scipy).
    """
    check_budget(layers, scores, target)
    rows = [scores[layer.name] for layer in layers]
    prices = [
        [layer.macs * a * w for a, w in row.pairs] for layer, row in zip(layers, rows, strict=True)
    ]
    chosen = knapsack([row.scores for row in rows], prices, target)
    pairs = [row.pairs[number] for row, number in zip(rows, chosen, strict=True)]
    return _assignment({layer.name: pair for layer, pair in zip(layers, pairs, strict=True)})


def _assignment(pairs: dict[str, tuple[int, int]]) -> BitAssignment:
    return BitAssignment(
        {n: a for n, (a, _) in pairs.items()}, {n: w for n, (_, w) in pairs.items()}
    )

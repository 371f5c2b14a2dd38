"""From scores to the best assignment that meets every budget and uses one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from keras_metamix.assignment import BitAssignment
from keras_metamix.cost.prices import USED, Pair, PricedBudget, worthwhile
from keras_metamix.cost.solver import Between, best_choice

# Scores of each layer's pairs of (activation bits, weight bits): higher is better.
Scores = Mapping[str, Mapping[Pair, float]]
_ROUNDING = 1e-12  # relative, of a sum of prices


def argmax_bits(scores: Scores) -> BitAssignment:
    """Every layer's best pair, whatever it costs."""
    return _assignment({name: max(row, key=row.__getitem__) for name, row in scores.items()})


def require_all_reachable(budgets: Sequence[PricedBudget]) -> None:
    """Raises ValueError if no assignment meets all budgets; says what can be met."""
    for budget in budgets:
        budget.require_reachable()
    if len(budgets) > 1 and _best({n: dict.fromkeys(p, 0.0) for n, p in _all(budgets)}, budgets):
        return
    if len(budgets) > 1:
        text = "; ".join(
            f"{b.name}, of {b.least:.6g} to {b.most:.6g} {b.unit} by itself" for b in budgets
        )
        raise ValueError(f"budget: no assignment meets all of them together: {text}.")


def select(scores: Scores, budgets: Sequence[PricedBudget]) -> BitAssignment:
    """The assignment with the highest sum of scores that meets every budget and uses one of them.

    A pair that costs no less than a pair of more bits is never taken, since more bits cost no
    accuracy. Of the others, the choice of the scores alone is taken if it costs at least 97 % of a
    limit. If not, the rest is spent on more bits where the scores lose least: first on assignments
    that give no layer fewer bits than that choice, then on any. If no assignment costs 97 % of a
    limit, the dearest one within it is taken.

    Args:
      scores: the scores of each layer's pairs.
      budgets: have prices of these pairs.

    Raises:
      ValueError: no assignment meets all budgets, or a pair has no price.
    """
    require_all_reachable(budgets)
    worth = {name: worthwhile(budgets, name, row) for name, row in scores.items()}
    scores = _only(scores, worth)
    alone = _best(scores, budgets)
    if alone is None:
        raise ValueError("budget: no assignment was found that meets it: raise the limit a little.")
    if _use(alone, budgets) >= USED:
        return _assignment(alone)
    raised = {
        name: [p for p in row if p[0] >= alone[name][0] and p[1] >= alone[name][1]]
        for name, row in scores.items()
    }
    chosen = _used(_only(scores, raised), budgets) or _used(scores, budgets)
    return _assignment(chosen or _nearest(scores, budgets, alone))


def _used(scores: Scores, budgets: Sequence[PricedBudget]) -> dict[str, Pair] | None:
    """The best assignment that costs at least 97 % of one of the limits."""
    floors = [[budget.limit * USED if b is budget else None for b in budgets] for budget in budgets]
    found = [_best(scores, budgets, floor) for floor in floors]
    return max((f for f in found if f), key=lambda f: _score(scores, f), default=None)


def _nearest(
    scores: Scores, budgets: Sequence[PricedBudget], alone: dict[str, Pair]
) -> dict[str, Pair]:
    """The best of the dearest assignments within the limits."""
    dearest = [
        _best({n: dict(zip(r, budget.row(n, r), strict=True)) for n, r in scores.items()}, budgets)
        for budget in budgets
    ]
    most = max((d for d in dearest if d), key=lambda d: _use(d, budgets), default=alone)
    binding = max(budgets, key=lambda b: _cost(b, most) / b.limit)
    floor = _cost(binding, most) * (1 - _ROUNDING)
    return _best(scores, budgets, [floor if b is binding else None for b in budgets]) or most


def _best(
    scores: Scores, budgets: Sequence[PricedBudget], floors: Sequence[float | None] = ()
) -> dict[str, Pair] | None:
    """The best assignment within the limits and not below the floors; None if there is none."""
    limits = []
    for number, budget in enumerate(budgets):
        rows = [budget.row(name, row) for name, row in scores.items()]
        # The cheapest is within the limit, by the check; this difference may round to below it.
        high = max(budget.limit - budget.fixed, sum(map(min, rows)))
        floor = floors[number] if floors else None
        limits.append(Between(rows, -np.inf if floor is None else floor - budget.fixed, high))
    chosen = best_choice([list(row.values()) for row in scores.values()], limits)
    if chosen is None:
        return None
    return {n: list(r)[number] for (n, r), number in zip(scores.items(), chosen, strict=True)}


def _only(scores: Scores, pairs: Mapping[str, Sequence[Pair]]) -> Scores:
    return {name: {p: row[p] for p in row if p in pairs[name]} for name, row in scores.items()}


def _all(budgets: Sequence[PricedBudget]) -> list[tuple[str, Sequence[Pair]]]:
    return list(budgets[0].choices.items())


def _score(scores: Scores, pairs: Mapping[str, Pair]) -> float:
    return sum(scores[name][pair] for name, pair in pairs.items())


def _cost(budget: PricedBudget, pairs: Mapping[str, Pair]) -> float:
    return budget.fixed + sum(budget.row(name, [pair])[0] for name, pair in pairs.items())


def _use(pairs: Mapping[str, Pair], budgets: Sequence[PricedBudget]) -> float:
    """The largest share of a limit that an assignment costs."""
    return max(_cost(budget, pairs) / budget.limit for budget in budgets)


def _assignment(pairs: Mapping[str, Pair]) -> BitAssignment:
    return BitAssignment(
        {n: a for n, (a, _) in pairs.items()}, {n: w for n, (_, w) in pairs.items()}
    )

"""The candidates, one for each layer, of the most value within limits: an integer program."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import optimize, sparse

Rows = Sequence[Sequence[Any]]
_MOST_NODES = 200_000  # of the solver's search tree; beyond, its best choice so far is taken


@dataclasses.dataclass(frozen=True)
class Between:
    """A sum of prices that has to lie from `low` to `high`.

    Attributes:
      prices: the prices of each row's candidates.
      low, high: the ends of the range, both allowed.
    """

    prices: Rows
    low: float = -math.inf
    high: float = math.inf

    def sum(self, chosen: Sequence[int]) -> Any:
        """The sum for one candidate of each row, given by its number."""
        return sum(row[number] for row, number in zip(self.prices, chosen, strict=True))

    def holds(self, chosen: Sequence[int]) -> bool:
        """Whether the sum for these candidates is in the range."""
        return self.low <= self.sum(chosen) <= self.high


def best_choice(values: Rows, limits: Sequence[Between]) -> list[int] | None:
    """Number of the candidate chosen in each row: a multiple-choice knapsack.

    It is solved as an integer program (HiGHS through scipy), to optimality unless the search tree
    has more than 200,000 nodes. The exact sum of prices, not the solver's tolerance, decides
    whether a limit holds.

    Args:
      values: the values of each row's candidates, whose sum is maximized.
      limits: limits on sums of prices, which have the same rows as `values`.

    Returns:
      The numbers, or None if no choice is within all limits.
    """
    best = [int(np.argmax(row)) for row in values]
    if all(limit.holds(best) for limit in limits):
        return best
    counts = [len(row) for row in values]
    total, rows = sum(counts), np.repeat(np.arange(len(counts)), counts)
    one_each = sparse.csr_array((np.ones(total), (rows, np.arange(total))))
    constraints = [
        optimize.LinearConstraint(one_each, 1, 1),  # pyright: ignore[reportArgumentType]
        *(_linear(limit) for limit in limits),
    ]
    while True:
        result = optimize.milp(
            -_flat(values),
            integrality=np.ones(total),
            # With presolve, HiGHS 1.12 returned a choice that was not the best.
            options={"mip_rel_gap": 0.0, "node_limit": _MOST_NODES, "presolve": False},
            bounds=optimize.Bounds(0, 1),
            constraints=constraints,
        )
        if result.x is None:
            return None
        parts = np.split(result.x, np.cumsum(counts)[:-1])
        chosen = [int(np.argmax(part)) for part in parts]
        if all(limit.holds(chosen) for limit in limits):
            return chosen
        # It exceeds a limit by less than the solver's tolerance: rule this choice out.
        taken = np.concatenate([np.eye(len(p))[n] for p, n in zip(parts, chosen, strict=True)])
        constraints.append(optimize.LinearConstraint(taken[None], -np.inf, len(counts) - 1))


def _linear(limit: Between) -> optimize.LinearConstraint:
    """A limit, scaled so that the solver's tolerance is a small share of it."""
    ends = [abs(end) for end in (limit.low, limit.high) if math.isfinite(end) and end]
    scale = max(ends, default=1.0)
    row = _flat(limit.prices)[None] / scale
    return optimize.LinearConstraint(row, limit.low / scale, limit.high / scale)


def _flat(rows: Rows) -> np.ndarray:
    return np.concatenate([np.asarray(row, np.float64) for row in rows])

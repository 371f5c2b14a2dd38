"""One candidate for each layer, of the most value that a budget pays for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import optimize, sparse

Rows = Sequence[Sequence[Any]]


def knapsack(values: Rows, prices: Rows, budget: float) -> list[int]:
    """Number of the candidate chosen in each row: a multiple-choice knapsack.

    Solved to optimality as an integer program (HiGHS through scipy). The prices' own sum, not the
    solver's tolerance, decides whether the budget is met.

    Args:
      values: of each row's candidates; their sum is maximized.
      prices: like `values`; their sum is at most `budget`.
      budget: at least the sum of the rows' least prices.

    Raises:
      ValueError: a smaller budget.
    """
    least = sum(min(row) for row in prices)
    if budget < least:
        raise ValueError(f"budget: expected at least {least}, found {budget}.")
    best = [int(np.argmax(row)) for row in values]
    if _price(prices, best) <= budget:
        return best
    counts = [len(row) for row in values]
    total, rows = sum(counts), np.repeat(np.arange(len(counts)), counts)
    one_each = sparse.csr_array((np.ones(total), (rows, np.arange(total))))
    flat = np.concatenate([np.asarray(row, np.float64) for row in prices])
    constraints = [
        optimize.LinearConstraint(one_each, 1, 1),  # pyright: ignore[reportArgumentType]
        optimize.LinearConstraint(flat[None] / (budget or 1.0), -np.inf, 1.0),
    ]
    while True:
        result = optimize.milp(
            -np.concatenate([np.asarray(row, np.float64) for row in values]),
            integrality=np.ones(total),
            options={"mip_rel_gap": 0.0},
            bounds=optimize.Bounds(0, 1),
            constraints=constraints,
        )
        if not result.success:
            raise RuntimeError(f"The knapsack solver stopped: {result.message}")
        parts = np.split(result.x, np.cumsum(counts)[:-1])
        chosen = [int(np.argmax(part)) for part in parts]
        if _price(prices, chosen) <= budget:
            return chosen
        # Over the budget by less than the solver's tolerance: anything but this choice.
        taken = np.concatenate([np.eye(len(p))[n] for p, n in zip(parts, chosen, strict=True)])
        constraints.append(optimize.LinearConstraint(taken[None], -np.inf, len(counts) - 1))


def _price(prices: Rows, chosen: Sequence[int]) -> Any:
    return sum(row[number] for row, number in zip(prices, chosen, strict=True))

"""The cost term of bit-search: MetaMix Eq. 3 to 6."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from keras import ops

from keras_metamix.checks import one_of, require_number
from keras_metamix.cost import PricedBudget

CostForm = Literal["relative", "paper"]
DEFAULT_STRENGTH = {"relative": 8.0, "paper": 1.0}


@dataclasses.dataclass(frozen=True)
class Objective:
    r"""What bit-search adds to the task loss (MetaMix Eq. 3 to 5).

    $$L = L_{task} + \lambda \, d, \qquad d_{relative} = \left| \frac{C}{T} - 1 \right|, \qquad
    d_{paper} = \frac{|C - T|}{10^9}$$

    $$C = C_{fixed} + \sum_l \mathrm{hs}(\alpha_l)^\top P_l \, \mathrm{hs}(\beta_l), \qquad
    \mathrm{hs}(\alpha) = \mathrm{onehot}(\mathrm{argmax} \, \alpha)$$

    with the limit $T$ of the budget, each layer's prices $P_l$ at its activation ($\alpha$) and
    weight ($\beta$) candidates, and for $\mathrm{hs}(\alpha)$ the gradient of
    $\mathrm{softmax}(\alpha)$. Of several budgets $C / T$ is the largest of theirs.

    Attributes:
      budgets: with a price of each pair of each layer's candidates.
      strength: $\lambda$.
      form: of Eq. 4.
    """

    budgets: tuple[PricedBudget, ...]
    strength: float
    form: CostForm

    def distance(self, layers: Sequence[Any]) -> tuple[Any, dict[str, Any]]:
        """Eq. 4 at the bits that MAC layers would choose now; of several budgets the tightest's.

        Returns:
          The distance, and what each budget counts, in its unit, by its name in the logs.
        """
        costs = [chosen_cost(layers, budget) for budget in self.budgets]
        logs = {b.log: c * b.paper_unit for b, c in zip(self.budgets, costs, strict=True)}
        if len(costs) == 1:
            (budget,) = self.budgets
            return cost_loss(costs[0], budget.limit / budget.paper_unit, self.form), logs
        shares = [
            cost * (budget.paper_unit / budget.limit)
            for budget, cost in zip(self.budgets, costs, strict=True)
        ]
        tightest = shares[0]
        for share in shares[1:]:
            tightest = ops.maximum(tightest, share)
        return cost_loss(tightest, 1.0), logs


def make_objective(
    budgets: Sequence[PricedBudget], strength: float | None = None, form: CostForm = "relative"
) -> Objective:
    """An Objective, checked.

    Args:
      budgets: all of them are to be met.
      strength: lambda of Eq. 3; None is 8 for "relative", 1 for "paper".
      form: "relative", |cost / T - 1|, or "paper", |cost - T| in 1e9 BOPs.

    Raises:
      ValueError: another strength or form, or the paper's form for what is no budget of BOPs.
    """
    require_cost(form, strength)
    if form == "paper" and [budget.unit for budget in budgets] != ["BOPs"]:
        text = ", ".join(budget.name for budget in budgets)
        raise ValueError(f"cost_form='paper' is of one budget of BOPs, found {text}.")
    strength = DEFAULT_STRENGTH[form] if strength is None else strength
    return Objective(tuple(budgets), float(strength), form)


def require_cost(form: object, strength: object) -> None:
    """Raises ValueError unless they are a form of Eq. 4 and, or None, a lambda of Eq. 3."""
    one_of("cost_form", form, [*DEFAULT_STRENGTH])
    if strength is not None:
        require_number("cost_strength", strength, 0)


def chosen_cost(layers: Sequence[Any], costs: PricedBudget) -> Any:
    r"""The cost of MAC layers at the bits that they would choose now, in `costs.paper_unit`.

    $$C = C_{fixed} + \sum_l \mathrm{hs}(\alpha_l)^\top P_l \, \mathrm{hs}(\beta_l)$$

    with $P_l$ a layer's prices at each activation ($\alpha$) and weight ($\beta$) candidate. Where
    these are products, MACs * a * w, it is Eq. 6.

    Args:
      layers: quantized MAC layers.
      costs: with a price of each pair of their candidates.
    """
    total = ops.convert_to_tensor(costs.fixed / costs.paper_unit, "float32")
    for layer in layers:
        activation, weight = layer.input_quantizer.choice, layer.weight_quantizer.choice
        chosen = activation.selection()
        prices = _matrix(costs, layer.name, activation.candidates, weight.candidates)
        by_weight = ops.sum(ops.expand_dims(chosen, 1) * prices, axis=0)
        total += ops.sum(by_weight * (chosen if layer.tied else weight.selection()))
    return total


def _matrix(costs: PricedBudget, name: str, activations: Any, weights: Any) -> np.ndarray:
    """Prices in `costs.paper_unit`, so that float32 holds the digits that matter."""
    prices = costs.row(name, itertools.product(activations, weights))
    matrix = np.asarray(prices, np.float64).reshape(len(activations), len(weights))
    return (matrix / costs.paper_unit).astype(np.float32)


def cost_loss(cost: Any, target: float, form: CostForm = "relative") -> Any:
    r"""Eq. 4, two-sided: $|C / T - 1|$ ("relative") or $|C - T|$ ("paper").

    Args:
      cost: $C$ of the present choice, in the unit of the paper's form (1e9 BOPs).
      target: the budget $T$, in the same unit.
      form: "relative" or "paper".
    """
    distance = ops.abs(cost - target)
    return distance / target if form == "relative" else distance

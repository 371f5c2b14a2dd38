"""The cost term of bit-search: MetaMix Eq. 3 to 6."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from keras import ops

from keras_metamix.checks import one_of, require_number
from keras_metamix.pair_costs import PairCosts

CostForm = Literal["relative", "paper"]
DEFAULT_STRENGTH = {"relative": 8.0, "paper": 1.0}


@dataclasses.dataclass(frozen=True)
class Objective:
    """What bit-search adds to the task loss: `strength * cost_loss(...)`, Eq. 3.

    Attributes:
      target: the budget T, in the unit of the costs.
      strength: lambda.
      form: of Eq. 4.
      costs: with a price of each pair of each layer's candidates.
    """

    target: float
    strength: float
    form: CostForm
    costs: PairCosts


def require_cost(form: object, strength: object) -> None:
    """Raises ValueError unless they are a form of Eq. 4 and, or None, a lambda of Eq. 3."""
    one_of("cost", form, [*DEFAULT_STRENGTH])
    if strength is not None:
        require_number("cost_strength", strength, 0)


def chosen_cost(layers: Sequence[Any], costs: PairCosts) -> Any:
    """The cost of MAC layers at the bits that they would choose now, in `costs.paper_unit`.

    A layer costs `hs(alpha)^T P hs(beta)`, P its prices at each activation (alpha) and weight
    (beta) candidate. Where these are products, MACs * a * w, it is Eq. 6.

    Args:
      layers: quantized MAC layers.
      costs: with a price of each pair of their candidates.
    """
    total = ops.convert_to_tensor(costs.constant / costs.paper_unit, "float32")
    for layer in layers:
        activation, weight = layer.input_quantizer.choice, layer.weight_quantizer.choice
        chosen = activation.selection()
        prices = _matrix(costs, layer.name, activation.candidates, weight.candidates)
        by_weight = ops.sum(ops.expand_dims(chosen, 1) * prices, axis=0)
        total += ops.sum(by_weight * (chosen if layer.tied else weight.selection()))
    return total


def _matrix(costs: PairCosts, name: str, activations: Any, weights: Any) -> np.ndarray:
    """Prices in `costs.paper_unit`, so that float32 holds the digits that matter."""
    prices = costs.row(name, itertools.product(activations, weights))
    matrix = np.asarray(prices, np.float64).reshape(len(activations), len(weights))
    return (matrix / costs.paper_unit).astype(np.float32)


def cost_loss(cost: Any, target: float, form: CostForm = "relative") -> Any:
    """Eq. 4, two-sided.

    Args:
      cost: of the present choice, in the unit of the paper's form (1e9 BOPs).
      target: the budget T, in the same unit.
      form: "relative" |cost / T - 1|, or "paper" |cost - T|.
    """
    distance = ops.abs(cost - target)
    return distance / target if form == "relative" else distance

"""The networks, search spaces and budgets of benchmarks/metamix_study.py."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras

import keras_metamix as kmm
from keras_metamix import zoo
from keras_metamix.cost import PricedBudget

NETWORKS: dict[str, Callable[[], keras.Model]] = {
    "mobilenet": lambda: zoo.small_mobilenet(width=8),
    "resnet": lambda: zoo.small_resnet(width=8, stem_strides=2),
    "deep": lambda: zoo.mobilenet_v2((28, 28, 1), 10, width=0.35, momentum=0.9),
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """A search space and a budget.

    Attributes:
      space: the candidates.
      of: the uniform bits (activations, weights) whose cost is the measure.
      share: of their cost that a network may cost.
      unit: "BOPs", or "bytes" of packed weights.
      uniform: the uniform bits that stand beside, whatever they cost.
    """

    space: kmm.SearchSpace
    of: tuple[int, int]
    share: float
    unit: str
    uniform: tuple[tuple[int, int], ...]

    def budget(self, model: kmm.MetaMixModel) -> PricedBudget:
        """The budget, priced for a model."""
        full = kmm.Bops(share=1.0)
        if self.unit == "bytes":
            layers = kmm.layer_costs(model)
            table = {
                layer.name: {
                    (a, w): layer.weights * w / 8
                    for a, w in model.cost_table.candidates[layer.name]
                }
                for layer in layers
            }
            full = kmm.Priced(table, share=1.0)
        priced = full.priced(model)
        limit = self.share * priced.total(kmm.uniform_assignment(model, *self.of))
        return dataclasses.replace(priced, limit=limit)

    def given(self, model: kmm.MetaMixModel) -> Any:
        """The budget as `MetaMixCallback` and `select_bits` take it."""
        priced = self.budget(model)
        if self.unit == "BOPs":
            return kmm.Bops(priced.limit)
        return kmm.Priced(priced.prices, priced.limit)


SETTINGS = {
    "A842": Setting(kmm.SearchSpace((8, 4, 2), 4), (4, 4), 0.65, "BOPs", ((4, 4), (2, 4))),
    "A843": Setting(kmm.SearchSpace((8, 4, 3), 4), (4, 4), 0.85, "BOPs", ((3, 4),)),
    "W8432": Setting(kmm.SearchSpace(8, (8, 4, 3, 2)), (8, 8), 0.32, "bytes", ((8, 3), (8, 2))),
}

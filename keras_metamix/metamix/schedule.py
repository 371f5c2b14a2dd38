"""The learning rate of MetaMix's Table 1."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable("keras_metamix")
class SelectionThenCosine(keras.optimizers.schedules.LearningRateSchedule):
    """A constant rate while bits are selected, then a cosine from another rate towards 0.

    Args:
      selection_rate: the rate of bit-meta and bit-search.
      selection_steps: how many steps these take.
      rate: the rate at which weight training begins.
      steps: of the whole `fit`; from there on the rate is `floor * rate`.
      floor: where the cosine ends, as a share of `rate`.

    Raises:
      ValueError: no step is left for weight training.
    """

    def __init__(
        self,
        selection_rate: float,
        selection_steps: int,
        rate: float,
        steps: int,
        floor: float = 0.0,
    ):
        super().__init__()
        if not 0 <= selection_steps < steps:
            raise ValueError(
                f"selection_steps: expected fewer than steps={steps}, found {selection_steps}."
            )
        self.selection_rate, self.selection_steps = selection_rate, selection_steps
        self.rate, self.steps, self.floor = rate, steps, floor
        self._cosine = keras.optimizers.schedules.CosineDecay(
            rate, steps - selection_steps, alpha=floor
        )

    def __call__(self, step: Any) -> Any:
        trained = ops.maximum(step - self.selection_steps, 0)
        return ops.where(step < self.selection_steps, self.selection_rate, self._cosine(trained))

    def get_config(self) -> dict[str, Any]:
        return {
            "selection_rate": self.selection_rate,
            "selection_steps": self.selection_steps,
            "rate": self.rate,
            "steps": self.steps,
            "floor": self.floor,
        }

"""Leaky ReLUs, on the grid of their input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_metamix.graph.group import Group, Stage
from keras_metamix.graph.operators.base import Operator, require_levels
from keras_metamix.graph.requantize import Levels
from keras_metamix.layers.grid import Grid
from keras_metamix.layers.integer import IntegerLayer
from keras_metamix.layers.on_grid import (
    SLOPE_UNITS,
    QuantizedLeakyReLU,
    leaky_levels,
    slope_integer,
)


@keras.saving.register_keras_serializable("keras_metamix")
class IntegerLeakyReLU(IntegerLayer):
    """A leaky ReLU on the grid of its input.

    Args:
      grid: of input and output.
      slope: below 0, an integer of units of 1 / 256.
    """

    def __init__(self, output_grid: Grid | dict[str, Any], slope: int, **kwargs: Any):
        super().__init__(output_grid, **kwargs)
        self.slope = slope

    def call(self, x: Any) -> Any:
        return leaky_levels(x, self.slope)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"slope": self.slope}


class LeakyRelu(Operator):
    """`keras.layers.LeakyReLU`, which `expand` makes of all other forms."""

    title = "leaky ReLU"
    litert = "LEAKY_RELU"
    stage = Stage.CLOSED
    keeps_grid = True
    placewise = True
    layers: tuple[type, ...] = (keras.layers.LeakyReLU,)

    def refusal(self, node: Any) -> str:
        slope = node.operation.negative_slope
        if slope_integer(slope) >= 1 and slope <= 1:
            return ""
        return (
            f"no exact integer form with a slope of {slope:g}; use one from {1 / SLOPE_UNITS:.4f} "
            "to 1, or ReLU"
        )

    def trained(self, node: Any) -> Any:
        return QuantizedLeakyReLU

    def group(self, node: Any, sources: Sequence[Group], plan: Any) -> Group:
        (source,) = sources
        return Group(node, self, self.stage, source.sign, source.minimum)

    def begin(self, node: Any, values: Sequence[Levels | Group]) -> Levels:
        levels = require_levels(node, values[0])
        slope = slope_integer(node.operation.negative_slope)
        layer = IntegerLeakyReLU(levels.grid, slope, name=node.call_name)
        return Levels(layer(levels.tensor), levels.grid)

"""Products of two tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_metamix.graph.group import Group
from keras_metamix.graph.kinds import Kind
from keras_metamix.graph.operators.base import Operator
from keras_metamix.layers.grid import Grid
from keras_metamix.layers.integer import Combination, IntegerLayer, as_grid, product_ratio

_HARD_GATE_MINIMUM = -0.375  # of x * hard_sigmoid(x)


@keras.saving.register_keras_serializable("keras_metamix")
class IntegerMultiply(Combination):
    """Product of two tensors (broadcasting, as squeeze-and-excite does)."""

    has_fixed_point = True

    def call(self, tensors: Sequence[Any]) -> Any:
        first, second = (grid.scale for grid in self.input_grids)
        ratio = product_ratio(first, second, self.output_grid.scale)
        return self.requantize(tensors[0] * tensors[1], *ratio)


@keras.saving.register_keras_serializable("keras_metamix")
class IntegerFactors(IntegerLayer):
    """A product with an integer for each pixel: on the device, an INT8 constant.

    Args:
      factors: integers of [0, 127], shape (height, width).
      unit: the value of the integer 1.
    """

    has_fixed_point = True

    def __init__(
        self,
        factors: Sequence[Sequence[int]],
        unit: float,
        input_grid: Grid | dict[str, Any],
        output_grid: Grid | dict[str, Any],
        **kwargs: Any,
    ):
        super().__init__(output_grid, **kwargs)
        self.factors, self.unit = np.asarray(factors, np.int8), unit
        self.input_grid = as_grid(input_grid)
        labels = self.output_grid.scale / self.output_grid.step
        self.scale = np.float32(unit * labels * self.input_grid.step / self.input_grid.scale)

    def call(self, x: Any) -> Any:
        ratio = product_ratio(self.input_grid.scale, self.scale, self.output_grid.scale)
        return self.requantize(x * self.factors[None, :, :, None].astype(np.float32), *ratio)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "factors": self.factors.tolist(),
            "unit": self.unit,
            "input_grid": dataclasses.asdict(self.input_grid),
        }


class Multiply(Operator):
    """`keras.layers.Multiply` and `keras.ops.multiply`; of a tensor and its gate, swish."""

    title = "product"
    litert = "MUL"
    arity: int | None = 2
    placewise = True
    layers: tuple[type, ...] = (keras.layers.Multiply,)
    raw: tuple[str, ...] = ("Multiply",)

    def group(self, node: Any, sources: Sequence[Group], plan: Any) -> Group:
        group = super().group(node, sources, plan)
        minimum = _gate_minimum(node, plan)
        if group.sign == "unsigned" or minimum is None:
            return group
        return dataclasses.replace(group, sign="offset", minimum=minimum)

    def integers(self, node: Any, inputs: Sequence[Any], grid: Any, clip: dict[str, Any]) -> Any:
        grids, tensors = [v.grid for v in inputs], [v.tensor for v in inputs]
        return IntegerMultiply(grids, grid, name=node.call_name, **clip)(tensors)


def _gate_minimum(node: Any, plan: Any) -> float | None:
    """The least value of a product `x * gate(x)`; None for another product."""
    for value, gate in (node.inputs, node.inputs[::-1]):
        before = plan.topology.producer(gate)
        if before is None or before.inputs[0] is not value:
            continue
        found = plan.kind(before)
        if found is Kind.HARD_SIGMOID:
            return _HARD_GATE_MINIMUM
        if isinstance(found, Operator) and found.gate_minimum is not None:
            return found.gate_minimum
    return None

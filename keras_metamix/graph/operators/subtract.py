"""Differences of two tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_metamix.graph.group import Group
from keras_metamix.graph.operators.add import IntegerAdd
from keras_metamix.graph.operators.base import Operator


@keras.saving.register_keras_serializable("keras_metamix")
class IntegerSubtract(IntegerAdd):
    """Difference of two tensors: XNNPACK's sum with the second one's factor negated."""

    sign = -1


class Subtract(Operator):
    """`keras.layers.Subtract` and `keras.ops.subtract`."""

    title = "difference"
    litert = "SUB"
    arity: int | None = 2
    placewise = True
    layers: tuple[type, ...] = (keras.layers.Subtract,)
    raw: tuple[str, ...] = ("Subtract",)

    def group(self, node: Any, sources: Sequence[Group], plan: Any) -> Group:
        return Group(node, self, self.stage)

    def integers(self, node: Any, inputs: Sequence[Any], grid: Any, clip: dict[str, Any]) -> Any:
        grids, tensors = [v.grid for v in inputs], [v.tensor for v in inputs]
        return IntegerSubtract(grids, grid, name=node.call_name, **clip)(tensors)

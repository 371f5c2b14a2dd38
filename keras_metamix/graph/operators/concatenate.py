"""Concatenations: every part is computed on the grid of the whole.

Parts that lie on one grid already, such as slices of one tensor, are moved alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_metamix.graph.group import Group
from keras_metamix.graph.operators.base import Operator
from keras_metamix.graph.requantize import Levels, clip_ends, rescaled


class Concatenate(Operator):
    """`keras.layers.Concatenate` and `keras.ops.concatenate`."""

    title = "concatenation"
    litert = "CONCATENATION"
    arity: int | None = None
    joins_parts = True
    layers: tuple[type, ...] = (keras.layers.Concatenate,)
    raw: tuple[str, ...] = ("Concatenate",)

    def begin(self, node: Any, values: Sequence[Levels | Group]) -> Levels | Group:
        parts = [value for value in values if isinstance(value, Levels)]
        if len(parts) == len(values) and len({part.grid for part in parts}) == 1:
            whole = self.joined(node, node.call_name)
            return Levels(whole([part.tensor for part in parts]), parts[0].grid)
        return Group(node, self, self.stage, inputs=tuple(values))

    def finish(self, group: Group, grid: Any, clip: dict[str, Any], fold: Any) -> Any:
        node: Any = group.head
        name, tensors = node.call_name, []
        for number, part in enumerate(group.inputs):
            part_name = fold.names.new(f"{name}_part{number}")
            if isinstance(part, Group):
                clipped = part.clipped(group.low, group.high)
                tensors.append(fold.finish(clipped, grid, part_name))
            else:
                whole = Group(node, self, low=group.low, high=group.high)
                ends = clip_ends(whole, grid, part_name)
                tensors.append(rescaled(part, grid, ends, part_name))
        return self.joined(node, name)(tensors)

    def joined(self, node: Any, name: str) -> Any:
        """The layer of a call, for levels of one grid."""
        return keras.layers.Concatenate(axis=node.operation.axis, name=name)

"""Concatenations: every part is computed on the grid of the whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_metamix.graph.group import Group
from keras_metamix.graph.operators.base import Operator
from keras_metamix.graph.requantize import clip_ends, rescaled


class Concatenate(Operator):
    """`keras.layers.Concatenate` and `keras.ops.concatenate`."""

    title, litert, arity, joins_parts = "concatenation", "CONCATENATION", None, True
    layers, raw = (keras.layers.Concatenate,), ("Concatenate",)

    def begin(self, node: Any, values: Sequence[Any]) -> Group:
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

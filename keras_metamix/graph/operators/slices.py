"""Parts of a tensor."""

from __future__ import annotations

from typing import Any

from keras import layers

from keras_metamix.graph.operators.base import DataMovementOperator
from keras_metamix.layers.slice import Slice


class Slices(DataMovementOperator):
    """`Slice`, which `expand` makes of all other forms, and `Cropping2D`."""

    layers: tuple[type, ...] = (Slice, layers.Cropping2D)

    def litert(self, operation: Any) -> str:
        return "STRIDED_SLICE"

    def layer(self, node: Any) -> Any:
        size = node.output.shape[1:]
        if isinstance(node.operation, Slice):
            return Slice(node.operation.begin, size, name=node.call_name)
        (top, _), (left, _) = node.operation.cropping
        return Slice((top, left, 0), size, name=node.call_name)

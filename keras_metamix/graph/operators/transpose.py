"""Other orders of the axes."""

from __future__ import annotations

from typing import Any

from keras import layers

from keras_metamix.graph.kinds import Kind
from keras_metamix.graph.operators.base import DataMovementOperator

_MOST_AXES = 6  # of LiteRT's TRANSPOSE, the batch's among them


class Transpose(DataMovementOperator):
    """`keras.layers.Permute`, which `expand` makes of all other forms."""

    layers: tuple[type, ...] = (layers.Permute,)

    def kind(self, operation: Any, node: Any) -> Kind:
        return Kind.PASS if len(operation.dims) < _MOST_AXES else Kind.FLOAT

    def litert(self, operation: Any) -> str:
        return "TRANSPOSE"

"""The largest and the smallest value along axes."""

from __future__ import annotations

from typing import Any

from keras_metamix.graph.kinds import Kind
from keras_metamix.graph.operators.base import Move, reduced_axes


class Largest(Move):
    """`keras.ops.max` and `keras.ops.amax`."""

    raw = ("Max", "Amax")

    def kind(self, operation: Any, node: Any) -> Kind:
        bounded = getattr(operation, "initial", None) is not None
        rank = None if node is None else len(node.inputs[0].shape)
        return Kind.FLOAT if bounded or not reduced_axes(operation, rank) else Kind.PASS

    def litert(self, operation: Any) -> str:
        return "REDUCE_MAX"


class Smallest(Largest):
    """`keras.ops.min` and `keras.ops.amin`."""

    raw = ("Min", "Amin")

    def litert(self, operation: Any) -> str:
        return "REDUCE_MIN"

"""The largest and the smallest value, along axes or of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_metamix.graph.group import Group
from keras_metamix.graph.kinds import Kind
from keras_metamix.graph.operators.base import DataMovementOperator, reduced_axes
from keras_metamix.graph.operators.concatenate import Concatenate


class Largest(DataMovementOperator):
    """`keras.ops.max` and `keras.ops.amax`."""

    raw: tuple[str, ...] = ("Max", "Amax")

    def kind(self, operation: Any, node: Any) -> Kind:
        bounded = getattr(operation, "initial", None) is not None
        rank = None if node is None else len(node.inputs[0].shape)
        return Kind.FLOAT if bounded or not reduced_axes(operation, rank) else Kind.PASS

    def litert(self, operation: Any) -> str:
        return "REDUCE_MAX"


class Smallest(Largest):
    """`keras.ops.min` and `keras.ops.amin`."""

    raw: tuple[str, ...] = ("Min", "Amin")

    def litert(self, operation: Any) -> str:
        return "REDUCE_MIN"


class Maximum(Concatenate):
    """`keras.layers.Maximum` and `keras.ops.maximum` of tensors of one shape.

    Every part is computed on the grid of the whole.
    """

    title = "maximum"
    litert = "REDUCE_MAX"
    layers: tuple[type, ...] = (keras.layers.Maximum,)
    raw: tuple[str, ...] = ("Maximum",)

    def takes(self, operation: Any, node: Any) -> bool:
        return node is None or len(node.inputs) > 1

    def refusal(self, node: Any) -> str | None:
        same = len({tuple(tensor.shape) for tensor in node.inputs}) == 1
        return "" if same else None

    def group(self, node: Any, sources: Sequence[Group], plan: Any) -> Group:
        positive = any(source.sign == "unsigned" for source in sources)
        return Group(node, self, self.stage, "unsigned" if positive else "signed")

    def joined(self, node: Any, name: str) -> Any:
        return keras.layers.Maximum(name=name)

    def takes_edge_tpu(self, node: Any) -> bool:
        return False  # an axis more counts the tensors


class Minimum(Maximum):
    """`keras.layers.Minimum` and `keras.ops.minimum` of tensors."""

    title = "minimum"
    litert = "REDUCE_MIN"
    layers: tuple[type, ...] = (keras.layers.Minimum,)
    raw: tuple[str, ...] = ("Minimum",)

    def group(self, node: Any, sources: Sequence[Group], plan: Any) -> Group:
        return Concatenate.group(self, node, sources, plan)

    def joined(self, node: Any, name: str) -> Any:
        return keras.layers.Minimum(name=name)

"""Maxima and minima of tensors of one shape: every part is computed on the grid of the whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_metamix.graph.group import Group
from keras_metamix.graph.operators.concatenate import Concatenate


class Maximum(Concatenate):
    """`keras.layers.Maximum` and `keras.ops.maximum` of tensors."""

    title, litert = "maximum", "REDUCE_MAX"
    layers, raw = (keras.layers.Maximum,), ("Maximum",)

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


class Minimum(Maximum):
    """`keras.layers.Minimum` and `keras.ops.minimum` of tensors."""

    title, litert = "minimum", "REDUCE_MIN"
    layers, raw = (keras.layers.Minimum,), ("Minimum",)

    def group(self, node: Any, sources: Sequence[Group], plan: Any) -> Group:
        return Concatenate.group(self, node, sources, plan)

    def joined(self, node: Any, name: str) -> Any:
        return keras.layers.Minimum(name=name)

"""Average pooling: a depthwise convolution with equal weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_metamix.graph.fold_mac import fold_average, pool_is_padded
from keras_metamix.graph.operators.base import Operator


class AveragePool(Operator):
    """`keras.layers.AveragePooling2D`, within the borders of the image."""

    title, litert, takes_labels = "average pooling", "DEPTHWISE_CONV_2D", True
    layers = (keras.layers.AveragePooling2D,)

    def refusal(self, node: Any) -> str | None:
        return None if pool_is_padded(node) else ""

    def integers(self, node: Any, inputs: Sequence[Any], grid: Any, clip: dict) -> Any:
        return fold_average(node, inputs[0].grid, grid, clip)(inputs[0].tensor)

"""Average pooling: a depthwise convolution with equal weights, and over a border a product."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_metamix.graph.fold_mac import fold_average, pool_is_padded
from keras_metamix.graph.group import Group
from keras_metamix.graph.operators.base import Operator
from keras_metamix.graph.operators.multiply import IntegerFactors
from keras_metamix.layers.grid import Grid
from keras_metamix.layers.on_grid import QuantizedAveragePooling2D, window_counts

_LARGEST = 127  # of an INT8 constant


class AveragePool(Operator):
    """`keras.layers.AveragePooling2D`.

    Over a border the device counts zeros in, rounds on the grid of its input, and multiplies by
    (size of the window) / (values inside).
    """

    title = "average pooling"
    litert = "DEPTHWISE_CONV_2D"
    takes_nominal_scale = True
    layers: tuple[type, ...] = (keras.layers.AveragePooling2D,)

    def refusal(self, node: Any) -> str | None:
        return None if pool_is_padded(node) and _factors(node)[0].max() > _LARGEST else ""

    def operator(self, node: Any) -> str:
        return "MUL" if pool_is_padded(node) else self.litert

    def trained(self, node: Any) -> Any:
        return QuantizedAveragePooling2D if pool_is_padded(node) else None

    def finish(self, group: Group, grid: Grid, clip: dict[str, Any], fold: Any) -> Any:
        node: Any = group.head
        (source,) = group.inputs
        if not pool_is_padded(node):
            return fold_average(node, source.grid, grid, clip)(source.tensor)
        name = fold.names.new(f"{node.call_name}_sum")
        sums = fold_average(node, source.grid, source.grid, {}, name)(source.tensor)
        factors, unit = _factors(node)
        name = node.call_name
        return IntegerFactors(factors.tolist(), unit, source.grid, grid, name=name, **clip)(sums)


def _factors(node: Any) -> tuple[np.ndarray, float]:
    """Integers in the ratio of (size of the window) / (values inside), and the value of 1."""
    pool = node.operation
    counts = window_counts(node.inputs[0].shape, pool.pool_size, pool.strides)
    multiple = int(np.lcm.reduce(np.unique(counts)))
    return multiple // counts, float(np.prod(pool.pool_size)) / multiple

"""Means over height and width."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_metamix.graph.operators.base import Operator
from keras_metamix.layers.grid import Grid
from keras_metamix.layers.integer import IntegerLayer, as_grid

_SPACE = ((1, 2), (-3, -2))


@keras.saving.register_keras_serializable("keras_metamix")
class IntegerMean(IntegerLayer):
    """Mean over height and width."""

    def __init__(
        self,
        input_grid: Grid | dict[str, Any],
        output_grid: Grid | dict[str, Any],
        keepdims: bool = False,
        **kwargs: Any,
    ):
        super().__init__(output_grid, **kwargs)
        self.input_grid, self.keepdims = as_grid(input_grid), keepdims

    def call(self, x: Any) -> Any:
        # XNNPACK sums codes and applies both zero-points in float32, which may turn a tie.
        source, target, count = self.input_grid, self.output_grid, x.shape[1] * x.shape[2]
        multiplier = np.float32(source.scale) / np.float32(target.scale)
        multiplier *= np.float32(1) / np.float32(count)
        zero = np.float32(source.zero_point * count)
        offset = np.float32(target.zero_point) - zero * multiplier
        codes = ops.sum(x, axis=(1, 2), keepdims=self.keepdims) + zero
        levels = ops.round(codes * multiplier + offset) - target.zero_point
        return ops.clip(levels, self.low, self.high)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "input_grid": dataclasses.asdict(self.input_grid),
            "keepdims": self.keepdims,
        }


class Mean(Operator):
    """`keras.layers.GlobalAveragePooling2D` and `keras.ops.mean` over space."""

    title, litert, fuses = "mean over space", "MEAN", False
    layers, raw = (keras.layers.GlobalAveragePooling2D,), ("Mean",)

    def takes(self, operation: Any, node: Any) -> bool:
        axis = operation.axis if isinstance(operation.axis, (tuple, list)) else (operation.axis,)
        images = node is None or len(node.inputs[0].shape) == 4
        return images and tuple(axis) in _SPACE

    def integers(self, node: Any, inputs: Sequence[Any], grid: Any, clip: dict) -> Any:
        keepdims = node.operation.keepdims
        layer = IntegerMean(inputs[0].grid, grid, keepdims, name=node.call_name, **clip)
        return layer(inputs[0].tensor)

"""Means and sums along axes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_metamix.graph.operators.base import Operator, reduced_axes
from keras_metamix.layers.fixed_point import quantized_multiplier, shifted
from keras_metamix.layers.grid import Grid
from keras_metamix.layers.integer import IntegerLayer, as_grid
from metamix_tflite.operators.mean import EDGE_TPU_DEPTH


@keras.saving.register_keras_serializable("keras_metamix")
class IntegerMean(IntegerLayer):
    """Mean along axes.

    Args:
      input_grid: of the input.
      axes: that it is taken along, none of them the batch's.
      keepdims: whether these stay, with one place each.
    """

    def __init__(
        self,
        input_grid: Grid | dict[str, Any],
        output_grid: Grid | dict[str, Any],
        axes: Sequence[int] = (1, 2),
        keepdims: bool = False,
        **kwargs: Any,
    ):
        super().__init__(output_grid, **kwargs)
        self.input_grid, self.axes, self.keepdims = as_grid(input_grid), tuple(axes), keepdims

    has_fixed_point = True

    def share(self, count: int) -> np.float32:
        """What each of so many values counts for."""
        return np.float32(1) / np.float32(count)

    def _in_fixed_point(self, x: Any) -> Any:
        """The multiplier is divided by the number of values, as an integer of 31 bits."""
        scales = (np.float64(np.float32(g.scale)) for g in (self.input_grid, self.output_grid))
        count = int(np.prod([x.shape[axis] for axis in self.axes]))
        source, target = scales
        q, shift = quantized_multiplier(source / target)
        if self.share(count) != 1:
            more = count.bit_length() - 1
            q, shift = q * 2**more // count, shift - more
        sums = ops.sum(ops.cast(x, "int64"), axis=self.axes, keepdims=self.keepdims)
        return self.clipped(shifted(sums, q, shift))

    def call(self, x: Any) -> Any:
        if self.fixed_point:
            return self._in_fixed_point(x)
        # XNNPACK sums codes and applies both zero-points in float32, which may turn a tie.
        source, target = self.input_grid, self.output_grid
        count = int(np.prod([x.shape[axis] for axis in self.axes]))
        multiplier = np.float32(source.scale) / np.float32(target.scale)
        multiplier *= self.share(count)
        zero = np.float32(source.zero_point * count)
        offset = np.float32(target.zero_point) - zero * multiplier
        codes = ops.sum(x, axis=self.axes, keepdims=self.keepdims) + zero
        levels = ops.round(codes * multiplier + offset) - target.zero_point
        return ops.clip(levels, self.low, self.high)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "input_grid": dataclasses.asdict(self.input_grid),
            "axes": self.axes,
            "keepdims": self.keepdims,
        }


@keras.saving.register_keras_serializable("keras_metamix")
class IntegerSum(IntegerMean):
    """Sum along axes."""

    def share(self, count: int) -> np.float32:
        return np.float32(1)


class Mean(Operator):
    """`keras.layers.GlobalAveragePooling2D` and `keras.ops.mean`."""

    title = "mean along axes"
    litert = "MEAN"
    integer = IntegerMean
    fuses = False
    layers: tuple[type, ...] = (keras.layers.GlobalAveragePooling2D,)
    raw: tuple[str, ...] = ("Mean",)

    def takes(self, operation: Any, node: Any) -> bool:
        return bool(reduced_axes(operation, node and len(node.inputs[0].shape)))

    def axes(self, node: Any) -> tuple[int, ...]:
        """The axes that a call reduces."""
        operation = node.operation
        pools = isinstance(operation, keras.layers.Layer)
        return (1, 2) if pools else reduced_axes(operation, len(node.inputs[0].shape))

    def takes_edge_tpu(self, node: Any) -> bool:
        shape = node.inputs[0].shape
        return len(shape) - 1 not in self.axes(node) or shape[-1] % EDGE_TPU_DEPTH == 0

    def integers(self, node: Any, inputs: Sequence[Any], grid: Any, clip: dict[str, Any]) -> Any:
        axes, keepdims, name = self.axes(node), node.operation.keepdims, node.call_name
        layer = self.integer(inputs[0].grid, grid, axes, keepdims, name=name, **clip)
        return layer(inputs[0].tensor)


class Sum(Mean):
    """`keras.ops.sum`."""

    title = "sum along axes"
    litert = "SUM"
    integer = IntegerSum
    layers: tuple[type, ...] = ()
    raw: tuple[str, ...] = ("Sum",)

    def takes_edge_tpu(self, node: Any) -> bool:
        return True

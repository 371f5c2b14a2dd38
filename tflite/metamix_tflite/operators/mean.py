"""Means and sums along axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from metamix_tflite.encoding import Op
from metamix_tflite.operators.base import (
    Call,
    Family,
    FileWriter,
    LevelRange,
    Litert,
    clipped,
    require_unclipped,
)

EDGE_TPU_DEPTH = 4  # it takes means of a multiple of so many channels


class Mean(Family):
    """MEAN, which has no fused activation."""

    layers: tuple[str, ...] = ("IntegerMean",)
    litert: tuple[Litert, ...] = (Litert("MEAN", (2,), geometry=("keepDims",), gpu=False),)

    def write(self, file: FileWriter, node: Any) -> None:
        layer, op = node.operation, getattr(Op, self.litert[0].name)
        # A mean, or a sum, of levels >= 0 is >= 0.
        require_unclipped(node, positive=layer.input_grid.low >= 0)
        reduced(file, node, op, layer.output_grid, layer.axes, layer.keepdims)

    def outline(self, node: Any) -> list[tuple[int, tuple[int, ...]]]:
        return [(1, (len(node.operation.axes),))]

    def levels(self, call: Call, ranges: Mapping[int, LevelRange]) -> LevelRange:
        found, source = super().levels(call, ranges), ranges[call.operator.inputs[0]]
        return LevelRange(max(found.low, 0), found.high) if source.low >= 0 else found

    def share(self, count: int) -> np.float32:
        """What each of so many values counts for."""
        return np.float32(1) / np.float32(count)

    def computed(self, call: Call, levels: Sequence[np.ndarray]) -> np.ndarray:
        # XNNPACK sums codes and applies both zero-points in float32, which may turn a tie.
        source, target = call.inputs[0], call.output
        axes = tuple(levels[1].reshape(-1).tolist())
        count = int(np.prod([levels[0].shape[axis] for axis in axes]))
        multiplier = np.float32(source.scales[0]) / np.float32(target.scales[0])
        multiplier *= self.share(count)
        zeros = np.float32(source.zero_points[0] * count), np.float32(target.zero_points[0])
        sums = levels[0].sum(axis=axes).astype(np.float32) + zeros[0]
        codes = np.rint(sums * multiplier + (zeros[1] - zeros[0] * multiplier))
        found = clipped(call, codes.astype(np.int64) - int(target.zero_points[0]))
        return found.reshape(-1, *target.shape[1:])

    def edge_tpu_refusal(self, call: Call) -> str:
        source, axes = call.inputs[:2]
        depth = source.shape[-1]
        if axes.data is None or len(source.shape) - 1 not in axes.data % len(source.shape):
            return ""
        rest = depth % EDGE_TPU_DEPTH
        return f"reduces {depth} channels, no multiple of {EDGE_TPU_DEPTH}" if rest else ""


class Sum(Mean):
    """SUM, which has no fused activation."""

    layers: tuple[str, ...] = ("IntegerSum",)
    litert: tuple[Litert, ...] = (
        Litert("SUM", (2,), geometry=("keepDims",), fixed_point=False, gpu=False),
    )

    def share(self, count: int) -> np.float32:
        return np.float32(1)

    def edge_tpu_refusal(self, call: Call) -> str:
        return ""


def reduced(file: FileWriter, node: Any, op: int, grid: Any, axis: Any, keepdims: bool) -> None:
    """An operator that reduces axes of a tensor.

    Args:
      file, node: the layer, which reads one tensor.
      op: LiteRT's operator.
      grid: of the result.
      axis: one, or several, from the end where they are negative.
      keepdims: whether they stay.
    """
    (source,), options = file.read(node), schema.ReducerOptionsT()
    given = axis if isinstance(axis, (tuple, list)) else (axis,)
    axes = file.vector(f"{node.name}/axes", sorted(n % len(source.shape) for n in given))
    options.keepDims = keepdims
    target = file.output(node, grid)
    file.graph.operator(op, [source.index, axes], [target], options, version=2)

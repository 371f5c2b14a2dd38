"""Means over height and width."""

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


class Mean(Family):
    """MEAN over height and width, which has no fused activation."""

    layers = ("IntegerMean",)
    litert = (Litert("MEAN", (2,), geometry=("keepDims",), gpu=False),)
    constants = (2,)

    def write(self, file: FileWriter, node: Any) -> None:
        layer, (source,) = node.operation, file.read(node)
        # A mean of levels >= 0 is >= 0.
        require_unclipped(node, positive=layer.input_grid.low >= 0)
        axes = file.vector(f"{node.name}/axes", [1, 2])
        options = schema.ReducerOptionsT()
        options.keepDims = layer.keepdims
        target = file.output(node, layer.output_grid)
        file.graph.operator(Op.MEAN, [source.index, axes], [target], options, version=2)

    def levels(self, call: Call, ranges: Mapping[int, LevelRange]) -> LevelRange:
        found, source = super().levels(call, ranges), ranges[call.operator.inputs[0]]
        return LevelRange(max(found.low, 0), found.high) if source.low >= 0 else found

    def computed(self, call: Call, levels: Sequence[np.ndarray]) -> np.ndarray:
        # XNNPACK sums codes and applies both zero-points in float32, which may turn a tie.
        source, target = call.inputs[0], call.output
        count = levels[0].shape[1] * levels[0].shape[2]
        multiplier = np.float32(source.scales[0]) / np.float32(target.scales[0])
        multiplier *= np.float32(1) / np.float32(count)
        zeros = np.float32(source.zero_points[0] * count), np.float32(target.zero_points[0])
        sums = levels[0].sum(axis=(1, 2)).astype(np.float32) + zeros[0]
        codes = np.rint(sums * multiplier + (zeros[1] - zeros[0] * multiplier))
        found = clipped(call, codes.astype(np.int64) - int(target.zero_points[0]))
        return found.reshape(-1, *target.shape[1:])

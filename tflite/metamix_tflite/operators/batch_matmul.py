"""Matrix products of two activations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from metamix_tflite.encoding import Op
from metamix_tflite.operators.base import (
    Call,
    Family,
    FileWriter,
    Litert,
    check_multiplier,
    requantized,
    require_unclipped,
)

_BITS = 8  # of either factor
_OPTIONS = ("adjX", "adjY")


class BatchMatmul(Family):
    """BATCH_MATMUL, which has no fused activation, and a second factor of zero-point 0."""

    layers: tuple[str, ...] = ("IntegerBatchMatmul",)
    litert: tuple[Litert, ...] = (
        Litert(
            "BATCH_MATMUL",
            (2,),
            geometry=_OPTIONS,
            options=schema.BatchMatMulOptions,
            numbers=("AdjX", "AdjY"),
            gpu=False,
            edge_tpu=False,
            fixed_point=False,
        ),
    )

    def write(self, file: FileWriter, node: Any) -> None:
        layer, (first, second) = node.operation, file.read(node)
        require_unclipped(node)
        scales = [np.float32(grid.scale) for grid in layer.input_grids]
        check_multiplier(node, scales[0] * scales[1] / np.float32(layer.output_grid.scale))
        options = schema.BatchMatMulOptionsT()
        options.adjX, options.adjY = layer.transposed
        target = file.output(node, layer.output_grid)
        inputs = [first.index, second.index]
        file.graph.operator(Op.BATCH_MATMUL, inputs, [target], options, version=3)
        macs = math.prod(node.output.shape[1:]) * first.shape[_depth(layer.transposed[0])]
        file.declared["bops"] += macs * _BITS * _BITS

    def check(self, call: Call) -> None:
        ranks = {len(tensor.shape) for tensor in (*call.inputs, call.output)}
        if len(ranks) != 1 or min(ranks) < 3:
            call.fail("axes of its tensors", "as many of each, 3 or more", sorted(ranks))
        if call.inputs[1].zero_points.tolist() != [0]:
            call.fail("zero-point of its second factor", 0, call.inputs[1].zero_points.tolist())

    def bops(self, call: Call) -> int:
        depth = call.inputs[0].shape[_depth(call.operator.numbers[0])]
        return math.prod(call.output.shape) * depth * _BITS * _BITS

    def computed(self, call: Call, levels: Sequence[np.ndarray]) -> np.ndarray:
        first, second = (
            np.swapaxes(values, -1, -2) if turned else values
            for values, turned in zip(levels, call.operator.numbers, strict=True)
        )
        scales = [np.float32(tensor.scales[0]) for tensor in (*call.inputs, call.output)]
        return requantized(call, first @ second, scales[0] * scales[1] / scales[2])


def _depth(transposed: Any) -> int:
    """The axis of the first factor over which products are summed."""
    return -2 if transposed else -1

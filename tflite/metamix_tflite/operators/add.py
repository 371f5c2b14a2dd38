"""Sums of two tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from metamix_tflite.encoding import Fused, Op
from metamix_tflite.operators.base import (
    Call,
    Family,
    FileWriter,
    Litert,
    check_multiplier,
    clipped,
)

_LEAST = 2.0**-10  # XNNPACK leaves sums of smaller scale ratios to others


class Add(Family):
    """ADD of two tensors."""

    layers: tuple[str, ...] = ("IntegerAdd",)
    litert: tuple[Litert, ...] = (Litert("ADD", (2,), schema.AddOptions),)

    def write(self, file: FileWriter, node: Any) -> None:
        write_sum(file, node, Op.ADD, schema.AddOptionsT())

    def computed(self, call: Call, levels: Sequence[np.ndarray]) -> np.ndarray:
        return fixed_point_sum(call, levels)


def fixed_point_sum(call: Call, levels: Sequence[np.ndarray]) -> np.ndarray:
    """XNNPACK's sum: scale ratios as integers of 21 bits, half added before the shift right."""
    output = np.float32(call.output.scales[0])
    ratios = [np.float32(tensor.scales[0]) / output for tensor in call.inputs]
    shift = 20 - (int(np.frexp(max(ratios))[1]) - 1)
    first, second = (int(np.rint(np.ldexp(np.float64(ratio), shift))) for ratio in ratios)
    total = levels[0] * first + levels[1] * second
    return clipped(call, (total + (1 << (shift - 1))) >> shift)


def write_sum(file: FileWriter, node: Any, op: int, options: Any) -> None:
    """An operator that adds, or subtracts, in XNNPACK's fixed point."""
    layer = node.operation
    scales = np.array([grid.scale for grid in layer.input_grids], np.float32)
    check_multiplier(node, scales / np.float32(layer.output_grid.scale), _LEAST)
    write_combination(file, node, op, options, [t.index for t in file.read(node)])


def write_combination(
    file: FileWriter, node: Any, op: int, options: Any, inputs: list[int]
) -> None:
    """An operator of several tensors, with its layer's clip as fused activation."""
    activation = file.fused_activation(node)
    options.fusedActivationFunction = getattr(Fused, activation)
    target = file.output(node, node.operation.output_grid, activation)
    file.graph.operator(op, inputs, [target], options, version=2)

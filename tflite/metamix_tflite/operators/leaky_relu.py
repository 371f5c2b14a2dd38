"""Leaky ReLUs on the grid of their input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from metamix_tflite.encoding import Op
from metamix_tflite.operators.base import Call, FileWriter, Litert, clipped
from metamix_tflite.operators.data_movement import DataMovement

_UNITS = 256  # XNNPACK multiplies by an integer of so many


class LeakyRelu(DataMovement):
    """LEAKY_RELU whose output has its input's scale: levels of 0 and above stay as they are."""

    layers: tuple[str, ...] = ("IntegerLeakyReLU",)
    litert: tuple[Litert, ...] = (
        Litert(
            "LEAKY_RELU",
            (1,),
            options=schema.LeakyReluOptions,
            numbers=("Alpha",),
            gpu=False,
            edge_tpu=False,
            fixed_point=False,
        ),
    )

    def write(self, file: FileWriter, node: Any) -> None:
        layer, (source,) = node.operation, file.read(node)
        options = schema.LeakyReluOptionsT()
        options.alpha = layer.slope / _UNITS
        target = file.output(node, layer.output_grid)
        file.graph.operator(Op.LEAKY_RELU, [source.index], [target], options, version=2)

    def check(self, call: Call) -> None:
        """XNNPACK takes slopes of 1 / 256 and more."""
        units = _UNITS * call.operator.numbers[0]
        if not (units == round(units) and 1 <= units <= _UNITS):
            call.fail("slope", "1 to 256 times 1 / 256", units / _UNITS)

    def computed(self, call: Call, levels: Sequence[np.ndarray]) -> np.ndarray:
        slope = int(_UNITS * call.operator.numbers[0])
        below = (levels[0] * slope + _UNITS // 2) >> 8
        return clipped(call, np.where(levels[0] < 0, below, levels[0]))

"""Differences of two tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from metamix_tflite.encoding import Op
from metamix_tflite.operators.add import fixed_point_sum, write_sum
from metamix_tflite.operators.base import Call, Family, FileWriter, Litert


class Subtract(Family):
    """SUB of two tensors."""

    layers: tuple[str, ...] = ("IntegerSubtract",)
    litert: tuple[Litert, ...] = (Litert("SUB", (2,), schema.SubOptions),)

    def write(self, file: FileWriter, node: Any) -> None:
        write_sum(file, node, Op.SUB, schema.SubOptionsT())

    def computed(self, call: Call, levels: Sequence[np.ndarray]) -> np.ndarray:
        first, second = levels
        return fixed_point_sum(call, [first, -second])

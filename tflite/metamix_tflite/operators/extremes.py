"""The largest and the smallest value along axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from metamix_tflite.encoding import Op
from metamix_tflite.operators.base import Call, FileWriter, Litert
from metamix_tflite.operators.mean import reduced
from metamix_tflite.operators.moves import Move


class Largest(Move):
    """REDUCE_MAX."""

    layers = ("Max", "Amax")
    litert = (Litert("REDUCE_MAX", (2,), geometry=("keepDims",), gpu=False),)

    def write(self, file: FileWriter, node: Any) -> None:
        operation, (source,) = node.operation, file.read(node)
        op = getattr(Op, self.litert[0].name)
        reduced(file, node, op, source.grid, operation.axis, operation.keepdims)

    def outline(self, node: Any) -> list[tuple[int, tuple[int, ...]]]:
        axis = node.operation.axis
        return [(1, (len(axis) if isinstance(axis, (tuple, list)) else 1,))]

    def computed(self, call: Call, levels: Sequence[np.ndarray]) -> np.ndarray:
        found = levels[0].max(axis=tuple(levels[1].tolist()))
        return found.reshape(-1, *call.output.shape[1:])


class Smallest(Largest):
    """REDUCE_MIN."""

    layers = ("Min", "Amin")
    litert = (Litert("REDUCE_MIN", (2,), geometry=("keepDims",), gpu=False),)

    def computed(self, call: Call, levels: Sequence[np.ndarray]) -> np.ndarray:
        return -super().computed(call, [-levels[0], levels[1]])

"""Other orders of the axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from metamix_tflite.encoding import Op
from metamix_tflite.operators.base import Call, FileWriter, Litert
from metamix_tflite.operators.data_movement import DataMovement


class Transpose(DataMovement):
    """TRANSPOSE, the batch's axis first."""

    layers: tuple[str, ...] = ("Permute",)
    litert: tuple[Litert, ...] = (Litert("TRANSPOSE", (2,), gpu=False),)

    def write(self, file: FileWriter, node: Any) -> None:
        (source,) = file.read(node)
        target = file.output(node, source.grid)
        order = file.vector(f"{node.name}/order", [0, *node.operation.dims])
        inputs = [source.index, order]
        file.graph.operator(Op.TRANSPOSE, inputs, [target], schema.TransposeOptionsT(), version=2)

    def outline(self, node: Any) -> list[tuple[int, tuple[int, ...]]]:
        return [(1, (len(node.output.shape),))]

    def computed(self, call: Call, levels: Sequence[np.ndarray]) -> np.ndarray:
        return levels[0].transpose(levels[1].tolist())

"""Parts of a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from metamix_tflite.operators.base import Call, FileWriter, Litert, batch_one
from metamix_tflite.operators.data_movement import DataMovement, sliced


class Slices(DataMovement):
    """STRIDED_SLICE without strides, of which XNNPACK takes none."""

    layers: tuple[str, ...] = ("Slice",)
    litert: tuple[Litert, ...] = (Litert("STRIDED_SLICE", (4,)),)

    def write(self, file: FileWriter, node: Any) -> None:
        (source,), shape = file.read(node), batch_one(node.output)
        begin = node.operation.begin
        file.values[id(node.output)] = sliced(file, node.name, source, begin, shape)

    def outline(self, node: Any) -> list[tuple[int, tuple[int, ...]]]:
        rank = len(node.output.shape)
        return [(1, (rank, rank, rank))]

    def computed(self, call: Call, levels: Sequence[np.ndarray]) -> np.ndarray:
        begin, sizes = levels[1], call.output.shape
        pairs = zip(begin[1:].tolist(), sizes[1:], strict=True)
        return levels[0][(slice(None), *(slice(a, a + n) for a, n in pairs))]

    def edge_tpu_refusal(self, call: Call) -> str:
        strides = call.inputs[3].data
        return "" if strides is not None and (strides == 1).all() else "has strides other than 1"

"""The largest and the smallest value, along axes or of tensors that lie on one grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from metamix_tflite.encoding import Op
from metamix_tflite.operators.base import Call, FileWriter, Litert
from metamix_tflite.operators.concatenate import chain, joined
from metamix_tflite.operators.data_movement import DataMovement, reshaped
from metamix_tflite.operators.mean import reduced


class Largest(DataMovement):
    """REDUCE_MAX."""

    layers: tuple[str, ...] = ("Max", "Amax")
    litert: tuple[Litert, ...] = (Litert("REDUCE_MAX", (2,), geometry=("keepDims",), gpu=False),)

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

    layers: tuple[str, ...] = ("Min", "Amin")
    litert: tuple[Litert, ...] = (Litert("REDUCE_MIN", (2,), geometry=("keepDims",), gpu=False),)

    def computed(self, call: Call, levels: Sequence[np.ndarray]) -> np.ndarray:
        return -super().computed(call, [-levels[0], levels[1]])


class Extreme(DataMovement):
    """REDUCE_MAX or REDUCE_MIN of tensors behind CONCATENATION and RESHAPE.

    XNNPACK takes no MAXIMUM or MINIMUM of INT8. It does take the reduction of the tensors side by
    side, over an axis that counts them, which moves codes as they are.
    """

    layers: tuple[str, ...] = ("Maximum", "Minimum")

    def write(self, file: FileWriter, node: Any) -> None:
        parts, name = file.read(node), node.name
        _, *shape = parts[0].shape
        rows = joined(file, f"{name}/joined", parts, axis=1)
        stacked = reshaped(file, f"{name}/stacked", rows, (1, len(parts), *shape))
        op = Op.REDUCE_MAX if type(node.operation).__name__ == "Maximum" else Op.REDUCE_MIN
        axes, target = file.vector(f"{name}/axes", [1]), file.output(node, parts[0].grid)
        options = schema.ReducerOptionsT()
        file.graph.operator(op, [stacked.index, axes], [target], options, version=2)

    def outline(self, node: Any) -> list[tuple[int, tuple[int, ...]]]:
        rank = len(node.output.shape)
        joins = [(inputs, ()) for inputs in chain(len(node.inputs))]
        return [*joins, (1, (rank + 1,)), (1, (1,))]

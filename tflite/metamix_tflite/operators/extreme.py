"""Maxima and minima of tensors that lie on one grid.

XNNPACK takes no MAXIMUM or MINIMUM of INT8. It does take the reduction of the tensors side by side,
over an axis that counts them, which moves codes as they are.
"""

from __future__ import annotations

from typing import Any

from ai_edge_litert import schema_py_generated as schema

from metamix_tflite.encoding import Op
from metamix_tflite.operators.base import FileWriter, Litert
from metamix_tflite.operators.concatenate import chain, joined
from metamix_tflite.operators.moves import Move, reshaped


class Extreme(Move):
    """REDUCE_MAX or REDUCE_MIN behind CONCATENATION and RESHAPE."""

    layers = ("Maximum", "Minimum")
    litert = (
        Litert("REDUCE_MAX", (2,), gpu=False, edge_tpu=False),
        Litert("REDUCE_MIN", (2,), gpu=False, edge_tpu=False),
    )

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

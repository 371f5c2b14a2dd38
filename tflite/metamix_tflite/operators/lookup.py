"""Functions of one tensor: on the device, tables of 256 codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metamix_tflite.encoding import Op
from metamix_tflite.operators.base import (
    Call,
    Family,
    FileWriter,
    LevelRange,
    Litert,
    require_unclipped,
)

_OPERATORS = {"sigmoid": Op.LOGISTIC, "tanh": Op.TANH}
# LiteRT's kernels write these scales and zero-points whatever the file says.
_FIXED = {"LOGISTIC": (1 / 256, -128), "TANH": (1 / 128, 0)}


class Lookup(Family):
    """LOGISTIC and TANH."""

    layers = ("IntegerTable",)
    litert = (Litert("LOGISTIC", (1,)), Litert("TANH", (1,), gpu=False))

    def write(self, file: FileWriter, node: Any) -> None:
        layer, (source,) = node.operation, file.read(node)
        require_unclipped(node)
        target = file.output(node, layer.output_grid)
        file.graph.operator(_OPERATORS[layer.function], [source.index], [target], version=2)

    def levels(self, call: Call, ranges: Mapping[int, LevelRange]) -> LevelRange:
        fixed = _FIXED[call.operator.op]
        if (call.output.scales[0], call.output.zero_points[0]) != fixed:
            call.fail("scale and zero-point", fixed, "others")
        return super().levels(call, ranges)

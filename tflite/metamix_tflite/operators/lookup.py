"""Functions of one tensor: on the device, tables of 256 codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from metamix_tflite.encoding import Op
from metamix_tflite.operators.base import (
    Call,
    Family,
    FileWriter,
    LevelRange,
    Litert,
    Outside,
    require_unclipped,
)

# Operator and version; XNNPACK takes no later ELU.
_OPERATORS = {
    "sigmoid": (Op.LOGISTIC, 2),
    "tanh": (Op.TANH, 2),
    "elu": (Op.ELU, 1),
    "gelu": (Op.GELU, 2),
    "gelu_tanh": (Op.GELU, 2),
}
# LiteRT's kernels write these scales and zero-points whatever the file says.
_FIXED = {"LOGISTIC": (1 / 256, -128), "TANH": (1 / 128, 0)}


class Lookup(Family):
    """LOGISTIC, TANH, ELU and GELU."""

    layers: tuple[str, ...] = ("IntegerTable",)
    litert: tuple[Litert, ...] = (
        Litert("LOGISTIC", (1,), fixed_point=False),
        Litert("TANH", (1,), fixed_point=False, gpu=False),
        Litert("ELU", (1,), fixed_point=False, gpu=False, edge_tpu=False),
        Litert(
            "GELU",
            (1,),
            geometry=("approximate",),
            xnnpack=False,
            gpu=False,
            edge_tpu=False,
            fixed_point=False,
        ),
    )

    def write(self, file: FileWriter, node: Any) -> None:
        layer, (source,) = node.operation, file.read(node)
        require_unclipped(node, positive=layer.input_grid.low >= 0)
        target, (op, version) = file.output(node, layer.output_grid), _OPERATORS[layer.function]
        options = None
        if op == Op.GELU:
            options = schema.GeluOptionsT()
            options.approximate = layer.function == "gelu_tanh"
            file.outside[node.name] = Outside(
                "XNNPACK has no GELU of INT8", "x * ops.sigmoid(1.702 * x), or silu,"
            )
        file.graph.operator(op, [source.index], [target], options, version)

    def levels(self, call: Call, ranges: Mapping[int, LevelRange]) -> LevelRange:
        fixed = _FIXED.get(call.operator.op)
        if fixed and (call.output.scales[0], call.output.zero_points[0]) != fixed:
            call.fail("scale and zero-point", fixed, "others")
        found, source = super().levels(call, ranges), ranges[call.operator.inputs[0]]
        kept = call.operator.op in ("ELU", "GELU") and source.low >= 0
        return LevelRange(max(found.low, 0), found.high) if kept else found

"""Which levels each INT8 tensor of a file can hold, by what clips it or by what is put in."""

from __future__ import annotations

from metamix_tflite.file_graph import FileGraph, FileTensor
from metamix_tflite.operators import FAMILY, LITERT
from metamix_tflite.operators.base import Call, LevelRange, saturation


def level_ranges(graph: FileGraph) -> dict[int, LevelRange]:
    """The range of every INT8 tensor that is no constant, by index.

    Args:
      graph: of operators that files of this package have.

    Raises:
      VerificationError: an operator on tensors that it does not compute with; names it.
    """
    ranges = {i: saturation(graph.tensors[i]) for i in graph.inputs if _is_int8(graph.tensors[i])}
    for operator in graph.operators:
        place = LITERT[operator.op].source if operator.op in LITERT else 0
        call, source = Call(graph, operator), operator.inputs[place]
        if source not in ranges and operator.op != "QUANTIZE":
            call.fail("input", "INT8", graph.tensors[source].type)
        if operator.op == "DEQUANTIZE" or (operator.op, call.output.type) == ("QUANTIZE", "UINT8"):
            continue
        if not _is_int8(call.output):
            call.fail("type", "INT8", call.output.type)
        ranges[operator.outputs[0]] = FAMILY[operator.op].levels(call, ranges)
    return ranges


def _is_int8(tensor: FileTensor) -> bool:
    return tensor.type == "INT8"

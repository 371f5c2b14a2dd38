"""Which operators of a file the Edge TPU takes, read from the file alone.

The list and its limits are those that Coral publishes in "TensorFlow models on the Edge TPU" for
its last compiler (16.0, of 2021) and runtime (14). Whatever is not on it counts as refused. What
the files of this package hold says it itself (`operators`), and `keras_metamix.graph.explain` asks
there, too, before there is a file.
"""

from __future__ import annotations

from collections.abc import Callable

from metamix_tflite.file_graph import FileGraph, FileOperator
from metamix_tflite.operators import FAMILY, LITERT
from metamix_tflite.operators.base import Call

_NOT_FUSED = {"CONCATENATION", "MAX_POOL_2D", "AVERAGE_POOL_2D"}
_LISTED = {name for name, operator in LITERT.items() if operator.edge_tpu}
# Of other tools' files.
_LISTED |= {"AVERAGE_POOL_2D", "EXPAND_DIMS", "L2_NORMALIZATION", "MAXIMUM", "MINIMUM", "PACK"}
_LISTED |= {"PRELU", "REDUCE_MAX", "REDUCE_MIN", "RELU", "RELU6", "RELU_N1_TO_1"}
_LISTED |= {"RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "RSQRT", "SLICE", "SOFTMAX"}
_LISTED |= {"SPACE_TO_DEPTH", "SPLIT", "SQUARED_DIFFERENCE", "SQUEEZE", "SUM"}
_LISTED |= {"TRANSPOSE", "TRANSPOSE_CONV", "UNIDIRECTIONAL_SEQUENCE_LSTM"}
_INTEGER_TYPES = {"INT8", "UINT8", "INT32"}


def refusal(graph: FileGraph, operator: FileOperator) -> str:
    """Why the Edge TPU does not take an operator and what to change, "" where it does."""
    call = Call(graph, operator)
    return next((reason for check in _CHECKS if (reason := check(call))), "")


def _float_io(call: Call) -> str:
    types = {tensor.type for tensor in (*call.inputs, *call.outputs)}
    if call.operator.op in ("QUANTIZE", "DEQUANTIZE") and "FLOAT32" in types:
        return 'converts from or to float32, on the CPU: convert with io="int8"'
    return ""


def _listed(call: Call) -> str:
    return "" if call.operator.op in _LISTED else "not on Coral's list of operators"


def _types(call: Call) -> str:
    low = {t.type for t in call.inputs} & {"INT4", "INT2"}
    if low:
        return f'holds {low.pop()} weights: convert with target="edgetpu"'
    others = {t.type for t in (*call.inputs, *call.outputs)} - _INTEGER_TYPES
    return f"computes in {others.pop()}: quantize it to 8 bits" if others else ""


def _own(call: Call) -> str:
    family = FAMILY.get(call.operator.op)
    return "" if family is None else family.edge_tpu_refusal(call)


def _fused(call: Call) -> str:
    if call.operator.op in _NOT_FUSED and call.operator.activation != "NONE":
        return f"has {call.operator.activation} fused, which only other operators may"
    return ""


def _batch(call: Call) -> str:
    """Only the last three dimensions may be above 1."""
    outer = [t.shape[:-3] for t in (*call.inputs[:1], *call.outputs)]
    if any(shape[0] > 1 for shape in outer if shape):
        return "takes several images at once: only the last three dimensions may be above 1"
    large = any(size > 1 for shape in outer for size in shape)
    return "has more than three dimensions above 1" if large else ""


_CHECKS: tuple[Callable[[Call], str], ...] = (_float_io, _listed, _types, _own, _fused, _batch)

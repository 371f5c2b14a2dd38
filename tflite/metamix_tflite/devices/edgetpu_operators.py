"""Which operators of a file the Edge TPU takes, read from the file alone.

The list and its limits are those that Coral publishes in "TensorFlow models on the Edge TPU" for
its last compiler (16.0, of 2021) and runtime (14). Whatever is not on it counts as refused.
`keras_metamix.graph.explain` says the same of a model, before there is a file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from metamix_tflite.file_graph import FileGraph, FileOperator, FileTensor

_WEIGHTED = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"}
_NOT_FUSED = {"CONCATENATION", "MAX_POOL_2D", "AVERAGE_POOL_2D"}
_LISTED = _WEIGHTED | _NOT_FUSED
_LISTED |= {"ADD", "EXPAND_DIMS", "L2_NORMALIZATION", "LOGISTIC", "MAXIMUM", "MEAN", "MINIMUM"}
_LISTED |= {"MUL", "PACK", "PAD", "PRELU", "QUANTIZE", "REDUCE_MAX", "REDUCE_MIN", "RELU", "RELU6"}
_LISTED |= {"RELU_N1_TO_1", "RESHAPE", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR", "RSQRT"}
_LISTED |= {"SLICE", "SOFTMAX", "SPACE_TO_DEPTH", "SPLIT", "SQUARED_DIFFERENCE", "SQUEEZE"}
_LISTED |= {"STRIDED_SLICE", "SUB", "SUM", "TANH", "TRANSPOSE", "TRANSPOSE_CONV"}
_LISTED |= {"UNIDIRECTIONAL_SEQUENCE_LSTM"}
_CONTAINER = 'convert with weight_container="edgetpu"'
_INTEGER_TYPES = {"INT8", "UINT8", "INT32"}


@dataclasses.dataclass(frozen=True)
class _Call:
    """An operator with its tensors."""

    operator: FileOperator
    inputs: list[FileTensor]
    outputs: list[FileTensor]

    @property
    def weights(self) -> FileTensor:
        """Of an operator that has them."""
        return self.inputs[1]


def refusal(graph: FileGraph, operator: FileOperator) -> str:
    """Why the Edge TPU does not take an operator and what to change, "" where it does."""
    inputs, outputs = (
        [graph.tensors[i] for i in indices if i >= 0]
        for indices in (operator.inputs, operator.outputs)
    )
    call = _Call(operator, inputs, outputs)
    return next((reason for check in _CHECKS if (reason := check(call))), "")


def _float_ends(call: _Call) -> str:
    types = {tensor.type for tensor in (*call.inputs, *call.outputs)}
    if call.operator.op in ("QUANTIZE", "DEQUANTIZE") and "FLOAT32" in types:
        return 'converts from or to float32, on the CPU: convert with io="int8"'
    return ""


def _listed(call: _Call) -> str:
    return "" if call.operator.op in _LISTED else "not on Coral's list of operators"


def _types(call: _Call) -> str:
    low = {t.type for t in call.inputs} & {"INT4", "INT2"}
    if low:
        return f"holds {low.pop()} weights: {_CONTAINER}"
    others = {t.type for t in (*call.inputs, *call.outputs)} - _INTEGER_TYPES
    return f"computes in {others.pop()}: quantize it to 8 bits" if others else ""


def _constant_weights(call: _Call) -> str:
    if call.operator.op in _WEIGHTED and call.weights.data is None:
        return "its weights are no constant"
    return ""


def _fully_connected(call: _Call) -> str:
    if call.operator.op != "FULLY_CONNECTED":
        return ""
    if call.weights.scales.size > 1:
        return f"has a scale for each channel, which is newer than the compiler: {_CONTAINER}"
    if sum(n > 1 for n in call.outputs[0].shape) > 1:
        return f"its output has more than one dimension: {_CONTAINER}"
    return ""


def _groups(call: _Call) -> str:
    grouped = call.operator.op == "CONV_2D" and call.weights.shape[-1] != call.inputs[0].shape[-1]
    return "grouped, which is not on Coral's list: use a depthwise or a full one" if grouped else ""


def _fused(call: _Call) -> str:
    if call.operator.op in _NOT_FUSED and call.operator.activation != "NONE":
        return f"has {call.operator.activation} fused, which only other operators may"
    return ""


def _strides(call: _Call) -> str:
    if call.operator.op != "STRIDED_SLICE":
        return ""
    strides = call.inputs[3].data
    return "" if strides is not None and (strides == 1).all() else "has strides other than 1"


def _batch(call: _Call) -> str:
    large = any(len(t.shape) > 3 and t.shape[0] > 1 for t in (*call.inputs[:1], *call.outputs))
    return "takes several images at once: only the last three dimensions may be" if large else ""


_CHECKS: tuple[Callable[[_Call], str], ...] = (
    _float_ends,
    _listed,
    _types,
    _constant_weights,
    _fully_connected,
    _groups,
    _fused,
    _strides,
    _batch,
)

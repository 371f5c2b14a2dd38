"""Which levels each INT8 tensor of a file can hold, by what clips it or by what is put in."""

from __future__ import annotations

import dataclasses

import numpy as np

from metamix_tflite.file_graph import FileGraph, FileOperator, FileTensor, VerificationError

MOVES = ("MAX_POOL_2D", "PAD", "RESHAPE", "STRIDED_SLICE", "CONCATENATION")
# LiteRT's kernels write these scales and zero-points whatever the file says.
_TABLES = {"LOGISTIC": (1 / 256, -128), "TANH": (1 / 128, 0)}


@dataclasses.dataclass(frozen=True)
class LevelRange:
    """Lowest and highest level.

    `clipped`: by the operator, whatever its inputs hold. Else the lower end is the lowest level
    that occurs, of a grid that begins a little below it.
    """

    low: int
    high: int
    clipped: bool = True

    def holds(self, bits: int) -> bool:
        """Whether this is the range of a tensor of so many bits."""
        levels = self.high - self.low + 1
        if not 2 <= bits <= 8:
            return False
        if not self.clipped:
            return 2 ** (bits - 1) < levels <= 2**bits
        symmetric = self.low == -self.high and bits < 8
        return levels == 2**bits - symmetric

    @property
    def bits(self) -> int | None:
        """The bit-width that it holds; None for that of none."""
        return next((bits for bits in range(2, 9) if self.holds(bits)), None)

    def __str__(self) -> str:
        return f"{self.bits} (levels {self.low} to {self.high})"


def level_ranges(graph: FileGraph) -> dict[int, LevelRange]:
    """The range of every INT8 tensor that is no constant, by index.

    Raises:
      VerificationError: an operator on tensors that it does not compute with; names it.
    """
    ranges = {i: saturation(graph.tensors[i]) for i in graph.inputs if _is_int8(graph.tensors[i])}
    for operator in graph.operators:
        source, target = operator.inputs[0], operator.outputs[0]
        if source not in ranges and operator.op != "QUANTIZE":
            _fail(graph, operator, "input", "INT8", graph.tensors[source].type)
        if operator.op == "DEQUANTIZE":
            continue
        if not _is_int8(graph.tensors[target]):
            _fail(graph, operator, "type", "INT8", graph.tensors[target].type)
        ranges[target] = _range(graph, operator, ranges)
    return ranges


def saturation(tensor: FileTensor) -> LevelRange:
    """The range that INT8 itself leaves."""
    zero_point = int(tensor.zero_points[0])
    return LevelRange(-128 - zero_point, 127 - zero_point)


def _is_int8(tensor: FileTensor) -> bool:
    return tensor.type == "INT8"


def _fail(graph: FileGraph, operator: FileOperator, what: str, expected: object, found: object):
    name = graph.tensors[operator.outputs[0]].name
    raise VerificationError(f"Layer {name!r}: {what}: declared {expected}, found {found}.")


def _range(graph: FileGraph, operator: FileOperator, ranges: dict[int, LevelRange]) -> LevelRange:
    """What an operator writes.

    RELU6 counts as RELU: where it cuts more, fewer levels than the bit-width's occur.
    """
    tensor = graph.tensors[operator.outputs[0]]
    if operator.op in MOVES:
        return _moved(graph, operator, ranges)
    if operator.op in _TABLES and (tensor.scales[0], tensor.zero_points[0]) != _TABLES[operator.op]:
        _fail(graph, operator, "scale and zero-point", _TABLES[operator.op], "others")
    full, source = saturation(tensor), ranges.get(operator.inputs[0])
    positive = operator.op == "MEAN" and source is not None and source.low >= 0
    if operator.activation in ("RELU", "RELU6") or positive:
        return LevelRange(max(full.low, 0), full.high)
    if operator.activation == "RELU_N1_TO_1":
        unit = round(min(1.0 / float(tensor.scales[0]), 255.0))
        return LevelRange(max(full.low, -unit), min(full.high, unit))
    if operator.op == "MUL" and full.low < 0 and full.low != -128:
        return _product(graph, operator, ranges) or full
    return full


def _moved(graph: FileGraph, operator: FileOperator, ranges: dict[int, LevelRange]) -> LevelRange:
    tensor = graph.tensors[operator.outputs[0]]
    sources = [operator.inputs[0]]
    if operator.op == "CONCATENATION":
        sources = list(operator.inputs)
    for index in sources:
        moved = graph.tensors[index]
        same = np.array_equal(moved.scales, tensor.scales)
        if index not in ranges or not same or saturation(moved) != saturation(tensor):
            what = f"scale and zero-point of a {operator.op}"
            _fail(graph, operator, what, "its input's", "others")
    found = [ranges[index] for index in sources]
    return LevelRange(
        min(r.low for r in found), max(r.high for r in found), all(r.clipped for r in found)
    )


def _product(
    graph: FileGraph, operator: FileOperator, ranges: dict[int, LevelRange]
) -> LevelRange | None:
    """Of a tensor by a positive constant: the product of its lower end."""
    source, constant = operator.inputs
    target, factor = graph.tensors[operator.outputs[0]], graph.tensors[constant]
    if source not in ranges or factor.data is None or factor.data.size != 1:
        return None
    scale = graph.tensors[source].scales[0] * factor.scales[0] / target.scales[0]
    low = int(np.rint(np.float32(ranges[source].low * factor.data.item()) * scale))
    full = saturation(target)
    return LevelRange(max(low, full.low), full.high, clipped=False)

"""Which kernels a file's layers of weights meet where it is to run, in short."""

from __future__ import annotations

from collections import Counter

from metamix_tflite.file_graph import FileGraph
from metamix_tflite.operators import FAMILY, LITERT
from metamix_tflite.operators.mac import Mac
from metamix_tflite.targets import declared_target


def kernels_of(graph: FileGraph) -> list[str]:
    """A line for each kind of operator that reads weights, the most frequent first.

    Args:
      graph: a signature of a file of `convert`, as read.

    Returns:
      "17 INT4 FULLY_CONNECTED: SIMD"; none where no CPU runs the target's files.
    """
    target = declared_target(graph.metadata)
    found: Counter[tuple[str, str]] = Counter()
    for operator in graph.operators:
        if isinstance(FAMILY.get(operator.op), Mac):
            found[operator.op, graph.tensors[operator.inputs[1]].type] += 1
    return [
        f"{count} {container} {op}: {kernels}"
        for (op, container), count in found.most_common()
        if (kernels := target.kernels(op, container))
    ]


def promised_kernels(graph: FileGraph) -> str:
    """The kernels of LiteRT that have to give the golden outputs, "" where none promise it.

    Args:
      graph: a signature of a file of `convert`, as read.
    """
    target = declared_target(graph.metadata)
    known = all(LITERT[operator.op].fixed_point for operator in graph.operators)
    return target.exact_kernels if known or not target.fixed_point else ""

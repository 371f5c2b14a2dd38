"""Data-movement operators, which move or select: their output's levels are their input's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from metamix_tflite.encoding import Op
from metamix_tflite.operators.base import (
    Call,
    Family,
    FileWriter,
    LevelRange,
    Litert,
    WrittenTensor,
    batch_one,
    saturation,
)


class DataMovement(Family):
    """What writes the levels that it reads."""

    def moved(self, inputs: tuple[int, ...]) -> tuple[int, ...]:
        """Those of an operator's inputs whose values it moves: the others say where to."""
        return inputs[:1]

    def levels(self, call: Call, ranges: Mapping[int, LevelRange]) -> LevelRange:
        target, sources = call.output, self.moved(call.operator.inputs)
        for index in sources:
            source = call.graph.tensors[index]
            same = np.array_equal(source.scales, target.scales)
            if index not in ranges or not same or saturation(source) != saturation(target):
                what = f"scale and zero-point of a {call.operator.op}"
                call.fail(what, "its input's", "others")
        found = [ranges[index] for index in sources]
        return LevelRange(
            min(r.low for r in found), max(r.high for r in found), all(r.clipped for r in found)
        )


class Pad(DataMovement):
    """PAD with the zero-point, which is 0."""

    layers: tuple[str, ...] = ("ZeroPadding2D",)
    litert: tuple[Litert, ...] = (Litert("PAD", (2,)),)
    constants: tuple[int, ...] = (8,)

    def write(self, file: FileWriter, node: Any) -> None:
        (source,) = file.read(node)
        file.values[id(node.output)] = padded(file, node.name, source, node.operation.padding)


class Reshape(DataMovement):
    """RESHAPE."""

    layers: tuple[str, ...] = ("Flatten", "Reshape")
    litert: tuple[Litert, ...] = (Litert("RESHAPE", (2,)),)

    def write(self, file: FileWriter, node: Any) -> None:
        (source,), shape = file.read(node), batch_one(node.output)
        file.values[id(node.output)] = reshaped(file, node.name, source, shape)

    def outline(self, node: Any) -> list[tuple[int, tuple[int, ...]]]:
        return [(1, (len(node.output.shape),))]


class Same(Family):
    """No operator: the input tensor. Of activations the fold leaves the linear one."""

    layers: tuple[str, ...] = ("Dropout", "SpatialDropout2D", "Identity", "Activation")

    def write(self, file: FileWriter, node: Any) -> None:
        file.values[id(node.output)] = file.read(node)[0]


def padded(
    file: FileWriter, name: str, source: WrittenTensor, borders: Sequence[Sequence[int]]
) -> WrittenTensor:
    """PAD of a tensor's height and width, each by (before, after)."""
    sizes = (sum(ends) + size for ends, size in zip(borders, source.shape[1:3], strict=True))
    shape = (1, *sizes, source.shape[3])
    target = file.tensor(name, shape, source.grid)
    paddings = file.vector(f"{name}/paddings", [[0, 0], *map(list, borders), [0, 0]])
    options = schema.PadOptionsT()
    file.graph.operator(Op.PAD, [source.index, paddings], [target.index], options, version=2)
    return target


def sliced(
    file: FileWriter,
    name: str,
    source: WrittenTensor,
    begin: Sequence[int],
    shape: tuple[int, ...],
) -> WrittenTensor:
    """STRIDED_SLICE without strides, which leaves the batch size open.

    All of the tensor is what it is, without an operator.

    Args:
      file, name, source: what is cut, and the name of the result.
      begin: place of its first value on each axis behind the batch.
      shape: of the result.
    """
    if shape == source.shape:
        return source
    target = file.tensor(name, shape, source.grid)
    end = [first + size for first, size in zip(begin, shape[1:], strict=True)]
    corners = ("begin", [0, *begin]), ("end", [0, *end]), ("strides", [1] * len(shape))
    vectors = [file.vector(f"{name}/{which}", corner) for which, corner in corners]
    options = schema.StridedSliceOptionsT()
    options.beginMask = options.endMask = 1  # all of the batch
    inputs = [source.index, *vectors]
    file.graph.operator(Op.STRIDED_SLICE, inputs, [target.index], options, version=2)
    return target


def reshaped(
    file: FileWriter, name: str, source: WrittenTensor, shape: tuple[int, ...]
) -> WrittenTensor:
    """RESHAPE of a tensor, the batch size left open."""
    options = schema.ReshapeOptionsT()
    options.newShape = [-1, *shape[1:]]
    target = file.tensor(name, shape, source.grid)
    vector = file.vector(f"{name}/shape", options.newShape)
    file.graph.operator(Op.RESHAPE, [source.index, vector], [target.index], options)
    return target

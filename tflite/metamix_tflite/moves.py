"""Operators that move or select values: their output's levels are their input's."""

from __future__ import annotations

from typing import Any

from ai_edge_litert import schema_py_generated as schema

from keras_metamix.graph.topology import Node
from metamix_tflite.emission import PADDING, FileTensor, SignatureWriter, batch_one
from metamix_tflite.flatbuffer import Op

_LARGEST_CONCATENATION = 5  # inputs that XNNPACK joins at once


def concatenate(file: SignatureWriter, node: Node) -> None:
    """One operator, or a chain of them, each of as many tensors as XNNPACK joins."""
    sources = file.read(node)
    options = schema.ConcatenationOptionsT()
    axis = options.axis = node.operation.axis % len(node.output.shape)
    parts, number = sources, 0
    while len(parts) > _LARGEST_CONCATENATION:
        first, rest = parts[:_LARGEST_CONCATENATION], parts[_LARGEST_CONCATENATION:]
        shape = list(first[0].shape)
        shape[axis] = sum(part.shape[axis] for part in first)
        number += 1
        joined = file.tensor(f"{node.name}/{number}", tuple(shape), sources[0].grid)
        _join(file, first, joined.index, options)
        parts = [joined, *rest]
    _join(file, parts, file.output(node, sources[0].grid), options)


def _join(file: SignatureWriter, parts: list[FileTensor], target: int, options: Any) -> None:
    indices = [part.index for part in parts]
    file.graph.operator(Op.CONCATENATION, indices, [target], options, version=2)


def max_pool(file: SignatureWriter, node: Node) -> None:
    """MAX_POOL_2D."""
    layer, (source,) = node.operation, file.read(node)
    target = file.output(node, source.grid)
    _pool(file, source, target, layer.pool_size, layer.strides, layer.padding)


def global_max_pool(file: SignatureWriter, node: Node) -> None:
    """MAX_POOL_2D over all of height and width."""
    (source,) = file.read(node)
    if node.operation.keepdims:
        target = file.output(node, source.grid)
        _pool(file, source, target, source.shape[1:3], (1, 1), "valid")
        return
    pooled = file.tensor(f"{node.name}/pooled", (1, 1, 1, source.shape[3]), source.grid)
    _pool(file, source, pooled.index, source.shape[1:3], (1, 1), "valid")
    _reshape_from(file, node, pooled)


def _pool(
    file: SignatureWriter, source: FileTensor, target: int, size: Any, strides: Any, padding: str
) -> None:
    options = schema.Pool2DOptionsT()
    options.padding = PADDING[padding]
    options.filterHeight, options.filterWidth = size
    options.strideH, options.strideW = strides
    file.graph.operator(Op.MAX_POOL_2D, [source.index], [target], options, version=2)


def pad(file: SignatureWriter, node: Node) -> None:
    """PAD with the zero-point, which is 0."""
    layer, (source,) = node.operation, file.read(node)
    amounts = [[0, 0], *[list(pair) for pair in layer.padding], [0, 0]]
    paddings = file.vector(f"{node.name}/paddings", amounts)
    target = file.output(node, source.grid)
    file.graph.operator(Op.PAD, [source.index, paddings], [target], schema.PadOptionsT(), version=2)


def crop(file: SignatureWriter, node: Node) -> None:
    """STRIDED_SLICE over height and width, which leaves the batch size open."""
    (source,), (top, left) = file.read(node), (pair[0] for pair in node.operation.cropping)
    height, width = node.output.shape[1:3]
    corners = ("begin", [0, top, left, 0]), ("end", [0, top + height, left + width, 0])
    begin, end = (file.vector(f"{node.name}/{name}", corner) for name, corner in corners)
    strides = file.vector(f"{node.name}/strides", [1, 1, 1, 1])
    options = schema.StridedSliceOptionsT()
    options.beginMask = options.endMask = 0b1001  # all of the batch and of the channels
    target = file.output(node, source.grid)
    inputs = [source.index, begin, end, strides]
    file.graph.operator(Op.STRIDED_SLICE, inputs, [target], options, version=2)


def reshape(file: SignatureWriter, node: Node) -> None:
    """RESHAPE."""
    _reshape_from(file, node, file.read(node)[0])


def _reshape_from(file: SignatureWriter, node: Node, source: FileTensor) -> None:
    target = reshaped(file, node.name, source, batch_one(node.output))
    file.values[id(node.output)] = target


def reshaped(
    file: SignatureWriter, name: str, source: FileTensor, shape: tuple[int, ...]
) -> FileTensor:
    """RESHAPE of a tensor, the batch size left open."""
    options = schema.ReshapeOptionsT()
    options.newShape = [-1, *shape[1:]]
    target = file.tensor(name, shape, source.grid)
    vector = file.vector(f"{name}/shape", options.newShape)
    file.graph.operator(Op.RESHAPE, [source.index, vector], [target.index], options)
    return target


def same(file: SignatureWriter, node: Node) -> None:
    """No operator: the input tensor."""
    file.values[id(node.output)] = file.read(node)[0]

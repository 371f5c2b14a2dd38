"""Operators that move or select values: their output's levels are their input's."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from ai_edge_litert import schema_py_generated as schema

from keras_metamix.cost.containers import xnnpack_takes_pool
from keras_metamix.graph.topology import Node
from metamix_tflite.emission import PADDING, FileTensor, SignatureWriter, batch_one
from metamix_tflite.flatbuffer import Op

_LARGEST_CONCATENATION = 5  # inputs that XNNPACK joins at once


def concatenate(file: SignatureWriter, node: Node) -> None:
    """CONCATENATION."""
    axis = node.operation.axis % len(node.output.shape)
    file.values[id(node.output)] = joined(file, node.name, file.read(node), axis)


def joined(file: SignatureWriter, name: str, parts: list[FileTensor], axis: int = 3) -> FileTensor:
    """CONCATENATION, or a chain of them, each of as many tensors as XNNPACK joins.

    One tensor is what it is, without an operator.
    """
    options, number = schema.ConcatenationOptionsT(), 0
    options.axis = axis
    while len(parts) > 1:
        first, rest = parts[:_LARGEST_CONCATENATION], parts[_LARGEST_CONCATENATION:]
        shape = list(first[0].shape)
        shape[axis] = sum(part.shape[axis] for part in first)
        number += 1
        target = file.tensor(f"{name}/{number}" if rest else name, tuple(shape), first[0].grid)
        indices = [part.index for part in first]
        file.graph.operator(Op.CONCATENATION, indices, [target.index], options, version=2)
        parts = [target, *rest]
    return parts[0]


def max_pool(file: SignatureWriter, node: Node) -> None:
    """MAX_POOL_2D."""
    layer, (source,) = node.operation, file.read(node)
    target = file.output(node, source.grid)
    if file.container == "fast" and not xnnpack_takes_pool(layer.pool_size, layer.strides):
        warnings.warn(
            f"Layer {node.name!r}: XNNPACK has no max pool of window {tuple(layer.pool_size)} and "
            f"strides {tuple(layer.strides)}; LiteRT's own kernel runs it, as exactly. "
            "Strides of at most the window keep the whole file in XNNPACK.",
            stacklevel=4,
        )
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
    (source,) = file.read(node)
    file.values[id(node.output)] = padded(file, node.name, source, node.operation.padding)


def padded(
    file: SignatureWriter, name: str, source: FileTensor, borders: Sequence[Sequence[int]]
) -> FileTensor:
    """PAD of a tensor's height and width, each by (before, after)."""
    sizes = (sum(ends) + size for ends, size in zip(borders, source.shape[1:3], strict=True))
    shape = (1, *sizes, source.shape[3])
    target = file.tensor(name, shape, source.grid)
    paddings = file.vector(f"{name}/paddings", [[0, 0], *map(list, borders), [0, 0]])
    options = schema.PadOptionsT()
    file.graph.operator(Op.PAD, [source.index, paddings], [target.index], options, version=2)
    return target


def crop(file: SignatureWriter, node: Node) -> None:
    """STRIDED_SLICE over height and width."""
    (source,), (top, left) = file.read(node), (pair[0] for pair in node.operation.cropping)
    shape = batch_one(node.output)
    file.values[id(node.output)] = sliced(file, node.name, source, (top, left, 0), shape)


def sliced(
    file: SignatureWriter,
    name: str,
    source: FileTensor,
    begin: tuple[int, int, int],
    shape: tuple[int, ...],
) -> FileTensor:
    """STRIDED_SLICE without strides, which leaves the batch size open.

    All of the tensor is what it is, without an operator.

    Args:
      file, name, source: what is cut, and the name of the result.
      begin: row, column and channel of its first value.
      shape: of the result.
    """
    if shape == source.shape:
        return source
    target = file.tensor(name, shape, source.grid)
    end = [first + size for first, size in zip(begin, shape[1:], strict=True)]
    corners = ("begin", [0, *begin]), ("end", [0, *end]), ("strides", [1, 1, 1, 1])
    vectors = [file.vector(f"{name}/{which}", corner) for which, corner in corners]
    options = schema.StridedSliceOptionsT()
    options.beginMask = options.endMask = 0b0001  # all of the batch
    inputs = [source.index, *vectors]
    file.graph.operator(Op.STRIDED_SLICE, inputs, [target.index], options, version=2)
    return target


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

"""Data-movement operations in all their spellings, as Slice, Permute, Reshape and Concatenate.

A split is a slice for each part, a stack a concatenation of reshapes, a slice with strides one of
what `space_to_depth` or a reshape puts side by side. Every step moves values and rounds none.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from keras_metamix.graph.pieces import Call, Pieces
from keras_metamix.keras_internals import operation_of
from keras_metamix.layers.slice import Slice

# First place, number of places and stride along an axis.
Range = tuple[int, int, int]
_MOST_COPIES = 16
_BATCH = (
    "acts on the axis of the batch, which a file leaves open; use the axes behind it, as in x[:, 0]"
)
_BACKWARDS = (
    "has no form within XNNPACK that reads backwards; use Concatenate of slices of one place each, "
    "or turn the data, or the weights behind it, before the model"
)
_PLACES = "reads places that are not known before the model runs; give integers, or a range"
_GATHER = (
    "reads places that are no range, which has no form within XNNPACK; use Concatenate of slices"
)
_NOTHING = "leaves nothing of its input; give a range that holds a value"


class UnsupportedMovementError(Exception):
    """A data movement that no file can hold; the message is the reason."""


class DataMovement(Pieces):
    """Replaces operations that only move data by layers that have a form in a file."""

    def __init__(self, model: keras.Model):
        super().__init__(model)
        self.shared: dict[Any, Any] = {}  # what several slices of a tensor in `opened` read

    def _moved(self, call: Call) -> Any:
        """What replaces a raw operation that moves data; None for another operation.

        Raises:
          UnsupportedMovementError: nothing can; the message says why.
        """
        rule = None if issubclass(call.cls, layers.Layer) else _RULES.get(call.cls.__name__)
        return rule and rule(self, call.operation, *call.args, **call.kwargs)

    # --- one tensor --------------------------------------------------------------------------

    def _transposed(self, operation: Any, x: Any) -> Any:
        """Transpose, swapaxes and moveaxis: the order that sizes which all differ come out in."""
        rank = len(x.shape)
        order = operation.compute_output_spec(keras.KerasTensor((*range(1, rank + 1),))).shape
        if order[0] != 1:
            raise UnsupportedMovementError(_BATCH)
        return self._last(layers.Permute, operation, dims=tuple(n - 1 for n in order[1:]))(x)

    def _reshaped(self, operation: Any, x: Any) -> Any:
        """Squeeze and expand_dims."""
        shape = operation.compute_output_spec(x).shape
        if _moves_batch(operation, max(len(shape), len(x.shape))):
            raise UnsupportedMovementError(_BATCH)
        return self._last(layers.Reshape, operation, target_shape=shape[1:])(x)

    def _item(self, operation: Any, x: Any, key: Any) -> Any:
        """`x[:, 2:5, ::2, 0, None]`."""
        key = list(key) if isinstance(key, (tuple, list)) else [key]
        if any(isinstance(k, bool) or keras.utils.is_keras_tensor(k) for k in key):
            raise UnsupportedMovementError(_PLACES)
        if not any(k is Ellipsis for k in key):
            key.append(Ellipsis)
        place = next(n for n, k in enumerate(key) if k is Ellipsis)
        missing = len(x.shape) - sum(k is not None for k in key) + 1
        key[place : place + 1] = [slice(None)] * missing
        if not (isinstance(key[0], slice) and _is_all(key[0], x.shape[0])):
            raise UnsupportedMovementError(_BATCH)
        ranges, shape, sizes = [], [], iter(x.shape[1:])
        for k in key[1:]:
            if k is None:
                shape.append(1)
                continue
            ranges.append(_range(k, next(sizes)))
            if isinstance(k, slice):
                shape.append(ranges[-1][1])
        return self._cut(operation, x, ranges, shape)

    def _slice(self, operation: Any, x: Any, start_indices: Any) -> Any:
        """`keras.ops.slice`."""
        start, sizes = _integers(start_indices), _integers(operation.shape)
        if start[0] or sizes[0] not in (-1, x.shape[0]):
            raise UnsupportedMovementError(_BATCH)
        ranges = [(a, n, 1) for a, n in zip(start[1:], sizes[1:], strict=True)]
        return self._cut(operation, x, ranges, sizes[1:])

    def _taken(self, operation: Any, x: Any, indices: Any) -> Any:
        """`keras.ops.take` of places that are a range."""
        axis, places = _axis(operation, len(x.shape)), np.asarray(_integers(indices))
        size = x.shape[axis]
        flat = np.where(places < 0, places + size, places).reshape(-1)
        step = int(flat[1] - flat[0]) if flat.size > 1 else 1
        if not flat.size or places.ndim > 1 or np.any(np.diff(flat) != step) or not step:
            raise UnsupportedMovementError(_GATHER)
        if step < 0:
            raise UnsupportedMovementError(_BACKWARDS)
        ranges = [(0, n, 1) for n in x.shape[1:]]
        ranges[axis - 1] = (int(flat[0]), flat.size, step)
        shape = [count for _, count, _ in ranges]
        if not places.ndim:
            del shape[axis - 1]
        return self._cut(operation, x, ranges, shape)

    def _split(self, operation: Any, x: Any) -> list[Any]:
        """Split, by a number of parts or the places between them."""
        axis, given = _axis(operation, len(x.shape)), operation.indices_or_sections
        size = x.shape[axis]
        equal = isinstance(given, (int, np.integer))
        places = [*range(0, size, size // int(given))][1:] if equal else _integers(given)
        ends = [0, *(place % size if place < 0 else place for place in places), size]
        parts = enumerate(itertools.pairwise(ends))
        return [self._part_of(operation, x, axis, first, end, n) for n, (first, end) in parts]

    def _unstacked(self, operation: Any, x: Any) -> list[Any]:
        axis = _axis(operation, len(x.shape))
        shape = tuple(n for place, n in enumerate(x.shape) if place not in (0, axis))
        return [
            self._part(layers.Reshape, operation, f"flat{n}", target_shape=shape)(
                self._part_of(operation, x, axis, n, n + 1, n)
            )
            for n in range(x.shape[axis])
        ]

    def _part_of(self, operation: Any, x: Any, axis: int, first: int, end: int, n: int) -> Any:
        if not 0 <= first < end <= x.shape[axis]:
            raise UnsupportedMovementError(_NOTHING)
        begin, size = [0] * (len(x.shape) - 1), list(x.shape[1:])
        begin[axis - 1], size[axis - 1] = first, end - first
        return self._part(Slice, operation, f"part{n}", begin=begin, size=size)(x)

    # --- several tensors, or copies of one -----------------------------------------------------

    def _stacked(self, operation: Any, x: Sequence[Any]) -> Any:
        axis = _axis(operation, len(x[0].shape) + 1)
        shape = list(x[0].shape[1:])
        shape.insert(axis - 1, 1)
        parts = [
            self._part(layers.Reshape, operation, f"part{n}", target_shape=shape)(tensor)
            for n, tensor in enumerate(x)
        ]
        if len(parts) == 1:
            return self._last(layers.Identity, operation)(parts[0])
        return self._last(layers.Concatenate, operation, axis=axis)(parts)

    def _repeated(self, operation: Any, x: Any) -> Any:
        """Each place of an axis several times: copies of what lies behind it."""
        axis, count = _axis(operation, len(x.shape)), _integers(operation.repeats)
        if np.size(count) != 1:
            raise UnsupportedMovementError(_GATHER)
        count, shape = int(np.asarray(count).item()), list(x.shape[1:])
        rows, inner = shape[:axis], int(np.prod(shape[axis:]))
        x = self._part(layers.Reshape, operation, "rows", target_shape=(*rows, inner))(x)
        x = self._copies(operation, x, len(rows) + 1, count, "copies")
        shape[axis - 1] *= count
        return self._last(layers.Reshape, operation, target_shape=shape)(x)

    def _tiled(self, operation: Any, x: Any) -> Any:
        repeats = np.atleast_1d(_integers(operation.repeats)).tolist()
        repeats = [1] * (len(x.shape) - len(repeats)) + repeats
        if len(repeats) != len(x.shape) or repeats[0] != 1:
            raise UnsupportedMovementError(_BATCH)
        for axis, count in enumerate(repeats):
            x = self._copies(operation, x, axis, count, f"axis{axis}")
        return self._last(layers.Identity, operation)(x)

    def _copies(self, operation: Any, x: Any, axis: int, count: int, suffix: str) -> Any:
        if not 1 <= count <= _MOST_COPIES:
            raise UnsupportedMovementError(
                f"expected 1 to {_MOST_COPIES} copies, which a file holds as a concatenation, "
                f"found {count}; use Add or Multiply of the tensor with one place, which broadcast"
            )
        if count == 1:
            return x
        return self._part(layers.Concatenate, operation, suffix, axis=axis)([x] * count)

    # --- slices --------------------------------------------------------------------------------

    def _cut(self, operation: Any, x: Any, ranges: list[Range], shape: Sequence[int]) -> Any:
        """A part of a tensor by the range along each axis behind the batch, in another shape."""
        if not all(count for _, count, _ in ranges):
            raise UnsupportedMovementError(_NOTHING)
        x = self._filled(operation, x, ranges)
        if _is_of_blocks(x, ranges):
            x, ranges = self._by_blocks(operation, x, ranges)
        begin, size, strides = zip(*ranges, strict=True)
        if max(strides) == 1 and tuple(shape) == size != tuple(x.shape[1:]):
            return self._last(Slice, operation, begin=begin, size=size)(x)
        x = self._strided(operation, x, ranges)
        if tuple(shape) != tuple(x.shape[1:]):
            return self._last(layers.Reshape, operation, target_shape=tuple(shape))(x)
        return self._last(layers.Identity, operation)(x)

    def _filled(self, operation: Any, x: Any, ranges: list[Range]) -> Any:
        """Images of whole strides: a border behind them, which nothing reads."""
        borders = tuple(
            (0, -size % stride) for (_, _, stride), size in zip(ranges, x.shape[1:], strict=True)
        )
        if len(borders) != 3 or not any(after for _, after in borders[:2]):
            return x
        known = id(x), borders[:2]
        if known not in self.shared:
            self.opened[id(x)] = x
            pad = self._part(layers.ZeroPadding2D, operation, "filled", padding=borders[:2])
            self.shared[known] = pad(x)
        return self.shared[known]

    def _by_blocks(self, operation: Any, x: Any, ranges: list[Range]) -> tuple[Any, list[Range]]:
        """Every other row and column, as channels of blocks that all such slices of `x` share."""
        (top, rows, stride), (left, columns, _), (first, channels, _) = ranges
        known, depth = (id(x), stride), x.shape[3]
        if known not in self.shared:
            self.opened[id(x)] = x
            self.shared[known] = ops.space_to_depth(x, stride)
            name = self._name(f"{operation.name}_blocks", operation.name)
            operation_of(self.shared[known]).name = name
        place = (top % stride * stride + left % stride) * depth + first
        parts = (top // stride, rows, 1), (left // stride, columns, 1), (place, channels, 1)
        return self.shared[known], list(parts)

    def _strided(self, operation: Any, x: Any, ranges: list[Range]) -> Any:
        """A window of whole strides, and of each stride one place: a reshape puts them in a row."""
        begin = []
        for (first, count, stride), size in zip(ranges, x.shape[1:], strict=True):
            begin.append(first if stride == 1 else min(first, size - count * stride))
            if begin[-1] < 0:
                raise UnsupportedMovementError(
                    f"expected a size that its stride of {stride} divides, found {size}; slice it "
                    "as an image, behind Reshape((1, time, channels)), which may have any size"
                )
        shape = [count * stride for _, count, stride in ranges]
        if shape != list(x.shape[1:]):
            x = self._part(Slice, operation, "window", begin=begin, size=shape)(x)
        for axis, (first, count, stride) in enumerate(ranges):
            if stride > 1:
                inner = int(np.prod(shape[axis + 1 :]))
                rows = (*shape[:axis], count)
                place = (*[0] * len(rows), (first - begin[axis]) * inner)
                shape[axis] = count
                for cls, suffix, arguments in (
                    (layers.Reshape, "strides", {"target_shape": (*rows, stride * inner)}),
                    (Slice, "kept", {"begin": place, "size": (*rows, inner)}),
                    (layers.Reshape, "axes", {"target_shape": tuple(shape)}),
                ):
                    x = self._part(cls, operation, f"{suffix}{axis + 1}", **arguments)(x)
        return x


def _is_of_blocks(x: Any, ranges: list[Range]) -> bool:
    """Whether `space_to_depth` puts side by side what a slice of images reads."""
    if len(ranges) != 3 or ranges[2][2] != 1 or ranges[0][2] == 1:
        return False
    stride = ranges[0][2]
    return ranges[1][2] == stride and not (x.shape[1] % stride or x.shape[2] % stride)


def _range(key: Any, size: int) -> Range:
    """What an integer or a slice reads of an axis.

    Raises:
      UnsupportedMovementError: it reads backwards, or is neither.
    """
    if isinstance(key, (int, np.integer)):
        return int(key) % size, 1, 1
    if not isinstance(key, slice):
        raise UnsupportedMovementError(_GATHER if isinstance(key, (list, np.ndarray)) else _PLACES)
    if any(keras.utils.is_keras_tensor(end) for end in (key.start, key.stop, key.step)):
        raise UnsupportedMovementError(_PLACES)
    first, end, stride = key.indices(size)
    if stride < 0:
        raise UnsupportedMovementError(_BACKWARDS)
    count = len(range(first, end, stride))
    return first, count, stride if count > 1 else 1


def _is_all(key: slice, size: int | None) -> bool:
    """Whether a slice takes all of the batch."""
    return key.start in (None, 0) and key.stop in (None, size) and key.step in (None, 1)


def _axis(operation: Any, rank: int) -> int:
    """The axis that an operation acts on, of a tensor of this rank.

    Raises:
      UnsupportedMovementError: it is the batch's, or all.
    """
    axis = None if operation.axis is None else operation.axis % rank
    if not axis:
        raise UnsupportedMovementError(_BATCH)
    return axis


def _moves_batch(operation: Any, rank: int) -> bool:
    """Whether a squeeze, or what adds axes to `rank`, does that to the batch's."""
    axes = operation.axis if isinstance(operation.axis, (tuple, list)) else (operation.axis,)
    return any(axis is not None and axis % rank == 0 for axis in axes)


def _integers(values: Any) -> Any:
    """Integers that a call has been given.

    Raises:
      UnsupportedMovementError: they are a tensor of the model.
    """
    if any(keras.utils.is_keras_tensor(value) for value in keras.tree.flatten(values)):
        raise UnsupportedMovementError(_PLACES)
    return np.asarray(values).astype(int).tolist()


_RULES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("Transpose", "Swapaxes", "Moveaxis"), DataMovement._transposed),
    **dict.fromkeys(("Squeeze", "ExpandDims"), DataMovement._reshaped),
    "GetItem": DataMovement._item,
    "Slice": DataMovement._slice,
    "Take": DataMovement._taken,
    "Split": DataMovement._split,
    "Unstack": DataMovement._unstacked,
    "Stack": DataMovement._stacked,
    "Repeat": DataMovement._repeated,
    "Tile": DataMovement._tiled,
}

"""Sums over large tensors, written so that XLA's loops for CPUs are vectorised.

XLA adds up `reduce_sum(f(x))` one value after another. Here the tensors are cut into blocks of
rows, and `f` of the blocks is added block to block, which is an elementwise loop. A barrier keeps
XLA from merging it with the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

_LARGE = 2**11  # values of an image from which the longer compilation pays
_ROW = 64  # values of a row, at least, for vectors
_BLOCKS = 4  # more need more registers than there are


def is_large(shape: Sequence[int | None]) -> bool:
    """Whether images of a batch of this shape have so many values that sums by blocks pay."""
    return _size(shape) >= _LARGE


class Rows:
    """Tensors of one shape as rows: whole pixels, with all channels of each, 64 values or more.

    A row is of the last sizes together, so that XLA finds a value's channel without dividing. The
    order in which values are added depends on the shape alone.

    Args:
      shape: of the tensors; the first size may be unknown.
    """

    def __init__(self, shape: Sequence[int | None]) -> None:
        self._channels, self._width = shape[-1] or 1, 1
        for size in reversed(shape[1:]):
            self._width *= size or 1
            if self._width >= _ROW:
                break
        rows = _size(shape) // self._width  # of an image
        self._divides = rows > 0 and rows % _BLOCKS == 0

    def of(self, tensor: Any) -> Any:
        """The rows of a tensor."""
        return ops.reshape(tensor, (-1, self._width))

    def repeated(self, vector: Any) -> Any:
        """What has a value for each channel, shape (channels,), as a row."""
        pixels = self._width // self._channels
        return vector if pixels == 1 else _barrier(ops.tile(vector, [pixels]))

    def sums(self, integrands: Callable[..., Sequence[Any]], *rows: Any) -> list[Any]:
        """The sum of each integrand over all values: `[sum(f) for f in integrands(*rows)]`.

        Args:
          integrands: elementwise functions of the rows, or of equal parts of them.
          rows: of several tensors, see `of`.
        """
        return self._sums(ops.sum, integrands, rows)

    def channel_sums(self, integrands: Callable[..., Sequence[Any]], *rows: Any) -> list[Any]:
        """`sums` of each channel, shape (channels,)."""

        def over_pixels(values: Any) -> Any:
            return ops.sum(ops.reshape(values, (-1, self._channels)), axis=0)

        return self._sums(over_pixels, integrands, rows)

    def _sums(self, total: Callable[[Any], Any], integrands: Any, rows: Any) -> list[Any]:
        length = ops.shape(rows[0])[0] // _BLOCKS
        blocks = ([t[i * length : (i + 1) * length] for t in rows] for i in range(_BLOCKS))
        terms = zip(*(integrands(*block) for block in blocks), strict=True)
        totals = [total(_barrier(sum(parts))) for parts in terms]
        if self._divides:  # no row is left over, whatever the batch
            return totals
        rests = integrands(*(t[_BLOCKS * length :] for t in rows))
        return [t + total(rest) for t, rest in zip(totals, rests, strict=True)]


def sums(integrands: Callable[..., Sequence[Any]], *tensors: Any) -> list[Any]:
    """The sum of each integrand over all values: `[sum(f) for f in integrands(*tensors)]`.

    Args:
      integrands: elementwise functions of the tensors, or of equal parts of them.
      tensors: of one shape, whose first size may be unknown.
    """
    shape = tensors[0].shape
    if not is_large(shape):
        return [ops.sum(values) for values in integrands(*tensors)]
    view = Rows(shape)
    return view.sums(integrands, *(view.of(t) for t in tensors))


def _size(shape: Sequence[int | None]) -> int:
    return math.prod(n for n in shape[1:] if n)


def _barrier(value: Any) -> Any:
    """The value, which XLA computes before whatever reads it."""
    if keras.backend.backend() != "tensorflow":
        return value
    import tensorflow as tf

    if tf.executing_eagerly():
        return value
    from tensorflow.compiler.tf2xla.ops import gen_xla_ops

    return gen_xla_ops.xla_optimization_barrier(input=[value])[0]

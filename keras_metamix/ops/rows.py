"""Large tensors as rows of many values, over which XLA's loops for CPUs are vectorised.

LLVM unrolls a loop over few values, such as the 16 channels of a pixel, before it could vectorise
it; elementwise kernels then take two to three times as long as memory does. So compiled kernels
take and return rows. They are made outside of the kernel: of a reshape inside, XLA loops over the
shape that it was made from.

XLA adds up `reduce_sum(f(x))` one value after another. Here the rows are cut into blocks, and `f`
of the blocks is added block to block, which is an elementwise loop. A barrier keeps XLA from
merging it with the next.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import keras
from keras import ops

_LARGE = 2**11  # values of an image from which the longer compilation of blocks pays
_ROW = 64  # values of a row, at least, for vectors
_BLOCKS = 4  # more need more registers than there are


@dataclasses.dataclass(frozen=True)
class Rows:
    """Tensors of one shape as rows: whole pixels, with all channels of each, 64 values or more.

    A row is of the last sizes together, so that XLA finds a value's channel without dividing. The
    order in which values are added depends on the shape alone.

    Attributes:
      channels: values of a pixel.
      width: values of a row.
      blocks: whether sums are by blocks.
      divides: whether no row is left over by the blocks, whatever the batch.
    """

    channels: int
    width: int
    blocks: bool
    divides: bool

    @classmethod
    def of(cls, shape: Sequence[int | None]) -> Self:
        """The rows of tensors of a shape, whose first size may be unknown."""
        width = 1
        for size in reversed(shape[1:]):
            width *= size or 1
            if width >= _ROW:
                break
        values = math.prod(size for size in shape[1:] if size)  # of an image
        rows = values // width
        divides = rows > 0 and rows % _BLOCKS == 0
        return cls(shape[-1] or 1, width, values >= _LARGE, divides)

    def rows(self, tensor: Any) -> Any:
        """The rows of a tensor, shape (rows, width)."""
        return ops.reshape(tensor, (-1, self.width))

    def tensor(self, rows: Any, like: Any) -> Any:
        """The tensor of rows, in the shape of another one."""
        sizes = like.shape[1:]
        return ops.reshape(rows, ops.shape(like) if None in sizes else (-1, *sizes))

    def repeated(self, vector: Any) -> Any:
        """What has a value for each channel, shape (channels,), as a row."""
        pixels = self.width // self.channels
        return vector if pixels == 1 else _barrier(ops.tile(vector, [pixels]))

    def sums(self, integrands: Callable[..., Sequence[Any]], *rows: Any) -> list[Any]:
        """The sum of each integrand over all values: `[sum(f) for f in integrands(*rows)]`.

        Args:
          integrands: elementwise functions of the rows, or of equal parts of them.
          rows: of several tensors.
        """
        return self._sums(ops.sum, integrands, rows)

    def channel_sums(self, integrands: Callable[..., Sequence[Any]], *rows: Any) -> list[Any]:
        """`sums` of each channel, shape (channels,)."""

        def over_pixels(values: Any) -> Any:
            return ops.sum(ops.reshape(values, (-1, self.channels)), axis=0)

        return self._sums(over_pixels, integrands, rows)

    def _sums(self, total: Callable[[Any], Any], integrands: Any, rows: Any) -> list[Any]:
        if not self.blocks:
            return [total(values) for values in integrands(*rows)]
        length = ops.shape(rows[0])[0] // _BLOCKS
        blocks = ([t[i * length : (i + 1) * length] for t in rows] for i in range(_BLOCKS))
        terms = zip(*(integrands(*block) for block in blocks), strict=True)
        totals = [total(_barrier(sum(parts))) for parts in terms]
        if self.divides:
            return totals
        rests = integrands(*(t[_BLOCKS * length :] for t in rows))
        return [t + total(rest) for t, rest in zip(totals, rests, strict=True)]


class Whole:
    """Tensors as they are: the view of functions that are not compiled."""

    def rows(self, tensor: Any) -> Any:
        """The tensor."""
        return tensor

    def tensor(self, rows: Any, like: Any) -> Any:
        """The tensor."""
        return rows

    def sums(self, integrands: Callable[..., Sequence[Any]], *tensors: Any) -> list[Any]:
        """As that of Rows."""
        return [ops.sum(values) for values in integrands(*tensors)]


WHOLE = Whole()


def _barrier(value: Any) -> Any:
    """The value, which XLA computes before whatever reads it."""
    if keras.backend.backend() != "tensorflow":
        return value
    import tensorflow as tf

    if tf.executing_eagerly():
        return value
    from tensorflow.compiler.tf2xla.ops import gen_xla_ops

    return gen_xla_ops.xla_optimization_barrier(input=[value])[0]

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

_CUTS = (4, 8, 8)  # the tensors, then the sums; more blocks of tensors need too many registers
_LARGE = 2**12  # values of an image from which the longer compilation pays
_ROW = 64  # values of a row, at least, for vectors


def sums(integrands: Callable[..., Sequence[Any]], *tensors: Any) -> list[Any]:
    """The sum of each integrand over all values: `[sum(f) for f in integrands(*tensors)]`.

    The order of additions depends on the shapes alone.

    Args:
      integrands: elementwise functions of the tensors, or of equal parts of them.
      tensors: of one shape, whose first size may be unknown.
    """
    shape = tensors[0].shape
    size = math.prod(n for n in shape[1:] if n)
    if size < _LARGE:
        return [ops.sum(values) for values in integrands(*tensors)]
    width = _row(shape)
    rows, each = [ops.reshape(t, (-1, width)) for t in tensors], size // width
    totals: list[Any] = []
    for cut in _CUTS:
        blocks, rests = _cut(rows, cut)
        if each % cut or not each:  # else none is left over, whatever the batch
            totals += [[ops.sum(rest) for rest in integrands(*rests)]]
        each = 0 if each % cut else each // cut
        terms = zip(*(integrands(*block) for block in blocks), strict=True)
        rows, integrands = [_barrier(sum(parts)) for parts in terms], _themselves
    totals += [[ops.sum(values) for values in rows]]
    return [sum(parts) for parts in zip(*totals, strict=True)]


def _themselves(*tensors: Any) -> Sequence[Any]:
    return tensors


def _row(shape: Sequence[int | None]) -> int:
    """The length of rows: the last sizes together, so that XLA finds values without dividing."""
    width = 1
    for size in reversed(shape[1:]):
        width *= size or 1
        if width >= _ROW:
            break
    return width


def _cut(rows: Sequence[Any], count: int) -> tuple[list[list[Any]], list[Any]]:
    """So many blocks of equally many rows of each tensor, and the rows left over."""
    length = ops.shape(rows[0])[0] // count
    blocks = [[t[i * length : (i + 1) * length] for t in rows] for i in range(count)]
    return blocks, [t[count * length :] for t in rows]


def _barrier(value: Any) -> Any:
    """The value, which XLA computes before whatever reads it."""
    if keras.backend.backend() != "tensorflow":
        return value
    import tensorflow as tf

    if tf.executing_eagerly():
        return value
    from tensorflow.compiler.tf2xla.ops import gen_xla_ops

    return gen_xla_ops.xla_optimization_barrier(input=[value])[0]

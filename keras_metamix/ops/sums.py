"""Sums over large tensors, written so that XLA's loops for CPUs are vectorised.

XLA adds up `reduce_sum(f(x))` one value after another. Here the tensors are cut into blocks, and
`f` of the blocks is added block to block, which is an elementwise loop. A barrier keeps XLA from
merging it with the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

_BLOCKS = 4  # more of them need more registers than a CPU has
_FOLDS = (8, 4, 2, 1)  # by how much the sum of the blocks is folded once more
_LARGE = 2**12  # values of an image from which the longer compilation pays


def sums(integrands: Callable[..., Sequence[Any]], *tensors: Any) -> list[Any]:
    """The sum of each integrand over all values: `[sum(f) for f in integrands(*tensors)]`.

    The order of additions depends on the shapes alone.

    Args:
      integrands: elementwise functions of the tensors, or of equal parts of them.
      tensors: of one shape, whose first size may be unknown.
    """
    size = math.prod(n for n in tensors[0].shape[1:] if n)
    if size < _LARGE or size % _BLOCKS:
        return [ops.sum(values) for values in integrands(*tensors)]
    fold = next(n for n in _FOLDS if size % (_BLOCKS * n) == 0)
    rows = [ops.reshape(t, (-1, size // (_BLOCKS * fold))) for t in tensors]
    blocks = zip(*(_cut(t, _BLOCKS) for t in rows), strict=True)
    added = [sum(terms) for terms in zip(*(integrands(*block) for block in blocks), strict=True)]
    return [ops.sum(_barrier(sum(_cut(value, fold)))) for value in map(_barrier, added)]


def _cut(rows: Any, count: int) -> list[Any]:
    """So many blocks of equally many rows."""
    length = ops.shape(rows)[0] // count
    return [rows[i * length : (i + 1) * length] for i in range(count)]


def _barrier(value: Any) -> Any:
    """The value, which XLA computes before whatever reads it."""
    if keras.backend.backend() != "tensorflow":
        return value
    import tensorflow as tf

    if tf.executing_eagerly():
        return value
    from tensorflow.compiler.tf2xla.ops import gen_xla_ops

    return gen_xla_ops.xla_optimization_barrier(input=[value])[0]

"""Requantization in fixed point: how LiteRT's reference kernels, and those of boards, round.

A real multiplier m becomes an int32 q of 31 bits and a shift s, m = q * 2^(s - 31). An int32 value
x is multiplied by it in two steps that both round to nearest: the high half of the doubled product
(gemmlowp's SaturatingRoundingDoublingHighMul, ties up), and the shift right (ties away from 0).
"""

from __future__ import annotations

from typing import Any

from keras import ops

_BITS = 31


def quantized_multiplier(real: Any) -> tuple[Any, Any]:
    """A real multiplier above 0 as an integer of 31 bits and a shift.

    Args:
      real: float64, of any shape.

    Returns:
      q and s, int64.
    """
    real = ops.cast(real, "float64")
    shift = ops.floor(ops.log2(real)) + 1
    # The logarithm may be off at powers of two.
    shift = shift + ops.cast(real >= 2.0**shift, "float64")
    shift = shift - ops.cast(real < 2.0 ** (shift - 1), "float64")
    q = ops.floor(real * 2.0 ** (_BITS - shift) + 0.5)
    full = q == 2.0**_BITS
    q, shift = ops.where(full, q / 2, q), ops.where(full, shift + 1, shift)
    return ops.cast(q, "int64"), ops.cast(shift, "int64")


def multiplied(values: Any, real: Any) -> Any:
    """Integers times a real multiplier, int64.

    Args:
      values: integers of 32 bits, of any dtype that holds them.
      real: float64 above 0, of a shape that broadcasts.
    """
    return shifted(values, *quantized_multiplier(real))


def shifted(values: Any, q: Any, shift: Any) -> Any:
    """Integers times q * 2^(shift - 31), int64; see `quantized_multiplier`."""
    left, right = ops.maximum(shift, 0), ops.maximum(-shift, 0)
    one = ops.cast(1, "int64")
    product = ops.cast(values, "int64") * ops.left_shift(one, left) * q
    half = 2 ** (_BITS - 1)
    nudged = product + ops.where(product >= 0, ops.cast(half, "int64"), ops.cast(1 - half, "int64"))
    high = ops.sign(nudged) * ops.right_shift(ops.abs(nudged), _BITS)
    mask = ops.left_shift(one, right) - 1
    above = ops.bitwise_and(high, mask) > ops.right_shift(mask, 1) + ops.cast(high < 0, "int64")
    return ops.right_shift(high, right) + ops.cast(above, "int64")

"""Bilinear interpolation of integers, as the device computes it."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

_WEIGHT_BITS = 11  # XNNPACK's bilinear interpolation weighs in steps of 2^-11


def resize_levels(levels: Any, size: tuple[int, int]) -> Any:
    """XNNPACK's RESIZE_BILINEAR with half-pixel centers.

    Args:
      levels: whole numbers as floats, shape (batch, height, width, channels), below 2^20.
      size: height and width of the result.

    Returns:
      Levels in the type of the given ones: the weighted mean of four, half rounded up.
    """
    x = ops.cast(levels, "float64")
    for axis, count in ((2, size[1]), (1, size[0])):
        first, second, weights = neighbours(x.shape[axis], count)
        weights = weights.reshape(-1, *[1] * (3 - axis))
        low = ops.take(x, first, axis)
        x = low * 2.0**_WEIGHT_BITS + (ops.take(x, second, axis) - low) * weights
    unit = 2.0 ** (2 * _WEIGHT_BITS)
    return ops.cast(ops.floor((x + unit / 2) / unit), levels.dtype)


def neighbours(size: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What each of `count` values reads of an axis of `size`.

    Returns:
      Places of two neighbours, and the second one's weight in units of 2^-11, each (count,).
    """
    ratio = np.float32(size) / np.float32(count)
    offset = np.float32(0.5) * ratio - np.float32(0.5)
    places = np.clip(np.arange(count, dtype=np.float32) * ratio + offset, 0, size - 1)
    first = np.floor(places)
    weights = np.rint((places - first) * np.float32(2**_WEIGHT_BITS)).astype(np.float64)
    return first.astype(np.int32), np.minimum(first + 1, size - 1).astype(np.int32), weights

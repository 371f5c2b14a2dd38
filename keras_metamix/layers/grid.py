"""Integer ranges of b-bit tensors."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

Sign = Literal["unsigned", "signed", "offset"]

HARD_SWISH_MINIMUM = -0.375


def weight_range(bits: int) -> tuple[int, int]:
    """Symmetric and narrow: folding a negative batch-norm scale flips every integer's sign."""
    high = 2 ** (bits - 1) - 1
    return -high, high


def activation_range(bits: int, sign: Sign) -> tuple[int, int]:
    """Integer ends of an activation's grid.

    Unsigned (behind ReLU, sigmoid): [0, 2^b - 1]. Signed (linear bottlenecks, sums, images):
    narrow, +-(2^(b-1) - 1), and INT8's own [-128, 127] at 8 bits, where the device's
    saturation is the clip. Offset (behind hard-swish): 2^b levels of which the quantizer
    shifts the lowest to the activation's minimum; given here before the shift.
    """
    if sign != "signed":
        return 0, 2**bits - 1
    if bits == 8:
        return -128, 127
    return weight_range(bits)


@dataclasses.dataclass(frozen=True)
class Grid:
    """How an INT8 tensor of the device holds a b-bit one: code = level + zero_point.

    A level is the integer of the training graph, real value `level * scale`. Below 8 bits the
    clip to fewer than 256 codes is done by saturation and a fused activation:

    - unsigned: zero_point = 128 - 2^b, saturation above, fused RELU below;
    - signed: labelled with scale 1 / (2^(b-1) - 1), so that fused RELU_N1_TO_1 clips both ends;
      producers and consumers take the ratio of the label to the true step into their scales.

    Attributes:
      scale: of the file, float32.
      zero_point: code of level 0.
      low, high: the levels that occur.
      step: the true step size, which is the scale but for labelled tensors.
    """

    scale: float
    zero_point: int
    low: int
    high: int
    step: float

    @classmethod
    def of(cls, step: float, low: int, high: int) -> Grid:
        """The grid of a quantizer with this step and clip range."""
        step = float(np.float32(step))
        if low == -high:
            return cls(float(np.float32(1.0 / high)), 0, low, high, step)
        return cls(step, 127 - high, low, high, step)


def relu6_level(grid: Grid) -> int:
    """The level that a fused RELU6 clips at."""
    # The device rounds the code, not the level: a tie may go the other way.
    code = np.rint(np.float32(6.0) / np.float32(grid.scale) + np.float32(grid.zero_point))
    return int(code) - grid.zero_point

"""Integer ranges of b-bit tensors."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

Sign = Literal["unsigned", "signed", "offset"]


def weight_range(bits: int) -> tuple[int, int]:
    """Symmetric and narrow: folding a negative batch-norm scale flips every integer's sign."""
    high = 2 ** (bits - 1) - 1
    return -high, high


def activation_range(bits: int, sign: Sign) -> tuple[int, int]:
    """Integer ends of an activation's grid.

    Unsigned (behind ReLU, sigmoid): [0, 2^b - 1]. Signed (linear bottlenecks, sums, images):
    narrow, +-(2^(b-1) - 1), and INT8's own [-128, 127] at 8 bits, where the device's
    saturation is the clip. Offset (behind swish): 2^b levels of which the quantizer
    shifts the lowest to the activation's minimum; given here before the shift.
    """
    if sign != "signed":
        return 0, 2**bits - 1
    if bits == 8:
        return -128, 127
    return weight_range(bits)


@dataclasses.dataclass(frozen=True)
class Grid:
    r"""How an INT8 tensor of the device holds one of $b$ bits.

    A level $q$ is the integer of the training graph; the tensor holds the code $q + z$ with the
    zero point $z$. The real value is $s \, q$ with the step size $s$. Below 8 bits the clip to
    fewer than 256 codes is done by saturation and a fused activation:

    - unsigned: $z = 128 - 2^b$, saturation above, fused RELU below;
    - signed: $z = 0$ and in the file the scale $1 / (2^{b-1} - 1)$ in place of $s$, so that fused
      RELU_N1_TO_1 clips at both ends; producers and consumers take the ratio of that scale to the
      step into their own scales;
    - offset: $z = 127 - q_{max}$, saturation above; below, such a scale where the range reaches as
      far down as up, else nothing: the fold proves that no level is below.

    Attributes:
      scale: of the file, float32.
      zero_point: code of level 0.
      low, high: the levels that occur.
      step: the true step size, which is the scale unless that is nominal.
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
        zero_point = 0 if low == -high else 127 - high
        grid = cls(step, zero_point, low, high, step)
        return (
            dataclasses.replace(grid, scale=float(np.float32(-1.0 / low)))
            if grid.has_nominal_scale
            else grid
        )

    @property
    def has_nominal_scale(self) -> bool:
        """Whether the scale is nominal, not the step, so that fused RELU_N1_TO_1 clips at `low`."""
        return self.high <= -self.low < 128

    @property
    def bits(self) -> int:
        """The bit-width."""
        return (self.high - self.low).bit_length()

    @property
    def lower_end_is_clipped(self) -> bool:
        """Whether saturation or a fused activation clips at `low`."""
        return self.low >= 0 or self.has_nominal_scale or self.low == -128 - self.zero_point


def clip_level(grid: Grid, value: float) -> int:
    """The level that a fused activation with an upper end of `value` (RELU6: 6) clips at."""
    # The device rounds the code, not the level: a tie may go the other way.
    code = np.rint(np.float32(value) / np.float32(grid.scale) + np.float32(grid.zero_point))
    return int(code) - grid.zero_point

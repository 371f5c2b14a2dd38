"""What is known of one tensor of a float model before quantizers are placed."""

from __future__ import annotations

import dataclasses
import enum
import math
from typing import Any

from keras_metamix.layers.grid import Sign


class Stage(enum.IntEnum):
    """What may still join the group that computes a tensor."""

    CLOSED = 0
    CLIPS = 1  # a ReLU: behind sums, products, means
    CLIPPED = 2  # a ReLU, and a positive factor
    SCALED = 3  # and constants, per channel
    MAC = 4  # and batch norm


@dataclasses.dataclass
class TensorPlan:
    """What is known of one tensor.

    Attributes:
      sign: of its grid.
      minimum: where an "offset" grid begins.
      stage: of its group.
      root: Kind or Operator of the operation that computes it, behind what joined and what only
        moves.
      low, high: what it is clipped to, in real units.
      on_grid: whether it is quantized, or is a moved copy of a quantized tensor.
      stream: whether it carries a stream quantizer.
      fixed_step: of that quantizer, where the device leaves no choice.
    """

    sign: Sign = "signed"
    minimum: float | None = None
    stage: Stage = Stage.CLOSED
    root: Any = None
    low: float = -math.inf
    high: float = math.inf
    on_grid: bool = False
    stream: bool = False
    fixed_step: float | None = None

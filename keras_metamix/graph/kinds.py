"""What an operation is to the group of operations that it is in."""

from __future__ import annotations

import enum
import math
from typing import Any


class Kind(enum.Enum):
    """What an operation does to the group that computes its input, or to the grid of its input.

    Operations that begin a group of their own, but for those that multiply and accumulate, are
    Operators in place of Kinds: `graph/operators`.
    """

    MAC = "multiply-accumulate"
    BATCH_NORM = "batch normalization"
    AFFINE = "scale and shift by constants"
    RELU = "relu"
    RELU6 = "relu6"
    CLIP = "relu with another maximum"
    HARD_SIGMOID = "hard sigmoid"
    SOFTMAX = "softmax"
    UNIT_NORM = "division by the L2 norm"
    PASS = "only moves or selects data"
    ROUND = "moves data, and rounds values to the grid that they lie on"
    SYMMETRIC = "has to lie on a grid of zero-point 0"
    FLOAT = "computes in float"


# What a ReLU that a quantizer can compute, too, and the device can fuse, clips at above.
RELU_ENDS = {Kind.RELU: math.inf, Kind.RELU6: 6.0}
RELUS = (*RELU_ENDS, Kind.CLIP)
ENDINGS = (Kind.SOFTMAX, Kind.UNIT_NORM)  # left out of the file at the end of a model
CONSTANTS = (Kind.BATCH_NORM, Kind.AFFINE, Kind.HARD_SIGMOID)  # of each channel


def relu_end(operation: Any, kind: Kind) -> float:
    """What an operation of one of `RELUS` clips at above."""
    if kind in RELU_ENDS:
        return RELU_ENDS[kind]
    return float(getattr(operation, "max_value", None) or operation.x_max)

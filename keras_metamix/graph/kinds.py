"""What an operation is to the group of operations that it stands in."""

from __future__ import annotations

import enum
import math


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
    HARD_SIGMOID = "hard sigmoid"
    SOFTMAX = "softmax"
    PASS = "moves or selects values"
    ROUND = "moves values, and rounds them to the grid that they lie on"
    FLOAT = "computes in float"


# What a ReLU clips at above.
RELU_ENDS = {Kind.RELU: math.inf, Kind.RELU6: 6.0}
CONSTANTS = (Kind.BATCH_NORM, Kind.AFFINE, Kind.HARD_SIGMOID)  # of each channel

"""Rounding and quantization primitives with custom gradients."""

from keras_metamix.ops.rounding import hard_selection, round_straight_through
from keras_metamix.ops.step_size import (
    lsq,
    lsq_integers,
    lsq_mixture,
    lsq_per_channel,
    shifted_range,
)

__all__ = [
    "hard_selection",
    "lsq",
    "lsq_integers",
    "lsq_mixture",
    "lsq_per_channel",
    "round_straight_through",
    "shifted_range",
]

"""Rounding and quantization primitives with custom gradients."""

from keras_metamix.ops.nested import lsq_nested, nested_integers
from keras_metamix.ops.normalization import batch_norm
from keras_metamix.ops.picking import pick
from keras_metamix.ops.resize import resize_levels
from keras_metamix.ops.rounding import (
    hard_selection,
    round_straight_through,
    straight_through,
)
from keras_metamix.ops.step_size import (
    lsq,
    lsq_integers,
    lsq_mixture,
    lsq_per_channel,
    shifted_range,
)

__all__ = [
    "batch_norm",
    "hard_selection",
    "lsq",
    "lsq_integers",
    "lsq_mixture",
    "lsq_nested",
    "lsq_per_channel",
    "nested_integers",
    "pick",
    "resize_levels",
    "round_straight_through",
    "shifted_range",
    "straight_through",
]

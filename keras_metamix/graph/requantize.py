"""Levels on their way from one grid to another."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from keras_metamix.graph.group import Group
from keras_metamix.layers.grid import Grid, clip_level
from keras_metamix.layers.integer import Rescale


@dataclasses.dataclass(frozen=True)
class Levels:
    """A tensor of levels and its grid."""

    tensor: Any
    grid: Grid


def clip_ends(group: Group, grid: Grid, name: str) -> dict[str, Any]:
    """The levels that an integer layer clips to, where they are not the grid's own ends."""
    clip: dict[str, Any] = {}
    if math.isfinite(group.low):
        clip["low"] = max(grid.low, 0)
    if math.isfinite(group.high):
        level = clip_level(grid, group.high)
        if level < grid.high and grid.has_nominal_scale:
            raise ValueError(
                f"{name!r}: a clip at {group.high} before a signed quantizer is not supported."
            )
        clip["high"] = min(grid.high, level)
    return clip


def rescaled(levels: Levels, grid: Grid, clip: dict[str, int], name: str) -> Any:
    """Levels on another grid."""
    if levels.grid == grid and all(clip[end] == getattr(grid, end) for end in clip):
        return levels.tensor
    layer = Rescale(levels.grid, grid, name=name, **clip)
    if layer.low == grid.low and not grid.lower_end_is_clipped:
        _leave_unclipped(layer)
    return layer(levels.tensor)


def _leave_unclipped(layer: Rescale) -> None:
    """Takes away a lower end that the device cannot clip at.

    Raises:
      ValueError: a level below the end occurs; names the layer.
    """
    grid = layer.output_grid
    layer.low = -128 - grid.zero_point
    least = int(layer(np.array([layer.input_grid.low], np.float32))[0])
    if least < grid.low:
        raise ValueError(
            f"Layer {layer.name!r}: level {least} occurs, below {grid.low}, where the device "
            f"cannot clip: its step size {grid.step} is too small beside {layer.input_grid.step}, "
            "that of the 8-bit tensor before it."
        )

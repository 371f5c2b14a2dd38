"""Groups of operations on their way to one integer layer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_metamix.graph.topology import Node
from keras_metamix.layers.grid import Grid, clip_level
from keras_metamix.layers.integer import Rescale


@dataclasses.dataclass(frozen=True)
class Levels:
    """A tensor of levels and its grid."""

    tensor: Any
    grid: Grid


@dataclasses.dataclass(frozen=True)
class Group:
    """A group of operations whose result has not met its quantizer yet.

    `kind` is the Kind or Operator that it begins with, None for the model's input. The result is
    `clip(factor * operation + shift, low, high)`. `inputs` are levels, what a
    concatenation joins may be pending too, and the model's input is a float tensor; `after` are
    functions of levels and their grid that only move values, run behind the requantization.
    """

    node: Node | None
    inputs: tuple[Any, ...]
    kind: Any = None
    factor: Any = 1.0
    shift: Any = 0.0
    low: float = -math.inf
    high: float = math.inf
    after: tuple[Callable[[Any, Grid], Any], ...] = ()

    def scaled(self, factor: Any, shift: Any) -> Group:
        """The group with constants behind it."""
        return dataclasses.replace(
            self,
            factor=self.factor * factor,
            shift=self.shift * factor + shift,
            low=float(self.low * factor) if math.isfinite(self.low) else self.low,
            high=float(self.high * factor) if math.isfinite(self.high) else self.high,
        )

    def clipped(self, low: float, high: float) -> Group:
        """The group with a clip behind it."""
        return dataclasses.replace(self, low=max(self.low, low), high=min(self.high, high))


def clip_ends(group: Group, grid: Grid, name: str) -> dict[str, Any]:
    """The levels that an integer layer clips to, where they are not the grid's own ends."""
    clip: dict[str, Any] = {}
    if math.isfinite(group.low):
        clip["low"] = max(grid.low, 0)
    if math.isfinite(group.high):
        level = clip_level(grid, group.high)
        if level < grid.high and grid.labelled:
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

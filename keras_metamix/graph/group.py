"""Groups of operations on their way to one integer layer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from keras_metamix.graph.operations import Kind, kind
from keras_metamix.graph.topology import Node
from keras_metamix.layers.grid import Grid, clip_level


@dataclasses.dataclass(frozen=True)
class Levels:
    """A tensor of levels and its grid."""

    tensor: Any
    grid: Grid


@dataclasses.dataclass(frozen=True)
class Group:
    """A group of operations whose result has not met its quantizer yet.

    The result is `clip(factor * operation + shift, low, high)`. `inputs` are levels, what a
    concatenation joins may be pending too, and the model's input is a float tensor; `after` are
    functions of levels and their grid that only move values, run behind the requantization.
    """

    node: Node | None
    inputs: tuple[Any, ...]
    factor: Any = 1.0
    shift: Any = 0.0
    low: float = -math.inf
    high: float = math.inf
    after: tuple[Callable[[Any, Grid], Any], ...] = ()

    @property
    def kind(self) -> Kind | None:
        """Of the operation that the group begins with; None for the model's input."""
        return kind(self.node.operation, self.node) if self.node else None

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

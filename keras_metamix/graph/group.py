"""Groups of operations that the device computes as one, from one quantizer to the next."""

from __future__ import annotations

import dataclasses
import enum
import math
from typing import Any

from keras_metamix.graph.affine import affine_terms
from keras_metamix.graph.kinds import RELU_ENDS, RELUS, Kind, relu_end
from keras_metamix.graph.topology import Node
from keras_metamix.layers.grid import Sign


class Stage(enum.IntEnum):
    """What may still join a group."""

    CLOSED = 0
    CLIPS = 1  # a ReLU: behind sums, products, means
    CLIPPED = 2  # a ReLU, and a positive factor
    SCALED = 3  # and constants, per channel
    MAC = 4  # and batch norm


_FIRST_STAGE = {
    Kind.MAC: Stage.MAC,
    Kind.BATCH_NORM: Stage.MAC,
    Kind.AFFINE: Stage.SCALED,
    Kind.HARD_SIGMOID: Stage.SCALED,
    Kind.RELU: Stage.CLIPS,
    Kind.RELU6: Stage.CLIPS,
    Kind.CLIP: Stage.CLIPS,
}


@dataclasses.dataclass(frozen=True)
class Group:
    """Operations whose result has not met its quantizer yet.

    The result is `clip(factor * head + shift, low, high)`, moved by `data_movement`. `joined` is
    the one place that says what a group takes in: the plan of a float model asks it to place
    quantizers, and the fold of a quantized network to make integers.

    Attributes:
      head: the operation that it begins with; None for the model's input.
      kind: the Kind or Operator of the head; None for the model's input.
      stage: what may still join.
      sign: of the grid that its result takes.
      minimum: where an "offset" grid begins.
      factor, shift: constants behind the head, of shape () or (channels,).
      low, high: what the result is clipped to, in real units.
      norm: the batch norm of a float model that joined.
      data_movement: operations behind it that only move or select values.
      inputs: what the head reads on its way to integers: Levels, what a concatenation joins may
        be groups too, and the model's input is a float tensor.
    """

    head: Node | None = None
    kind: Any = None
    stage: Stage = Stage.CLOSED
    sign: Sign = "signed"
    minimum: float | None = None
    factor: Any = 1.0
    shift: Any = 0.0
    low: float = -math.inf
    high: float = math.inf
    norm: Node | None = None
    data_movement: tuple[Node, ...] = ()
    inputs: tuple[Any, ...] = ()

    @property
    def maximum(self) -> float | None:
        """Where no fused activation clips: the grid itself has to end there, or below."""
        return None if self.high in RELU_ENDS.values() else self.high

    @property
    def saturates(self) -> bool:
        """Whether no fused activation can clip it at 0: saturation does, at 8 unsigned bits."""
        return self.low >= 0 and not self._fuses

    @property
    def _fuses(self) -> bool:
        return getattr(self.kind, "fuses", True)

    @classmethod
    def begun(cls, head: Node, kind: Any, inputs: tuple[Any, ...] = ()) -> Group:
        """The group of an operation that is no Operator and joins no other."""
        group = cls(head, kind, _FIRST_STAGE.get(kind, Stage.CLOSED), inputs=inputs)
        joined = group.joined(head, kind)
        return group if joined is None else dataclasses.replace(joined, norm=None)

    def joined(self, node: Node, kind: Any) -> Group | None:
        """The group with an operation behind it, None where that begins another group.

        Args:
          node: a call that reads the group's result.
          kind: of the call.

        Raises:
          ValueError: its constants differ within a channel; names it.
        """
        if kind is Kind.PASS:
            return dataclasses.replace(
                self, stage=Stage.CLOSED, data_movement=(*self.data_movement, node)
            )
        if kind in RELUS:
            end = relu_end(node.operation, kind)
            fits = self.stage >= Stage.CLIPS and (self._fuses or end != RELU_ENDS[Kind.RELU6])
            return self.clipped(0.0, end) if fits else None
        if kind is Kind.SYMMETRIC:
            fixed = getattr(self.kind, "fixed_step", None) or self.maximum or self.saturates
            if self.kind is None or fixed:  # its grid is another's
                return None
            return dataclasses.replace(self, stage=Stage.CLOSED, sign="signed", minimum=None)
        if kind is Kind.BATCH_NORM:
            normed = dataclasses.replace(self, stage=Stage.SCALED, norm=node)
            return normed if self.stage is Stage.MAC else None
        if kind is Kind.HARD_SIGMOID:
            linear = self._scaled(1 / 6, 0.5) if self.stage >= Stage.SCALED else None
            return linear and linear.clipped(0.0, 1.0)
        if kind is Kind.AFFINE:
            terms = affine_terms(node)
            if terms is None:
                raise ValueError(f"Layer {node.name!r}: its constants differ within a channel.")
            return self._scaled(*terms)
        return None

    def clipped(self, low: float, high: float) -> Group:
        """The group with a clip behind it."""
        low, high = max(self.low, low), min(self.high, high)
        clipped = dataclasses.replace(
            self, stage=min(self.stage, Stage.CLIPPED), low=low, high=high
        )
        return clipped if low < 0 else dataclasses.replace(clipped, sign="unsigned", minimum=None)

    def _scaled(self, factor: Any, shift: Any) -> Group | None:
        """The group with constants behind it: behind a clip, with a positive factor alone."""
        factors = {"factor": self.factor * factor, "shift": self.shift * factor + shift}
        if self.stage >= Stage.SCALED:
            return dataclasses.replace(self, stage=Stage.SCALED, **factors)
        if self.stage is not Stage.CLIPPED or factor.ndim or factor <= 0 or shift.any():
            return None
        ends = {"low": float(self.low * factor), "high": float(self.high * factor)}
        return dataclasses.replace(self, **ends, **factors)

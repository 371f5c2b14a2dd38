"""Decides which tensors of an expanded float model carry which quantizer.

Where quantizers stand (contract of the device, see `fold_batch_norm`):
  - operations that the device computes as one form a group: a MAC layer, its batch norm, constants
    that scale and shift, and a ReLU. Inside a group nothing is quantized;
  - a tensor that exactly one MAC layer reads, and nothing else, carries that layer's input
    quantizer ("direct");
  - any other tensor that leaves a group carries a stream quantizer, and the MAC layers that read
    it have their own input quantizers behind it.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from typing import Any

from keras_metamix.graph.affine import affine_terms
from keras_metamix.graph.operations import RELUS, Kind, kind
from keras_metamix.graph.topology import Node, Topology
from keras_metamix.layers.grid import Sign

# Least value of x * gate(x).
GATE_MINIMA = {Kind.HARD_SIGMOID: -0.375, Kind.SIGMOID: -0.27846}
# LiteRT's sigmoid and tanh write these scales and no other; a clip to [0, 1] takes all of INT8.
_FIXED_STEPS = {Kind.SIGMOID: 1 / 256, Kind.TANH: 1 / 128}
UNIT_STEP = 1 / 255


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
      root: kind of the operation that computes it, behind what joined and what only moves.
      low, high: what it is clipped to, in real units.
      on_grid: whether it is quantized, or is a moved copy of a quantized tensor.
      stream: whether it carries a stream quantizer.
      fixed_step: of that quantizer, where the device leaves no choice.
    """

    sign: Sign = "signed"
    minimum: float | None = None
    stage: Stage = Stage.CLOSED
    root: Kind | None = None
    low: float = -math.inf
    high: float = math.inf
    on_grid: bool = False
    stream: bool = False
    fixed_step: float | None = None


class Plan:
    """Which tensors of an expanded model carry which quantizer.

    Args:
      topology: of the expanded model.
      exact_inputs: names of the 8-bit end layers, whose inputs need no clip below INT8's own.
      float_layers: names of layers that stay in float, as do operations of no kind.
    """

    def __init__(
        self, topology: Topology, exact_inputs: set[str], float_layers: frozenset[str] = frozenset()
    ):
        self.topology, self.exact_inputs = topology, exact_inputs
        self.kinds = {
            id(node): (node.name not in float_layers and kind(node.operation, node)) or Kind.FLOAT
            for node in topology.nodes
        }
        self._end_softmax()
        self._calls: dict[int, int] = {}
        for node in topology.nodes:
            key = id(node.operation)
            self._calls[key] = self._calls.get(key, 0) + 1
        self.tensors: dict[int, TensorPlan] = {}
        for tensor in topology.inputs:
            self._place(tensor, _input_plan(tensor), None)
        for node in topology.nodes:
            for tensor in node.outputs:
                self._place(tensor, self._result(node), node)

    def __getitem__(self, tensor: Any) -> TensorPlan:
        return self.tensors[id(tensor)]

    def kind(self, node: Node) -> Kind:
        """The kind of a node, as this plan treats it."""
        return self.kinds[id(node)]

    def called_once(self, node: Node) -> bool:
        """Whether nothing else in the model calls the node's operation."""
        return self._calls[id(node.operation)] == 1

    def absorbable(self, tensor: Any) -> str:
        """The ReLU that the operation before a tensor is and nothing else, else "linear"."""
        node = self.topology.producer(tensor)
        if node is not None and getattr(node.operation, "activity_regularizer", None) is not None:
            return "linear"
        return RELUS.get(self.kind(node), "linear") if node else "linear"

    def joins(self, node: Node) -> bool:
        """Whether a node becomes part of the group that computes its input."""
        source = self[node.inputs[0]]
        return not source.on_grid and self._may_join(source, node)

    def _end_softmax(self) -> None:
        for node in self.topology.nodes:
            if self.kind(node) is Kind.SOFTMAX and not self.topology.is_output(node.output):
                self.kinds[id(node)] = Kind.FLOAT

    # --- what an operation makes of its inputs ---------------------------------------------

    def _result(self, node: Node) -> TensorPlan:
        """The plan of a node's output, before quantizers are placed."""
        found, sources = self.kind(node), [self[t] for t in node.inputs]
        first = sources[0]
        joined = self.joins(node)
        if found is Kind.PASS:
            return dataclasses.replace(
                first, stage=Stage.CLOSED, stream=False, on_grid=first.on_grid, fixed_step=None
            )
        if found in RELUS:
            high = 6.0 if found is Kind.RELU6 else math.inf
            if not joined:
                return TensorPlan("unsigned", stage=Stage.CLIPS, root=found, low=0.0, high=high)
            stage = Stage.CLIPS if first.stage is Stage.CLIPS else Stage.CLIPPED
            high = min(first.high, high)
            return TensorPlan("unsigned", stage=stage, root=first.root, low=0.0, high=high)
        if found is Kind.HARD_SIGMOID:
            root = first.root if joined else found
            return TensorPlan("unsigned", stage=Stage.CLIPPED, root=root, low=0.0, high=1.0)
        if found in (Kind.AFFINE, Kind.BATCH_NORM):
            return self._scaled(node, first, joined)
        if found is Kind.MAC:
            stage = Stage.MAC if self.called_once(node) else Stage.SCALED
            return TensorPlan(stage=stage, root=found)
        if found in _FIXED_STEPS:
            return TensorPlan("unsigned" if found is Kind.SIGMOID else "signed", root=found)
        if found in (Kind.FLOAT, Kind.SOFTMAX):
            return TensorPlan(root=found)
        positive = all(s.sign == "unsigned" for s in sources)
        if not positive and found is Kind.MULTIPLY and (gate := self._gate(node)):
            minimum = GATE_MINIMA[gate]
            return TensorPlan("offset", minimum, stage=Stage.CLIPS, root=found)
        return TensorPlan("unsigned" if positive else "signed", stage=Stage.CLIPS, root=found)

    def _scaled(self, node: Node, first: TensorPlan, joined: bool) -> TensorPlan:
        if not joined:
            return TensorPlan(stage=Stage.SCALED, root=self.kind(node))
        if first.stage is not Stage.CLIPPED:
            return TensorPlan(stage=Stage.SCALED, root=first.root)
        factor = float(affine_terms(node)[0])  # pyright: ignore[reportOptionalSubscript]
        return dataclasses.replace(first, low=first.low * factor, high=first.high * factor)

    def _gate(self, node: Node) -> Kind | None:
        """The gate of a product `x * gate(x)`."""
        for value, gate in (node.inputs, node.inputs[::-1]):
            before = self.topology.producer(gate)
            if (
                before is not None
                and before.inputs[0] is value
                and self.kind(before) in GATE_MINIMA
            ):
                return self.kind(before)
        return None

    # --- groups ----------------------------------------------------------------------------

    def _may_join(self, source: TensorPlan, node: Node) -> bool:
        found = self.kind(node)
        if found is Kind.BATCH_NORM:
            return source.stage is Stage.MAC and self.called_once(node)
        if found in RELUS:
            return source.stage >= Stage.CLIPS
        if found is Kind.HARD_SIGMOID:
            return source.stage >= Stage.SCALED
        if found is not Kind.AFFINE:
            return False
        if source.stage >= Stage.SCALED:
            return True
        scale, offset = affine_terms(node)  # pyright: ignore[reportGeneralTypeIssues]
        positive = scale.ndim == 0 and scale > 0 and not offset.any()
        return source.stage is Stage.CLIPPED and bool(positive)

    def _place(self, tensor: Any, plan: TensorPlan, node: Node | None) -> None:
        """Decides whether a tensor carries a stream quantizer."""
        self.tensors[id(tensor)] = plan
        if plan.on_grid:
            return
        if node is not None:
            plan.fixed_step = self._fixed_step(plan, node)
        only = self.topology.only_consumer(tensor)
        inside = only is not None and (
            self._may_join(plan, only) or self._concatenated_later(plan, only)
        )
        if inside or self._is_direct(tensor, plan, only) or self._leaves_in_float(node):
            return
        plan.stream = plan.on_grid = True

    def _fixed_step(self, plan: TensorPlan, node: Node) -> float | None:
        if self.kind(node) is Kind.PASS:
            return None
        if (plan.low, plan.high) == (0.0, 1.0):
            return UNIT_STEP
        return _FIXED_STEPS.get(self.kind(node))

    def _concatenated_later(self, plan: TensorPlan, only: Node) -> bool:
        """Whether the quantizer behind a concatenation is the tensor's own."""
        whole = plan.root not in (None, Kind.FLOAT, Kind.SOFTMAX)
        return self.kind(only) is Kind.CONCAT and plan.fixed_step is None and whole

    def _is_direct(self, tensor: Any, plan: TensorPlan, only: Node | None) -> bool:
        """Whether the one reader's own quantizer will do.

        A tensor of fewer than 8 bits with levels below 0 is clipped by a label that its producer
        has to take into its weight scales: only a MAC layer can. What an 8-bit end reads needs no
        clip. The tensors that a layer reads in several calls may differ in sign, and share its
        quantizer.
        """
        if only is None or plan.fixed_step or self.kind(only) not in (Kind.MAC, Kind.PASS):
            return False
        reader = self._reader_behind_moves(only)
        if reader is not None and not self.called_once(reader):
            return False
        if reader is not None and reader.name in self.exact_inputs:
            return True
        if plan.root is None:
            return False
        labelled = plan.root in (Kind.MAC, Kind.BATCH_NORM, Kind.AFFINE, Kind.AVERAGE)
        return labelled or plan.sign == "unsigned"

    def _reader_behind_moves(self, node: Node | None) -> Node | None:
        """The one operation that reads a tensor in the end."""
        while node is not None and self.kind(node) is Kind.PASS:
            node = self.topology.only_consumer(node.output)
        return node

    def _leaves_in_float(self, node: Node | None) -> bool:
        return node is not None and self.kind(node) is Kind.SOFTMAX


def _input_plan(tensor: Any) -> TensorPlan:
    """The plan of a model's input: bytes are their own levels."""
    return TensorPlan("unsigned", fixed_step=1.0) if tensor.dtype == "uint8" else TensorPlan()

"""Decides which tensors of an expanded float model have which quantizer.

Where quantizers are (contract of the device, see `fold_batch_norm`):
  - operations that the device computes as one form a group: a MAC layer, its batch norm, constants
    that scale and shift, and a ReLU. Inside a group nothing is quantized;
  - a tensor that exactly one MAC layer reads, and nothing else, has that layer's input
    quantizer ("direct");
  - any other tensor that leaves a group has a stream quantizer, and the MAC layers that read
    it have their own input quantizers behind it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from keras_metamix.graph.group import Group, Stage
from keras_metamix.graph.kinds import ENDINGS, RELU_ENDS, Kind
from keras_metamix.graph.operations import kind
from keras_metamix.graph.operators import Operator
from keras_metamix.graph.topology import Node, Topology

# A clip to [0, 1] takes all of INT8.
UNIT_STEP = 1 / 255


@dataclasses.dataclass
class TensorPlan:
    """What becomes of one tensor.

    Attributes:
      group: the one that computes it.
      on_grid: whether it is quantized, or is a moved copy of a quantized tensor.
      stream: whether it has a stream quantizer.
      fixed_step: of that quantizer, where the device leaves no choice.
      source: the tensor whose quantizer gave the grid that it lies on.
    """

    group: Group
    on_grid: bool = False
    stream: bool = False
    fixed_step: float | None = None
    source: Any = None


class Plan:
    """Which tensors of an expanded model have which quantizer.

    Args:
      topology: of the expanded model.
      exact_inputs: names of the 8-bit end layers, whose inputs need no clip below INT8's own.
      float_layers: names of layers that stay in float, as do operations of no kind.
    """

    def __init__(
        self, topology: Topology, exact_inputs: set[str], float_layers: frozenset[str] = frozenset()
    ):
        self.topology = topology
        self.exact_inputs = exact_inputs
        self.kinds: dict[int, Kind | Operator] = {
            id(node): (node.name not in float_layers and kind(node.operation, node)) or Kind.FLOAT
            for node in topology.nodes
        }
        self._keep_endings()
        self._calls: dict[int, int] = {}
        for node in topology.nodes:
            key = id(node.operation)
            self._calls[key] = self._calls.get(key, 0) + 1
        self.tensors: dict[int, TensorPlan] = {}
        self._whole: dict[int, Group] = {}
        for tensor in topology.inputs:
            self._place(tensor, _input_plan(tensor), None)
        for node in topology.nodes:
            for tensor in node.outputs:
                self._place(tensor, self._result(node), node)

    def __getitem__(self, tensor: Any) -> TensorPlan:
        return self.tensors[id(tensor)]

    def kind(self, node: Node) -> Kind | Operator:
        """The kind of a node, as this plan treats it."""
        return self.kinds[id(node)]

    def whole_group(self, head: Node) -> Group:
        """The group that a node begins, with all that joins it."""
        return self._whole[id(head)]

    def called_once(self, node: Node) -> bool:
        """Whether nothing else in the model calls the node's operation."""
        return self._calls[id(node.operation)] == 1

    def absorbable(self, tensor: Any) -> str:
        """The ReLU that the operation before a tensor is and nothing else, else "linear"."""
        node = self.topology.producer(tensor)
        if node is None or getattr(node.operation, "activity_regularizer", None) is not None:
            return "linear"
        found = self.kind(node)
        return found.name.lower() if isinstance(found, Kind) and found in RELU_ENDS else "linear"

    def joins(self, node: Node) -> bool:
        """Whether a node is part of the group that computes its input."""
        moved = self.kind(node) in (Kind.PASS, Kind.ROUND)
        return not moved and self[node.output].group.head is not node

    def _keep_endings(self) -> None:
        for node in self.topology.nodes:
            if self.kind(node) in ENDINGS and not self.topology.is_output(node.output):
                self.kinds[id(node)] = Kind.FLOAT

    # --- groups ----------------------------------------------------------------------------

    def _result(self, node: Node) -> TensorPlan:
        """The plan of a node's output, before quantizers are placed."""
        if self._joins_parts_of_one(node):
            self.kinds[id(node)] = Kind.PASS
        source, found = self[node.inputs[0]], self.kind(node)
        if found in (Kind.PASS, Kind.ROUND):
            moved = source.group.joined(node, Kind.PASS) or source.group
            # What rounds has a quantizer before it, on whose grid its result lies.
            on_grid = source.on_grid or found is Kind.ROUND
            return TensorPlan(moved, on_grid, source=source.source)
        if found is Kind.SYMMETRIC and _is_symmetric(source):
            return TensorPlan(source.group, on_grid=True)
        joined = None if source.on_grid else self._joined(source.group, node)
        group = joined or self._begun(node)
        self._whole[id(group.head)] = group
        kept = isinstance(found, Operator) and found.keeps_grid
        return TensorPlan(group, kept and source.on_grid, source=source.source if kept else None)

    def _joins_parts_of_one(self, node: Node) -> bool:
        """Whether a node joins tensors that lie on the grid of one quantizer: that moves them."""
        found, plans = self.kind(node), [self[tensor] for tensor in node.inputs]
        joins = isinstance(found, Operator) and found.joins_parts
        return joins and plans[0].on_grid and len({id(plan.source) for plan in plans}) == 1

    def _joined(self, group: Group, node: Node) -> Group | None:
        """A group with a node behind it; a batch norm that is called again elsewhere stays out."""
        found = self.kind(node)
        if found is Kind.PASS or (found is Kind.BATCH_NORM and not self.called_once(node)):
            return None
        return group.joined(node, found)

    def _begun(self, node: Node) -> Group:
        found = self.kind(node)
        if isinstance(found, Operator):
            return found.group(node, [self[t].group for t in node.inputs], self)
        group = Group.begun(node, found)
        if found is Kind.MAC and not self.called_once(node):  # no batch norm is that of one call
            return dataclasses.replace(group, stage=Stage.SCALED)
        return group

    # --- quantizers ------------------------------------------------------------------------

    def _place(self, tensor: Any, plan: TensorPlan, node: Node | None) -> None:
        """Decides whether a tensor has a stream quantizer."""
        self.tensors[id(tensor)] = plan
        if plan.on_grid:
            return
        if node is not None:
            plan.fixed_step = self._fixed_step(plan, node)
        only = self.topology.only_consumer(tensor)
        inside = only is not None and (
            self._joined(plan.group, only) or self._concatenated_later(plan, only)
        )
        if inside or self._is_direct(tensor, plan, only) or self._leaves_in_float(node):
            return
        plan.stream = plan.on_grid = True
        plan.source = tensor

    def _fixed_step(self, plan: TensorPlan, node: Node) -> float | None:
        if self.kind(node) is Kind.PASS:
            return None
        if (plan.group.low, plan.group.high) == (0.0, 1.0):
            return UNIT_STEP
        found = self.kind(node)
        return found.fixed_step if isinstance(found, Operator) else None

    def _concatenated_later(self, plan: TensorPlan, only: Node) -> bool:
        """Whether the quantizer behind a concatenation is the tensor's own."""
        whole = plan.group.kind not in (None, Kind.FLOAT, *ENDINGS)
        found = self.kind(only)
        joins = isinstance(found, Operator) and found.joins_parts
        free = plan.fixed_step is None and plan.group.maximum is None
        return joins and free and whole and not plan.group.saturates

    def _is_direct(self, tensor: Any, plan: TensorPlan, only: Node | None) -> bool:
        """Whether the one reader's own quantizer will do.

        A tensor of fewer than 8 bits with levels below 0 is clipped by a nominal scale, which its
        producer has to take into its weight scales: only a MAC layer can. The input of an edge of 8
        bits needs no clip. The tensors that a layer reads in several calls may differ in sign, and
        share its quantizer.
        """
        if only is None or plan.fixed_step or self.kind(only) not in (Kind.MAC, Kind.PASS):
            return False
        reader = self._reader_behind_data_movement(only)
        if reader is not None and not self.called_once(reader):
            return False
        if reader is not None and reader.name in self.exact_inputs:
            return True
        first = plan.group.kind
        if first is None:
            return False
        nominal = first in (Kind.MAC, Kind.BATCH_NORM, Kind.AFFINE)
        nominal |= isinstance(first, Operator) and first.takes_nominal_scale
        return nominal or (plan.group.sign == "unsigned" and not plan.group.saturates)

    def _reader_behind_data_movement(self, node: Node | None) -> Node | None:
        """The one operation that reads a tensor in the end."""
        while node is not None and self.kind(node) is Kind.PASS:
            node = self.topology.only_consumer(node.output)
        return node

    def _leaves_in_float(self, node: Node | None) -> bool:
        return node is not None and self.kind(node) in ENDINGS


def _is_symmetric(plan: TensorPlan) -> bool:
    """Whether a tensor's grid has zero-point 0; data decide that of an input."""
    return plan.on_grid and plan.group.kind is not None and plan.group.sign == "signed"


def _input_plan(tensor: Any) -> TensorPlan:
    """The plan of a model's input: bytes are their own levels."""
    if tensor.dtype == "uint8":
        return TensorPlan(Group(sign="unsigned"), fixed_step=1.0)
    return TensorPlan(Group())

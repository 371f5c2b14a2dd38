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
import math
from typing import Any

from keras_metamix.graph.affine import affine_terms
from keras_metamix.graph.kinds import Kind
from keras_metamix.graph.operations import RELUS, kind
from keras_metamix.graph.operators import Operator
from keras_metamix.graph.tensor_plan import Stage, TensorPlan
from keras_metamix.graph.topology import Node, Topology

# A clip to [0, 1] takes all of INT8.
UNIT_STEP = 1 / 255


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

    def kind(self, node: Node) -> Kind | Operator:
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
        if isinstance(found, Operator):
            return found.plan(node, sources, self)
        return TensorPlan(root=found)  # FLOAT or SOFTMAX

    def _scaled(self, node: Node, first: TensorPlan, joined: bool) -> TensorPlan:
        if not joined:
            return TensorPlan(stage=Stage.SCALED, root=self.kind(node))
        if first.stage is not Stage.CLIPPED:
            return TensorPlan(stage=Stage.SCALED, root=first.root)
        factor = float(affine_terms(node)[0])  # pyright: ignore[reportOptionalSubscript]
        return dataclasses.replace(first, low=first.low * factor, high=first.high * factor)

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
        found = self.kind(node)
        return found.fixed_step if isinstance(found, Operator) else None

    def _concatenated_later(self, plan: TensorPlan, only: Node) -> bool:
        """Whether the quantizer behind a concatenation is the tensor's own."""
        whole = plan.root not in (None, Kind.FLOAT, Kind.SOFTMAX)
        found = self.kind(only)
        joins = isinstance(found, Operator) and found.joins_parts
        return joins and plan.fixed_step is None and whole

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
        root = plan.root
        labelled = root in (Kind.MAC, Kind.BATCH_NORM, Kind.AFFINE)
        labelled |= isinstance(root, Operator) and root.takes_labels
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

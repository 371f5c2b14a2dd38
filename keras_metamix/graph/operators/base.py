"""What an operator of the device is to a quantized network, on the Keras side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras_metamix.graph.copying import copy_of
from keras_metamix.graph.group import Group, Stage
from keras_metamix.graph.kinds import Kind
from keras_metamix.graph.requantize import Levels
from keras_metamix.graph.topology import Node
from keras_metamix.layers.grid import Grid


class Operator:
    """A family of operations that begin a group of their own, and its integers.

    A family is one file here: how its operations are recognised, what is known of their result,
    and the integer layer that computes it. `metamix_tflite/operators` has a file of the same name,
    which writes that layer.

    Attributes:
      title: in messages.
      layers: the Keras layers.
      raw: class names of the `keras.ops` operations.
      functions: names of the activation functions.
      litert: the LiteRT operator that runs it.
      arity: how many tensors it reads; None for any number.
      stage: what may join the group that it begins.
      fixed_step: of the quantizer behind it, where the device leaves no choice.
      fuses: whether it clips by a fused activation; else INT8's saturation alone does.
      takes_nominal_scale: whether its integer layer can scale its result for a grid whose scale
        in the file is nominal, see `Grid`.
      joins_parts: whether the quantizer behind it is that of its inputs too.
      keeps_grid: whether its result lies on the grid of its input, so that no quantizer is behind.
      placewise: whether each value of its result depends on the values at its place alone.
      gate_minimum: least value of x times this operation of x, None where it is no gate.
    """

    title: str
    layers: tuple[type, ...] = ()
    raw: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()
    litert: str
    arity: int | None = 1
    stage: Stage = Stage.CLIPS
    fixed_step: float | None = None
    fuses: bool = True
    takes_nominal_scale: bool = False
    joins_parts: bool = False
    keeps_grid: bool = False
    placewise: bool = False
    gate_minimum: float | None = None

    def takes(self, operation: Any, node: Node | None) -> bool:
        """Whether a raw operation of one of these names is of the family."""
        return node is None or self.arity in (None, len(node.inputs))

    def refusal(self, node: Node) -> str | None:
        """Why a call has no exact integer form, "" where it has one.

        None where the reason is that of the table in `graph/reasons.py`.
        """
        return ""

    def operator(self, node: Node) -> str:
        """The LiteRT operator that gives a call's result."""
        return self.litert

    def takes_edge_tpu(self, node: Node) -> bool:
        """Whether the Edge TPU takes a call, where it has the operator at all."""
        return True

    def trained(self, node: Node) -> Any:
        """The class of a call's layer in a quantized network, an OnGrid; None for its own."""
        return None

    def group(self, node: Node, sources: Sequence[Group], plan: Any) -> Group:
        """The group that a call begins in a float model.

        Args:
          node: the call.
          sources: what computes its inputs.
          plan: the Plan of the whole model.
        """
        positive = all(source.sign == "unsigned" for source in sources)
        return Group(node, self, self.stage, "unsigned" if positive else "signed")

    def begin(self, node: Node, values: Sequence[Levels | Group]) -> Levels | Group:
        """The group that a call begins in a quantized network; of `keeps_grid` its levels.

        Raises:
          ValueError: another number of inputs, or one that has no quantizer; names the layer.
        """
        if self.arity not in (None, len(values)):
            raise ValueError(
                f"Layer {node.name!r}: a {self.title} of {len(values)} tensors, expected "
                f"{self.arity}."
            )
        levels = tuple(require_levels(node, value) for value in values)
        return Group(node, self, self.stage, inputs=levels)

    def finish(self, group: Group, grid: Grid, clip: dict[str, Any], fold: Any) -> Any:
        """The levels of a group that this operator begins.

        Args:
          group: as `begin` made it, with what joined since.
          grid: of the quantizer behind it.
          clip: "low" and "high" of an integer layer, where they are not the grid's.
          fold: the walk over the network.
        """
        return self.integers(group.head, group.inputs, grid, clip)

    def integers(
        self, node: Any, inputs: Sequence[Levels], grid: Grid, clip: dict[str, Any]
    ) -> Any:
        """The integer layer of a call, applied to its inputs."""
        raise NotImplementedError


class DataMovementOperator:
    """A family of operations that only move or select data: a group's result, or a tensor's levels.

    Attributes:
      layers: the Keras layers.
      raw: class names of the `keras.ops` operations.
    """

    layers: tuple[type, ...] = ()
    raw: tuple[str, ...] = ()

    def kind(self, operation: Any, node: Node | None) -> Kind:
        """What an operation of the family is, before its call is known too.

        FLOAT where it has no integer form; `reasons.py` says why.
        """
        return Kind.PASS

    def litert(self, operation: Any) -> str:
        """The LiteRT operator that runs it."""
        raise NotImplementedError

    def layer(self, node: Node) -> Any:
        """The layer of a call in a folded network, for levels of any grid."""
        return copy_of(node.operation, node.call_name)


def reduced_axes(operation: Any, rank: int | None = None) -> tuple[int, ...]:
    """The axes that an operation such as `keras.ops.mean` reduces, in order.

    Args:
      operation: the operation.
      rank: of its input; None where that is not known yet, and axes count as they are given.

    Returns:
      () where the batch is among them.
    """
    axis = operation.axis
    if axis is None:
        return ()
    axes = axis if isinstance(axis, (tuple, list)) else (axis,)
    if rank is not None:
        axes = tuple(sorted({n % rank for n in axes}))
    return () if 0 in axes else tuple(axes)


def require_levels(node: Node, value: Levels | Group) -> Levels:
    """`value`, or ValueError where it is no tensor of levels; names the layer that reads it."""
    if isinstance(value, Group):
        raise ValueError(
            f"Layer {node.name!r} reads a tensor that has no quantizer: put an "
            "ActivationQuantizer(8, role='stream') before it."
        )
    return value

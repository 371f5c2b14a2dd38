"""What becomes of each layer of a float model, before anything is trained."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import keras

from keras_metamix.assignment import SearchSpace, require_space
from keras_metamix.cost import LayerCost
from keras_metamix.graph.expand import float_names
from keras_metamix.graph.inspection import Inspection, inspect
from keras_metamix.graph.kinds import ENDINGS, RELUS, Kind
from keras_metamix.graph.layer_costs import PRODUCT_BITS, costs_of
from keras_metamix.graph.operations import DATA_MOVEMENT_LAYERS, data_movement_of, kind
from keras_metamix.graph.operators import Operator
from keras_metamix.graph.operators.batch_matmul import product_macs
from keras_metamix.graph.refusals import by_name, standing_for
from keras_metamix.graph.text_table import text_table
from keras_metamix.graph.topology import Node
from metamix_tflite.containers import xnnpack_partitions, xnnpack_takes_pool
from metamix_tflite.operators import LITERT
from metamix_tflite.targets import MacForm, Target, TargetName, target_of

_OPERATORS = {
    Kind.BATCH_NORM: "DEPTHWISE_CONV_2D",
    Kind.AFFINE: "DEPTHWISE_CONV_2D",
    Kind.HARD_SIGMOID: "DEPTHWISE_CONV_2D",
    **dict.fromkeys((*RELUS, Kind.SYMMETRIC), "MUL"),
}
_HEADERS = ("layer", "class", "LiteRT operator", "weights in", "input bits", "weight bits")
_HEADERS += ("kernels", "XNNPACK", "GPU", "Edge TPU", "MACs", "MAC share", "BOPs share", "note")


@dataclasses.dataclass(frozen=True)
class LayerExplanation:
    """What becomes of one call of a layer.

    Attributes:
      name: of the layer, in the expanded model (models inside are opened). An operator that
        brings a sequence into another layout has the name and the class of the layer or input
        whose result it is.
      layer_class: its Keras class, that of the given model.
      outcome: "quantized" (a MAC layer), "integer" (an operator of its own), "folded" (part of
        the layer before it), "left out" (no operator at all), "float" (trains, cannot be
        exported) or "refused" (from_float raises).
      operator: LiteRT's, "" for none.
      container: type that holds the weights in the target's file; "INT4 or INT8" where that
        follows from the bits found.
      activation_bits, weight_bits: candidates of a MAC layer.
      kernels: of a MAC layer, how the target's CPUs run it: "SIMD", "scalar" and where, or whose
        kernels they are; "" where no CPU does.
      xnnpack, gpu: whether the delegate takes the operator; edge_tpu: whether the Edge TPU takes
        it in its own target's file.
      macs: for one image.
      mac_share, bops_share: of the model's, 0 to 1; BOPs at the most bits of every layer.
      note: the reason for "float" and "refused", or what the layer becomes a part of.
    """

    name: str
    layer_class: str
    outcome: str
    operator: str = ""
    container: str = ""
    activation_bits: tuple[int, ...] = ()
    weight_bits: tuple[int, ...] = ()
    kernels: str = ""
    xnnpack: bool = False
    gpu: bool = False
    edge_tpu: bool = False
    macs: int = 0
    mac_share: float = 0.0
    bops_share: float = 0.0
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What becomes of a model; `str` gives the rows as a table.

    Attributes:
      rows: in network order.
      refused: what from_float says of each operation that it raises for, by the name that
        `float_layers` takes.
      space: whose bits the rows have.
    """

    rows: tuple[LayerExplanation, ...]
    refused: dict[str, str]
    space: SearchSpace

    @property
    def not_exported(self) -> dict[str, str]:
        """Layers that keep the model from being exported, and why."""
        return self.refused | {r.name: r.note for r in self.rows if r.outcome == "float"}

    @property
    def saturating(self) -> tuple[str, ...]:
        """Layers whose weights may take 8 bits, which some CPUs' 16-bit sums do not hold.

        OpenVINO adds two products of bytes in 16 bits where a CPU has AVX2 and no VNNI: whole
        networks were up to 37 steps off there, and one step with weights of 7 bits or fewer.
        """
        return tuple(dict.fromkeys(r.name for r in self.rows if 8 in r.weight_bits))

    def __str__(self) -> str:
        table = text_table(_HEADERS, [_cells(row) for row in self.rows])
        if self.space == SearchSpace():
            table += (
                "\n\nThe bits are the candidates of MetaMixModel's default space. Those of "
                "QuantizedModel.from_float(model, 8, 4): explain(model, SearchSpace(8, 4))."
            )
        if not self.saturating:
            return table
        count = len(self.saturating)
        layers = "1 layer" if count == 1 else f"{count} layers"
        return (
            f"{table}\n\nOpenVINO on CPUs without VNNI is exact with weights of 7 bits or fewer: "
            f"sums of products with those of {layers} that may have 8 (.saturating) saturate there."
        )


def explain(
    model: keras.Model,
    space: SearchSpace | None = None,
    float_layers: Iterable[str] = (),
    target: TargetName = "cpu",
) -> Explanation:
    """What `from_float` and `convert` would make of each layer.

    Args:
      model: a float model, functional or Sequential.
      space: the candidates; default: those of `MetaMixModel.from_float`. Of
        `QuantizedModel.from_float(model, 8, 4)` they are `SearchSpace(8, 4)`.
      float_layers: names of layers to leave in float.
      target: where the file is to run, see `convert`.

    Raises:
      TypeError: the model has no graph, or `space` or `float_layers` is of another type.
      ValueError: the model has no MAC layer, or no layer of a name in float_layers; or there is no
        such target.
      UnsupportedLayerError: an open input size, or a layer or an input of another type; names it,
        and all else that is refused.
    """
    space = space or SearchSpace()
    require_space(space)
    chosen = target_of(target)
    found = inspect(model, space, float_names(float_layers))
    reader = _Reader(found, space, chosen)
    return Explanation(
        tuple(reader.row(node) for node in found.topology.nodes),
        by_name(refusal for refusals in found.refused.values() for refusal in refusals),
        space,
    )


class _Reader:
    """Reads one plan."""

    def __init__(self, found: Inspection, space: SearchSpace, target: Target):
        self.plan, self.space, self.calls = found.plan, space, found.macs
        self.target = target
        self.found = found
        self.costs = {cost.name: cost for cost in costs_of(found.macs)} if found.macs else {}
        products = sum(self._product_macs(node) for node in found.topology.nodes)
        self.macs = sum(cost.macs for cost in self.costs.values()) + products
        self.bops = sum(self._most_bops(cost) for cost in self.costs.values())
        self.bops += products * PRODUCT_BITS**2

    def _product_macs(self, node: Node) -> int:
        in_float = node.name in self.found.kept or node.name in self.found.refused
        return 0 if in_float else product_macs(node)

    def _most_bops(self, cost: LayerCost) -> int:
        activation, weight = self.space.layer_candidates(cost.edge)
        return cost.macs * activation[0] * weight[0]

    def row(self, node: Node) -> LayerExplanation:
        """Of one call."""
        origin = self.found.origins[node.name]
        named = node.name, type(standing_for(node.operation)).__name__
        if origin.cls and isinstance(node.operation, keras.layers.Layer):
            named = node.name, origin.cls
        if origin.layout:
            named = origin.owner or origin.name, origin.cls
        if refusals := self.found.refused.get(node.name):
            why = dict.fromkeys(refusal.text for refusal in refusals)
            return LayerExplanation(*named, "refused", note="; ".join(why))
        if node.name in self.found.kept:
            streams = self.space.stream_bits is None
            note = "left in float: stream_bits=None" if streams else "left in float, as asked"
            return LayerExplanation(*named, "float", note=note)
        found = self.plan.kind(node)
        if found is Kind.MAC:
            return self._mac(node, named)
        if found in ENDINGS:
            note = "the file's outputs are the logits"
            if found is Kind.UNIT_NORM:
                note = "the file's outputs are not normalized, which cosine similarity does not see"
            return LayerExplanation(*named, "left out", note=note)
        if self.plan.joins(node):
            head = self.plan[node.output].group.head
            return LayerExplanation(*named, "folded", note=f"into {head.name}" if head else "")
        operator = self._operator(node)
        if not operator:
            return LayerExplanation(*named, "left out", note="does nothing on the device")
        outside, macs = self._outside(node, operator), self._product_macs(node)
        return LayerExplanation(
            *named,
            "integer",
            operator,
            xnnpack=not outside,
            gpu=LITERT[operator].gpu,
            edge_tpu=LITERT[operator].edge_tpu and _takes_edge_tpu(node),
            macs=macs,
            mac_share=macs / self.macs if macs else 0.0,
            bops_share=macs * PRODUCT_BITS**2 / self.bops if macs else 0.0,
            note="requantizes" if found in (*RELUS, Kind.SYMMETRIC) else outside or origin.layout,
        )

    def _operator(self, node: Node) -> str:
        """LiteRT's operator of a call that is no MAC layer's and joins no group, "" for none."""
        found = self.plan.kind(node)
        if isinstance(found, Operator):
            return found.operator(node)
        return _OPERATORS.get(found) or _data_movement(node.operation)

    def _outside(self, node: Node, operator: str) -> str:
        """The note on an operator that XNNPACK leaves to LiteRT's own kernel, "" of others."""
        why = _not_taken(node.operation, operator)
        if not why:
            return ""
        parts = f"{self._partitions} partition{'s' * (self._partitions != 1)}"
        return f"{why}: exact, but not run by XNNPACK, which runs {parts} of the file"

    @functools.cached_property
    def _partitions(self) -> int:
        """How many partitions of the file XNNPACK runs, those of the ends included."""
        topology = self.found.topology

        def names(tensors: Sequence[Any]) -> list[int]:
            return [id(tensor) for tensor in tensors]

        def taken(node: Node) -> bool:
            inside = self.plan.kind(node) in (Kind.MAC, *ENDINGS) or self.plan.joins(node)
            return inside or not _not_taken(node.operation, self._operator(node))

        return xnnpack_partitions(
            [
                ((), names(topology.inputs), True),
                *((names(n.inputs), names(n.outputs), taken(n)) for n in topology.nodes),
                *((names([tensor]), (), True) for tensor in topology.outputs),
            ]
        )

    def _mac(self, node: Node, named: tuple[str, str]) -> LayerExplanation:
        cost = self.costs[node.name]
        activation, weight = self.space.layer_candidates(cost.edge)
        forms = [_mac_form(node, bits, self.target) for bits in weight]
        kernels = [self.target.kernels(form.operator, form.container) for form in forms]
        operator = " or ".join(sorted({f.operator for f in forms}, reverse=True))
        container = " or ".join(sorted({f.container for f in forms}))
        calls = len(self.calls[node.name])
        return LayerExplanation(
            *named,
            "quantized",
            operator,
            container,
            activation,
            weight,
            " or ".join(sorted({*kernels})),
            xnnpack=all(f.operator == "FULLY_CONNECTED" or f.container == "INT8" for f in forms),
            gpu=container == "INT8",
            edge_tpu=getattr(node.operation, "groups", 1) == 1,
            macs=cost.macs // calls,
            mac_share=cost.macs / calls / self.macs,
            bops_share=self._most_bops(cost) / calls / self.bops,
        )


def _mac_form(node: Node, weight_bits: int, target: Target) -> MacForm:
    """What a target's file has for a MAC layer."""
    layer: Any = node.operation
    kinds = {
        keras.layers.Dense: "dense",
        keras.layers.DepthwiseConv2D: "depthwise",
        keras.layers.Conv2DTranspose: "transpose",
    }
    kind = next((kind for cls, kind in kinds.items() if isinstance(layer, cls)), "conv")
    strides = () if kind == "dense" else layer.strides
    channels = node.inputs[0].shape[-1]
    return target.mac_form(kind, layer.kernel.shape, strides, channels, weight_bits)


def _takes_edge_tpu(node: Node) -> bool:
    """Whether the Edge TPU takes a call of an operator that it has: of three dimensions above 1."""
    found = kind(node.operation)
    outer = [size for t in (*node.inputs[:1], node.output) for size in t.shape[1:-3]]
    own = not isinstance(found, Operator) or found.takes_edge_tpu(node)
    return own and all(size == 1 for size in outer)


def _data_movement(operation: Any) -> str:
    if (movement := data_movement_of(operation)) is not None:
        return movement.litert(operation)
    if isinstance(found := kind(operation), Operator):  # it joins parts of one tensor
        return found.litert
    if isinstance(operation, keras.layers.MaxPooling2D) and tuple(operation.pool_size) == (1, 1):
        return "DEPTHWISE_CONV_2D"  # XNNPACK has no pool of 1x1
    if not isinstance(operation, keras.layers.Layer):
        return "RESHAPE"
    found = (name for cls, name in DATA_MOVEMENT_LAYERS.items() if isinstance(operation, cls))
    return next(found, "")


def _not_taken(operation: Any, operator: str) -> str:
    """Why XNNPACK leaves an operator to LiteRT's own kernel, "" if it does not."""
    if operator == "MAX_POOL_2D" and isinstance(operation, keras.layers.MaxPooling2D):
        whole = xnnpack_takes_pool(operation.pool_size, operation.strides)
        return "" if whole else "its strides are larger than its window"
    taken = not operator or LITERT[operator].xnnpack
    return "" if taken else f"XNNPACK has no {operator} of INT8"


def _cells(row: LayerExplanation) -> list[str]:
    ran = row.outcome in ("quantized", "integer")
    delegates = [
        ("yes" if d else "no") if ran else "" for d in (row.xnnpack, row.gpu, row.edge_tpu)
    ]
    shares = [f"{row.macs:,}", f"{row.mac_share:.1%}", f"{row.bops_share:.1%}"]
    bits = ["/".join(map(str, b)) for b in (row.activation_bits, row.weight_bits)]
    note = row.note if ran else f"{row.outcome}: {row.note}"
    return [
        row.name,
        row.layer_class,
        row.operator,
        row.container,
        *bits,
        row.kernels,
        *delegates,
        *(shares if row.macs else ["", "", ""]),
        note,
    ]

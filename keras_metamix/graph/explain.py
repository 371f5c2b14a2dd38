"""What becomes of each layer of a float model, said before anything is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import keras

from keras_metamix.assignment import SearchSpace, require_space
from keras_metamix.cost import LayerCost
from keras_metamix.cost.containers import MacForm, mac_form
from keras_metamix.graph.expand import expand, float_names
from keras_metamix.graph.fold_mac import pool_is_padded
from keras_metamix.graph.layer_costs import costs_of, mac_nodes
from keras_metamix.graph.operations import RELUS, Kind, UnsupportedLayerError
from keras_metamix.graph.plan import Plan
from keras_metamix.graph.precision import require_float32
from keras_metamix.graph.text_table import text_table
from keras_metamix.graph.topology import Node, Topology, as_functional

_OPERATORS = {
    Kind.BATCH_NORM: "DEPTHWISE_CONV_2D",
    Kind.AFFINE: "DEPTHWISE_CONV_2D",
    Kind.HARD_SIGMOID: "DEPTHWISE_CONV_2D",
    Kind.AVERAGE: "DEPTHWISE_CONV_2D",
    Kind.RELU: "MUL",
    Kind.RELU6: "MUL",
    Kind.ADD: "ADD",
    Kind.MULTIPLY: "MUL",
    Kind.MEAN: "MEAN",
    Kind.CONCAT: "CONCATENATION",
    Kind.SIGMOID: "LOGISTIC",
    Kind.TANH: "TANH",
}
_MOVES = (
    ((keras.layers.MaxPooling2D, keras.layers.GlobalMaxPooling2D), "MAX_POOL_2D"),
    ((keras.layers.ZeroPadding2D,), "PAD"),
    ((keras.layers.Cropping2D,), "STRIDED_SLICE"),
    ((keras.layers.Flatten, keras.layers.Reshape), "RESHAPE"),
)
# What the published lists of LiteRT's GPU delegate (which dequantizes to float, so that its results
# are not exact) and of the Edge TPU compiler hold of these. Neither takes INT4 weights, and the
# latter no groups. metamix_tflite.devices.edgetpu_operators says the same of a file.
_GPU = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD", "MUL", "CONCATENATION"}
_GPU |= {"LOGISTIC", "MAX_POOL_2D", "PAD", "RESHAPE", "STRIDED_SLICE"}
_EDGE_TPU = _GPU | {"MEAN", "TANH"}
_HEADERS = ("layer", "class", "LiteRT operator", "weights in", "input bits", "weight bits")
_HEADERS += ("XNNPACK", "GPU", "Edge TPU", "MACs", "MAC share", "BOPs share", "note")


@dataclasses.dataclass(frozen=True)
class LayerExplanation:
    """What becomes of one call of a layer.

    Attributes:
      name: of the layer, in the expanded model (models inside are opened).
      layer_class: its Keras class.
      outcome: "quantized" (a MAC layer), "integer" (an operator of its own), "folded" (part of
        the layer before it), "left out" (no operator at all), "float" (trains, cannot be
        exported) or "refused" (from_float raises).
      operator: LiteRT's, "" for none.
      container: type that holds the weights with `weight_container="fast"`; "INT4 or INT8" where
        that follows from the bits found.
      activation_bits, weight_bits: candidates of a MAC layer.
      xnnpack, gpu: whether the delegate takes the operator; edge_tpu: whether the Edge TPU takes
        it in a file of `weight_container="edgetpu"`, which has no INT4.
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
    xnnpack: bool = False
    gpu: bool = False
    edge_tpu: bool = False
    macs: int = 0
    mac_share: float = 0.0
    bops_share: float = 0.0
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Rows in network order; `str` gives them as a table."""

    rows: tuple[LayerExplanation, ...]

    @property
    def refused(self) -> dict[str, str]:
        """Layers that from_float raises for, and why."""
        return {r.name: r.note for r in self.rows if r.outcome == "refused"}

    @property
    def not_exported(self) -> dict[str, str]:
        """Layers that keep the model from being exported, and why."""
        return {r.name: r.note for r in self.rows if r.outcome in ("refused", "float")}

    def __str__(self) -> str:
        return text_table(_HEADERS, [_cells(row) for row in self.rows])


def explain(
    model: keras.Model, space: SearchSpace | None = None, float_layers: Iterable[str] = ()
) -> Explanation:
    """What `MetaMixModel.from_float` and `convert` would make of each layer.

    Args:
      model: a float model, functional or Sequential.
      space: the candidates.
      float_layers: names of layers to leave in float.

    Raises:
      TypeError: the model has no graph, or `space` or `float_layers` is of another type.
      ValueError: the model has no MAC layer, or a layer is not in float32; names it.
    """
    space, refused = space or SearchSpace(), {}
    require_space(space)
    require_float32(as_functional(model))
    asked = float_names(float_layers)
    while True:
        try:
            expanded, names = expand(model, asked | set(refused))
            topology = Topology(expanded)
            macs = mac_nodes(topology, names)
            if not macs:
                raise ValueError(f"Model {model.name!r} has no MAC layer to quantize.")
            edges = {next(iter(macs)), next(reversed(macs))}
            plan = Plan(topology, edges if space.edge_bits == 8 else set(), names)
            break
        except UnsupportedLayerError as error:
            refused[error.layer] = str(error)
    reader = _Reader(plan, space, macs, refused, names)
    return Explanation(tuple(reader.row(node) for node in topology.nodes))


class _Reader:
    """Reads one plan."""

    def __init__(
        self,
        plan: Plan,
        space: SearchSpace,
        macs: dict[str, list[Node]],
        refused: dict[str, str],
        in_float: frozenset[str],
    ):
        self.plan, self.space, self.calls = plan, space, macs
        self.refused, self.in_float = refused, in_float
        self.costs = {cost.name: cost for cost in costs_of(macs)}
        self.macs = sum(cost.macs for cost in self.costs.values())
        self.bops = sum(self._most_bops(cost) for cost in self.costs.values())

    def _most_bops(self, cost: LayerCost) -> int:
        activation, weight = self.space.layer_candidates(cost.edge)
        return cost.macs * activation[0] * weight[0]

    def row(self, node: Node) -> LayerExplanation:
        """Of one call."""
        named = node.name, type(node.operation).__name__
        if reason := self._refusal(node.name):
            return LayerExplanation(*named, "refused", note=reason)
        if node.name in self.in_float:
            return LayerExplanation(*named, "float", note="left in float, as asked")
        found = self.plan.kind(node)
        if found is Kind.MAC:
            return self._mac(node, named)
        if reason := _no_integer_form(node, found):
            return LayerExplanation(*named, "float", note=reason)
        if found is Kind.SOFTMAX:
            return LayerExplanation(*named, "left out", note="the file's outputs are the logits")
        if found is not Kind.PASS and self.plan.joins(node):
            return LayerExplanation(*named, "folded", note=f"into {self._root(node)}")
        operator = _OPERATORS.get(found) or _move(node.operation)
        if not operator:
            return LayerExplanation(*named, "left out", note="does nothing on the device")
        return LayerExplanation(
            *named,
            "integer",
            operator,
            xnnpack=True,
            gpu=operator in _GPU,
            edge_tpu=operator in _EDGE_TPU,
            note="requantizes" if found in RELUS else "",
        )

    def _refusal(self, name: str) -> str:
        """Why a layer is refused; its name may have been made unique since."""
        for refused, reason in self.refused.items():
            if name in self.in_float and (name == refused or name.endswith(f"_{refused}")):
                return reason
        return ""

    def _root(self, node: Node) -> str:
        """The name of the layer that a group begins with."""
        while self.plan.joins(node):
            before = self.plan.topology.producer(node.inputs[0])
            if before is None:
                break
            node = before
        return node.name

    def _mac(self, node: Node, named: tuple[str, str]) -> LayerExplanation:
        cost = self.costs[node.name]
        activation, weight = self.space.layer_candidates(cost.edge)
        forms = [_mac_form(node, bits) for bits in weight]
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
            xnnpack=True,
            gpu=container == "INT8",
            edge_tpu=getattr(node.operation, "groups", 1) == 1,
            macs=cost.macs // calls,
            mac_share=cost.macs / calls / self.macs,
            bops_share=self._most_bops(cost) / calls / self.bops,
        )


def _mac_form(node: Node, weight_bits: int) -> MacForm:
    """What a file of `weight_container="fast"` has for a MAC layer."""
    layer: Any = node.operation
    depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
    dense = isinstance(layer, keras.layers.Dense)
    kind = "dense" if dense else "depthwise" if depthwise else "conv"
    strides = () if dense else layer.strides
    return mac_form(kind, layer.kernel.shape, strides, node.inputs[0].shape[-1], weight_bits)


def _no_integer_form(node: Node, found: Kind) -> str:
    if found is Kind.AVERAGE and pool_is_padded(node):
        return "averages over fewer values at the border: no exact integer form"
    return "no exact integer form" if found is Kind.FLOAT else ""


def _move(operation: Any) -> str:
    if isinstance(operation, keras.layers.MaxPooling2D) and tuple(operation.pool_size) == (1, 1):
        return "DEPTHWISE_CONV_2D"  # XNNPACK has no pool of 1x1
    for classes, operator in _MOVES:
        if isinstance(operation, classes):
            return operator
    return "" if isinstance(operation, keras.layers.Layer) else "RESHAPE"


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
        *delegates,
        *(shares if row.macs else ["", "", ""]),
        note,
    ]

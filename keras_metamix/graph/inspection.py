"""Inspects a float model before anything is built: what is taken, what is not, and why."""

from __future__ import annotations

import dataclasses
import itertools

import keras

from keras_metamix.assignment import SearchSpace
from keras_metamix.graph.expand import expansion, layer_before
from keras_metamix.graph.kinds import CONSTANTS, ENDINGS, Kind
from keras_metamix.graph.layer_costs import edge_names, mac_nodes
from keras_metamix.graph.operations import kind, problem
from keras_metamix.graph.operators import Operator
from keras_metamix.graph.overrides import require_no_overrides
from keras_metamix.graph.plan import Plan
from keras_metamix.graph.precision import require_float32
from keras_metamix.graph.reasons import reason_or_default
from keras_metamix.graph.refusals import Refusal, UnsupportedLayerError
from keras_metamix.graph.topology import Node, Topology, as_functional


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What becomes of a float model.

    Attributes:
      model: the expanded model.
      topology: the topology of the expanded model.
      macs: the calls of each MAC layer to quantize, by its name.
      edges: names of the first and of the last of them.
      plan: says which tensors carry which quantizer; refused operations count as float in it.
      kept: names of the layers that stay in float, as asked or because streams are in float.
      refused: why each operation that cannot be taken is refused, by its expanded name.
    """

    model: keras.Model
    topology: Topology
    macs: dict[str, list[Node]]
    edges: set[str]
    plan: Plan
    kept: frozenset[str]
    refused: dict[str, list[Refusal]]


def inspect(model: keras.Model, space: SearchSpace, float_layers: frozenset[str]) -> Inspection:
    """Expands and plans a model, and collects everything that stands in the way.

    Raises:
      TypeError: the model has no graph.
      ValueError: the model's class overrides methods, a dtype is not float32, a size is open, no
        layer has a name in float_layers, or there is nothing to quantize; says which.
    """
    functional = as_functional(model)
    require_no_overrides(model)
    require_float32(functional)
    _require_sizes(functional)
    expanded = expansion(functional, float_layers)
    topology = Topology(expanded.model)
    refused = {name: [refusal] for name, refusal in expanded.refused.items()}
    kept = set(expanded.kept)

    def refuse(node: Node, why: str) -> None:
        origin, before = expanded.origins[node.name], layer_before(list(node.inputs))
        refused.setdefault(node.name, []).append(origin.refusal(node.operation, why, before))

    for node in topology.nodes:
        if node.name not in {*kept, *refused}:
            found = kind(node.operation, node)
            if found is Kind.FLOAT and space.stream_bits is None:
                kept.add(node.name)
            elif why := _why_not(node, found, topology, space):
                refuse(node, why)
    in_float = frozenset(kept | refused.keys())
    macs = mac_nodes(topology, in_float)
    if not macs and not refused:
        raise ValueError(f"Model {model.name!r} has no MAC layer: there is nothing to quantize.")
    edges = edge_names(macs)
    plan = Plan(topology, edges if space.edge_bits == 8 else set(), in_float)
    for node in topology.nodes if space.stream_bits else ():
        if plan.kind(node) in CONSTANTS and not plan.joins(node) and (why := _rank(node)):
            refuse(node, why)
    refused = {n.name: refused[n.name] for n in topology.nodes if n.name in refused}
    return Inspection(expanded.model, topology, macs, edges, plan, frozenset(kept), refused)


def accepted(model: keras.Model, space: SearchSpace, float_layers: frozenset[str]) -> Inspection:
    """What `inspect` finds, where nothing is refused.

    Raises:
      TypeError, ValueError: see `inspect`.
      UnsupportedLayerError: lists every operation that cannot be taken.
    """
    found = inspect(model, space, float_layers)
    if found.refused:
        raise UnsupportedLayerError(model.name, itertools.chain(*found.refused.values()))
    return found


def _require_sizes(model: keras.Model) -> None:
    """Raises ValueError for an input with an open size other than the batch's; names it."""
    for tensor in model.inputs:
        if None in tensor.shape[1:]:
            size = tuple(tensor.shape[1:])
            example = tuple(224 if n is None else n for n in size)
            raise ValueError(
                f"Input {tensor.name!r} has the open size {size}, which a file's tensors cannot "
                f"have: build the model with a fixed one, such as keras.Input({example})."
            )


def _why_not(
    node: Node, found: Kind | Operator | None, topology: Topology, space: SearchSpace
) -> str:
    """Why a call cannot be quantized or exported, "" if it can."""
    if found is None or found is Kind.FLOAT:
        return reason_or_default(node.operation)
    if why := problem(node, found):
        return why
    inside = found in ENDINGS and not topology.is_output(node.output)
    why = found.refusal(node) if isinstance(found, Operator) else None if inside else ""
    if why is None:
        why = reason_or_default(node.operation)
    return why if space.stream_bits else ""


def _rank(node: Node) -> str:
    rank = len(node.output.shape)
    if rank in (2, 4):
        return ""
    return (
        f"not exported yet over {rank - 1} axes, found {tuple(node.output.shape[1:])}; put it "
        "before the Reshape, or behind the layer that it can be folded into"
    )

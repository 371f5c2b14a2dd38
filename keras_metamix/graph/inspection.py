"""Inspects a float model before anything is built: what is taken, what is not, and why."""

from __future__ import annotations

import dataclasses
import itertools

import keras

from keras_metamix.assignment import SearchSpace
from keras_metamix.graph.expand import expansion
from keras_metamix.graph.kinds import CONSTANTS, ENDINGS, Kind
from keras_metamix.graph.layer_costs import edge_names, mac_nodes
from keras_metamix.graph.operations import cannot_run, kind, problem
from keras_metamix.graph.operators import Operator
from keras_metamix.graph.overrides import require_no_overrides
from keras_metamix.graph.plan import Plan
from keras_metamix.graph.precision import in_other_types, require_float32
from keras_metamix.graph.refusals import (
    Origin,
    Refusal,
    UnsupportedLayerError,
    has_weights,
    not_finite,
    place_behind,
    standing_for,
    why_none,
)
from keras_metamix.graph.topology import Node, Topology, as_functional


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What becomes of a float model.

    Attributes:
      model: the expanded model.
      topology: the topology of the expanded model.
      macs: the calls of each MAC layer to quantize, by its name.
      edges: names of the first and of the last of them.
      plan: says which tensors have which quantizer; refused operations count as float in it.
      kept: names of the layers that stay in float, as asked or because streams are in float.
      refused: why each operation that cannot be taken is refused, by its expanded name.
      origins: what the user calls each operation, by its expanded name.
    """

    model: keras.Model
    topology: Topology
    macs: dict[str, list[Node]]
    edges: set[str]
    plan: Plan
    kept: frozenset[str]
    refused: dict[str, list[Refusal]]
    origins: dict[str, Origin]


def inspect(model: keras.Model, space: SearchSpace, float_layers: frozenset[str]) -> Inspection:
    """Expands and plans a model, and collects everything that is refused.

    Raises:
      TypeError: the model has no graph.
      ValueError: the model's class overrides methods, no layer has a name in float_layers, or there
        is nothing to quantize; says which.
      UnsupportedLayerError: a layer is not in float32, or a size is open; names it, and all else
        that is refused.
    """
    functional = as_functional(model)
    require_no_overrides(model)
    require_float32(functional)
    faults = [*_open_sizes(functional), *in_other_types(functional)]
    expanded = expansion(functional, float_layers)
    topology = Topology(expanded.model)
    refused = {name: [refusal] for name, refusal in expanded.refused.items()}
    kept = set(expanded.kept)

    def refuse(node: Node, why: str, may_stay: bool = True) -> None:
        place = place_behind(node.inputs, expanded.origins)
        refusal = expanded.origins[node.name].refusal(
            standing_for(node.operation), why, place, may_stay
        )
        refused.setdefault(node.name, []).append(refusal)

    for node in topology.nodes:
        nan = "" if node.occurrence else not_finite(node.operation)
        if why := nan or cannot_run(node):
            refuse(node, why, may_stay=False)
        elif node.name not in {*kept, *refused}:
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
    refused = {
        node.name: [_said_of_outputs(found, node, topology) for found in refused[node.name]]
        for node in topology.nodes
        if node.name in refused
    }
    if faults:
        raise UnsupportedLayerError(model.name, [*faults, *itertools.chain(*refused.values())])
    return Inspection(
        expanded.model, topology, macs, edges, plan, frozenset(kept), refused, expanded.origins
    )


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


def _open_sizes(model: keras.Model) -> list[Refusal]:
    """The inputs with an open size other than the batch's."""
    found = []
    for tensor in model.inputs:
        if None in tensor.shape[1:]:
            size = tuple(tensor.shape[1:])
            example = tuple(224 if n is None else n for n in size)
            reason = (
                f"expected fixed sizes, as a file's tensors have, found {size}; build the model "
                f"with some, such as keras.Input({example})"
            )
            found.append(Refusal(tensor.name, f"Input {tensor.name!r}", reason, may_stay=False))
    return found


def _why_not(
    node: Node, found: Kind | Operator | None, topology: Topology, space: SearchSpace
) -> str:
    """Why a call cannot be quantized or exported, "" if it can."""
    if found is None or found is Kind.FLOAT:
        return why_none(node.operation, node.inputs)
    if why := problem(node, found):
        return why
    inside = found in ENDINGS and not topology.is_output(node.output)
    last = _moved_to_the_end(node, topology) if inside else ""
    if last and space.stream_bits:
        what = "a softmax" if found is Kind.SOFTMAX else "an L2 normalization"
        return (
            f"{what} is left out of the file where it is the last layer, found {last!r} behind "
            f"it; put that before the {what.removeprefix('an ').removeprefix('a ')}"
        )
    why = found.refusal(node) if isinstance(found, Operator) else None if inside else ""
    if why is None:
        why = why_none(node.operation, node.inputs)
    return why if space.stream_bits else ""


def _moved_to_the_end(node: Node, topology: Topology) -> str:
    """The operation that gives an output, where all behind a node only move values; else ""."""
    while (after := topology.only_consumer(node.output)) is not None:
        moves = ("Permute", "Transpose", "Reshape", "Squeeze", "ExpandDims", "Flatten", "Identity")
        if type(standing_for(after.operation)).__name__ not in moves:
            return ""
        node = after
        if topology.is_output(node.output):
            return node.name
    return ""


def _rank(node: Node) -> str:
    rank = len(node.output.shape)
    if rank in (2, 3, 4):
        return ""
    return (
        f"not exported yet over {rank - 1} axes, found {tuple(node.output.shape[1:])}; put it "
        "behind the layer that it can be folded into, or on Reshape((height, width, channels))"
    )


def _said_of_outputs(refusal: Refusal, node: Node, topology: Topology) -> Refusal:
    """A refusal with the remedy that what is at the model's end can be left to the app."""
    waiting = [node]
    while waiting:
        here = waiting.pop()
        if has_weights(here.operation):
            return refusal
        waiting += [after for tensor in here.outputs for after in topology.consumers(tensor)]
    tabled = refusal.reason.startswith(("not exported", "no exact integer form"))
    if not tabled or " app" in refusal.reason:
        return refusal
    reason = f"{refusal.reason}; at the end of the model, as here, the app can compute it, too"
    return dataclasses.replace(refusal, reason=reason)

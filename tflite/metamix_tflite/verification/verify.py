"""Reads a file back and compares every layer with what was declared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, overload

import numpy as np

from metamix_tflite.file_graph import (
    FileGraph,
    FileOperator,
    VerificationError,
    named_signature,
)
from metamix_tflite.operators import FAMILY, LITERT
from metamix_tflite.operators.base import Call, LevelRange
from metamix_tflite.operators.mac import Mac
from metamix_tflite.read.files import read_signatures, require_unchanged
from metamix_tflite.targets import Target, declared_target
from metamix_tflite.verification.levels import level_ranges

__all__ = ["VerificationError", "verify"]


class Assignment(Protocol):
    """What is read of a BitAssignment, which takes Keras to import."""

    @property
    def activation_bits(self) -> Mapping[str, int]: ...

    @property
    def weight_bits(self) -> Mapping[str, int]: ...


@overload
def verify(flat: bytes, bits: Mapping[str, Assignment]) -> dict[str, FileGraph]: ...
@overload
def verify(flat: bytes, bits: Assignment) -> FileGraph: ...
@overload
def verify(flat: bytes, bits: None = None) -> FileGraph | dict[str, FileGraph]: ...


def verify(
    flat: bytes, bits: Assignment | Mapping[str, Assignment] | None = None
) -> FileGraph | dict[str, FileGraph]:
    """Checks a .tflite of `convert`, without TensorFlow.

    Checked of each signature: no operator computes in float; every INT8 tensor has the declared
    scale, zero-point and activation; the input of every MAC layer is clipped to the declared number
    of levels, and no level more; its weights lie in the declared range, container and values, by
    operators that the declared target has, its inputs and outputs are of that target's type;
    scales and bias are the declared ones and belong together; its BOPs are the declared ones. Last,
    no byte of the file was changed since it was written.

    Args:
      flat: the file's bytes.
      bits: a BitAssignment that the file has to hold, or for operating points one for each
        signature by name; None checks the file against itself.

    Returns:
      The file as read; by signature where `bits` is, or where it is None and the file has several.

    Raises:
      TypeError: `flat` is no bytes, or `bits` no assignment.
      VerificationError: names the layer or tensor, what was declared and what was found, and of
        several signatures the signature.
    """
    graphs = verify_contents(flat, bits)
    require_unchanged(flat)
    several = isinstance(bits, Mapping) or len(graphs) != 1
    return graphs if several else next(iter(graphs.values()))


def verify_contents(
    flat: bytes, bits: Assignment | Mapping[str, Assignment] | None = None
) -> dict[str, FileGraph]:
    """`verify` of a file that others may have packed anew: all that it says but the last.

    Returns:
      The file as read, by signature.
    """
    graphs = read_signatures(flat, declared=True)
    if isinstance(bits, Mapping):
        for entry in bits.values():
            _require_assignment(entry)
        if set(bits) != set(graphs):
            raise VerificationError(f"Expected signatures {[*bits]}, found {[*graphs]}.")
        by_name: Mapping[str, Assignment | None] = bits
    else:
        if bits is not None:
            _require_assignment(bits)
        if bits is not None and len(graphs) != 1:
            raise VerificationError(
                f"Expected a file of one signature for one bit assignment, found {[*graphs]}."
            )
        by_name = dict.fromkeys(graphs, bits)
    for name, graph in graphs.items():
        with named_signature(name, graphs):
            _verify_graph(graph, by_name[name])
    return graphs


def _require_assignment(bits: object) -> None:
    fields = (getattr(bits, "activation_bits", None), getattr(bits, "weight_bits", None))
    if not all(isinstance(field, Mapping) for field in fields):
        raise TypeError(f"bits: expected a BitAssignment, found {type(bits).__name__}.")


def _verify_graph(graph: FileGraph, bits: Assignment | None) -> None:
    declared = graph.metadata
    _check_operators(graph)
    _check_tensors(graph, declared["tensors"])
    target = declared_target(declared)
    _check_io_types(graph, target)
    ranges = level_ranges(graph)
    names, layers, bops = set(), set(), 0
    for operator in graph.operators:
        family, call = FAMILY[operator.op], Call(graph, operator)
        bops += family.bops(call)
        if not isinstance(family, Mac):
            continue
        name = _name(graph, operator)
        names.add(name)
        if name not in declared["layers"]:
            raise VerificationError(f"Layer {name!r} is in the file and not declared.")
        entry = declared["layers"][name]
        found = ranges[operator.inputs[LITERT[operator.op].source]]
        layer = entry["layer"]  # of several calls, the trained one
        if layer and bits is not None:
            _check_bits(layer, entry, found, bits)
        if layer and not found.holds(entry["activation_bits"]):
            _fail(layer, "activation bits", entry["activation_bits"], found)
        family.check_declared(call, entry, target)
        if layer:  # constants have no bit-width
            layers.add(layer)
            bops += family.macs(call) * (found.bits or 0) * entry["weight_bits"]
    missing = set(declared["layers"]) - names
    if bits is not None:
        missing |= set(bits.weight_bits) - layers
    if missing:
        raise VerificationError(f"Layers {sorted(missing)} are declared and not in the file.")
    if declared["bops"] != bops:
        raise VerificationError(f"BOPs: declared {declared['bops']}, found {bops}.")


def _check_io_types(graph: FileGraph, target: Target) -> None:
    """Inputs and outputs have the declared type; inputs of bytes stay bytes among floats."""
    for index in (*graph.inputs, *graph.outputs):
        found = graph.tensors[index]
        bytes_in = index in graph.inputs and found.type == "UINT8" and target.io == "float32"
        if found.type != target.io.upper() and not bytes_in:
            _fail(found.name, "type of an input or output", target.io.upper(), found.type)


def _name(graph: FileGraph, operator: FileOperator) -> str:
    return graph.tensors[operator.outputs[0]].name


def _fail(name: str, what: str, expected: Any, found: Any) -> None:
    raise VerificationError(f"Layer {name!r}: {what}: declared {expected}, found {found}.")


def _check_operators(graph: FileGraph) -> None:
    """Each operator is one that `convert` writes, of as many tensors, and in integers."""
    constants: set[int] = set()
    for operator in graph.operators:
        if not operator.outputs:
            raise VerificationError(f"A {operator.op} of the file has no output.")
        name = _name(graph, operator)
        ends = graph.outputs if operator.op in ("QUANTIZE", "DEQUANTIZE") else ()
        ends = (*ends, *graph.inputs) if operator.op == "QUANTIZE" else ends
        for index in (*operator.inputs, *operator.outputs):
            if (
                graph.tensors[index].type not in ("INT8", "INT4", "INT2", "INT32")
                and index not in ends
            ):
                _fail(name, "arithmetic", "integers", f"{operator.op} in float")
        if operator.op not in LITERT:
            _fail(name, "operator", "one that convert writes", operator.op)
        inputs, counts = LITERT[operator.op].inputs, (len(operator.inputs), len(operator.outputs))
        if counts[0] not in inputs or counts[1] != 1:
            _fail(name, f"{operator.op}'s inputs and outputs", (inputs, 1), counts)
        FAMILY[operator.op].check(Call(graph, operator))
        held = {i for i in operator.inputs if graph.tensors[i].data is not None}
        if held & constants:
            _fail(name, "constants", "its own", "another operator's")
        constants |= held


def _check_tensors(graph: FileGraph, declared: dict[str, Any]) -> None:
    found = {t.name: i for i, t in enumerate(graph.tensors) if t.type == "INT8" and t.data is None}
    for name in sorted(set(found) ^ set(declared)):
        state = "in the file and not declared" if name in found else "declared and not in the file"
        raise VerificationError(f"Tensor {name!r} is {state}.")
    for name, index in found.items():
        tensor, expected = graph.tensors[index], declared[name]
        scale, zero_point = tensor.scales.tolist(), tensor.zero_points.tolist()
        if scale != [expected["scale"]]:
            _fail(name, "scale", expected["scale"], scale)
        if zero_point != [expected["zero_point"]]:
            _fail(name, "zero-point", expected["zero_point"], zero_point)
        if not (0 < scale[0] < np.inf and -128 <= zero_point[0] <= 127):
            _fail(name, "scale and zero-point", "those of INT8", (scale[0], zero_point[0]))
        producer = graph.producer(index)
        activation = producer.activation if producer is not None else "NONE"
        if activation != expected["activation"]:
            _fail(name, "activation", expected["activation"], activation)


def _check_bits(name: str, entry: dict[str, Any], found: LevelRange, bits: Any) -> None:
    if name not in bits.weight_bits:
        raise VerificationError(f"Layer {name!r} is in the file and not in the assignment.")
    if bits.weight_bits[name] != entry["weight_bits"]:
        _fail(name, "weight bits", bits.weight_bits[name], entry["weight_bits"])
    if not found.holds(bits.activation_bits[name]):
        _fail(name, "activation bits", bits.activation_bits[name], found)

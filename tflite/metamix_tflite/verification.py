"""Reads a file back and compares every layer with what was declared."""

from __future__ import annotations

from typing import Any

import numpy as np

from metamix_tflite.containers import is_pointwise, weight_type
from metamix_tflite.metadata import checksum
from metamix_tflite.read import FileGraph, FileOperator, FileTensor, VerificationError, read_file

_MACS = {"CONV_2D": "conv", "DEPTHWISE_CONV_2D": "depthwise", "FULLY_CONNECTED": "dense"}
_MOVES = ("MAX_POOL_2D", "PAD", "RESHAPE")
_EDGES = ("QUANTIZE", "DEQUANTIZE")

__all__ = ["VerificationError", "verify"]


def verify(flat: bytes, bits: Any | None = None) -> FileGraph:
    """Checks a .tflite of `convert`, without TensorFlow.

    Checked: no operator computes in float; every INT8 tensor has the declared scale and
    zero-point; the input of every MAC layer is clipped to the declared number of levels, and no
    level more; its weights lie in the declared range, container and values; scales and bias are
    the declared ones and belong together.

    Args:
      flat: the file's bytes.
      bits: a BitAssignment that the file has to hold; None checks the file against itself.

    Returns:
      The file as read.

    Raises:
      VerificationError: names the layer or tensor, what was declared and what was found.
    """
    graph = read_file(flat)
    declared = graph.metadata
    if not isinstance(declared, dict) or not {"layers", "tensors"} <= set(declared):
        raise VerificationError("The file declares no bit-widths: it was not written by convert.")
    _check_float(graph)
    _check_tensors(graph, declared["tensors"])
    names = []
    for operator in graph.operators:
        if operator.op in _MACS:
            names.append(_check_mac(graph, operator, declared, bits))
    missing = set(declared["layers"]) - set(names)
    if bits is not None:
        missing |= set(bits.weight_bits) - set(names)
    if missing:
        raise VerificationError(f"Layers {sorted(missing)} are declared and not in the file.")
    return graph


def _fail(name: str, what: str, expected: Any, found: Any) -> None:
    raise VerificationError(f"Layer {name!r}: {what}: declared {expected}, found {found}.")


def _check_float(graph: FileGraph) -> None:
    for operator in graph.operators:
        types = [graph.tensors[i].type for i in (*operator.inputs, *operator.outputs) if i >= 0]
        if "FLOAT32" in types and operator.op not in _EDGES:
            name = graph.tensors[operator.outputs[0]].name
            _fail(name, "arithmetic", "integers", f"{operator.op} in float")


def _check_tensors(graph: FileGraph, declared: dict[str, Any]) -> None:
    found = {t.name: t for t in graph.tensors if t.type == "INT8" and t.data is None}
    for name in sorted(set(found) ^ set(declared)):
        state = "in the file and not declared" if name in found else "declared and not in the file"
        raise VerificationError(f"Tensor {name!r} is {state}.")
    for name, tensor in found.items():
        expected = declared[name]
        scale = tensor.scales.tolist()
        if scale != [float(np.float32(expected["scale"]))]:
            _fail(name, "scale", expected["scale"], scale)
        if tensor.zero_points.tolist() != [expected["zero_point"]]:
            _fail(name, "zero-point", expected["zero_point"], tensor.zero_points.tolist())


def _check_mac(
    graph: FileGraph, operator: FileOperator, declared: dict[str, Any], bits: Any | None
) -> str:
    name = graph.tensors[operator.outputs[0]].name
    entry = declared["layers"].get(name)
    if entry is None:
        raise VerificationError(f"Layer {name!r} is in the file and not declared.")
    source, weights, bias = (graph.tensors[i] for i in operator.inputs)
    weight_bits = entry["weight_bits"]
    if bits is not None:
        if name not in bits.weight_bits:
            raise VerificationError(f"Layer {name!r} is in the file and not in the assignment.")
        if bits.weight_bits[name] != weight_bits:
            _fail(name, "weight bits", bits.weight_bits[name], weight_bits)
        found = activation_bits(graph, operator.inputs[0])
        if found != bits.activation_bits[name]:
            _fail(name, "activation bits", bits.activation_bits[name], found)
    _check_weights(name, operator, weights, weight_bits, entry, declared)
    if bias.data is None or checksum(bias.data.astype(np.int32)) != entry["bias"]:
        _fail(name, "bias", f"checksum {entry['bias']}", "other integers")
    if not np.array_equal(bias.scales, source.scales * weights.scales):
        _fail(name, "bias scale", "input scale x weight scales", bias.scales[:3])
    return name


def _check_weights(
    name: str,
    operator: FileOperator,
    weights: FileTensor,
    weight_bits: int,
    entry: dict[str, Any],
    declared: dict[str, Any],
) -> None:
    if weights.type != entry["container"]:
        _fail(name, "container", entry["container"], weights.type)
    if weights.data is None:
        _fail(name, "weights", "a constant", "none")
        return
    high = 2 ** (weight_bits - 1) - 1
    largest = int(np.abs(weights.data.astype(np.int32)).max(initial=0))
    if largest > high:
        _fail(name, "weight range", f"+-{high} ({weight_bits} bits)", largest)
    if checksum(weights.data) != entry["weights"]:
        _fail(name, "weights", f"checksum {entry['weights']}", "other integers")
    if np.any(weights.zero_points != 0):
        _fail(name, "weight zero-points", 0, weights.zero_points[:3])
    if checksum(weights.scales) != entry["weight_scales"]:
        _fail(name, "weight scales", f"checksum {entry['weight_scales']}", weights.scales[:3])
    kind = _MACS[operator.op]
    pointwise = is_pointwise(kind, weights.shape[1:3] if kind == "conv" else (), (1, 1))
    rule = weight_type(declared["weight_container"], pointwise, weight_bits, weights.shape[-1])
    if kind == "dense" and rule != weights.type:
        _fail(name, f"container of {declared['weight_container']!r}", rule, weights.type)


def activation_bits(graph: FileGraph, tensor: int) -> int | None:
    """Bits of an INT8 tensor by its zero-point, scale and the clip of what computes it.

    None when its levels are those of no bit-width. Operators that only move values are looked
    through.
    """
    index: int | None = tensor
    producer = graph.producer(tensor)
    while producer is not None and producer.op in _MOVES:
        index = producer.inputs[0]
        producer = graph.producer(index)
    found = graph.tensors[index]
    scale, zero_point = float(found.scales[0]), int(found.zero_points[0])
    activation = producer.activation if producer is not None else "NONE"
    if zero_point == 0 and activation == "RELU_N1_TO_1":
        high = int(np.rint(np.float32(1.0) / np.float32(scale)))
        return (high + 1).bit_length()
    if zero_point == 0 and activation == "NONE":
        return 8
    levels = 128 - zero_point
    if levels <= 0 or levels & (levels - 1):
        return None
    clipped = activation in ("RELU", "RELU6") or zero_point == -128
    positive = producer is not None and producer.op == "MEAN"
    return levels.bit_length() - 1 if clipped or positive else None

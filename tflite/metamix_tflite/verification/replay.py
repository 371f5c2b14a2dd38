"""Runs a file on its golden inputs and compares the outputs with those that it holds."""

from __future__ import annotations

import base64
import dataclasses
import math
from collections.abc import Callable

import numpy as np

from metamix_tflite.file_graph import FileGraph, VerificationError, named_signature
from metamix_tflite.read.files import read_signatures
from metamix_tflite.read.golden_inputs import as_bytes, dequantized, golden_codes
from metamix_tflite.run.runner import Runner
from metamix_tflite.verification.kernels import promised_kernels

# From arrays of one image, one for each input, to an array for each output.
Invoke = Callable[..., list[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class ReplayReport:
    """A signature's outputs beside the expected ones, which folded Keras computed.

    Attributes:
      images: golden inputs.
      values: output values compared.
      differing: how many differ at all.
      max_steps: the largest difference, in steps of the output's scale.
      delegated: whether one XNNPACK partition ran all of it.
    """

    images: int
    values: int
    differing: int
    max_steps: int
    delegated: bool

    def __str__(self) -> str:
        return (
            f"{self.differing} of {self.values} values differ (largest {self.max_steps} steps), "
            f"{self.images} inputs"
        )


def replay(flat: bytes, kernels: str | None = None, threads: int = 1) -> dict[str, ReplayReport]:
    """Replays a file of `convert` on this machine, without TensorFlow.

    Args:
      flat: the file's bytes.
      kernels: "xnnpack", "builtin" or "reference"; by default those that the file's target
        promises 0 differing values of: "reference" for "micro", else "xnnpack". The others round
        otherwise now and then.
      threads: CPU threads.

    Returns:
      A report for each signature by name.

    Raises:
      VerificationError: no readable .tflite, or one without golden outputs that fit it.
      ValueError: unknown kernels.
    """
    graphs = read_signatures(flat)
    reports = {}
    for name, graph in graphs.items():
        with named_signature(name, graphs):
            golden = golden_of(graph)
            chosen = kernels or promised_kernels(graph) or "xnnpack"
            runner = Runner(flat, threads, signature=name, kernels=chosen)
            reports[name] = compare(golden, runner.invoke, runner.delegated)
    return reports


@dataclasses.dataclass(frozen=True)
class Golden:
    """The golden inputs of a signature and what has to come out.

    Attributes:
      images: for each golden input an array of each of the file's inputs, of its type.
      expected: for each output the codes of all golden inputs, shape (images, values), int8.
      strides: for each output: every how manyth value is kept.
      grids: for each output scale and zero-point of its float32 values; None if it is of codes.
    """

    images: list[list[np.ndarray]]
    expected: list[np.ndarray]
    strides: list[int]
    grids: list[tuple[float, int] | None]


def golden_of(graph: FileGraph) -> Golden:
    """The golden inputs and outputs of a signature as it was read.

    Raises:
      VerificationError: it declares none, or ones of another graph.
    """
    declared = graph.metadata.get("golden")
    if declared is None:
        raise VerificationError("The file holds no golden outputs to compare with.")
    if len(declared["outputs"]) != len(graph.outputs):
        raise VerificationError(
            f"Golden outputs: expected {len(graph.outputs)}, found {len(declared['outputs'])}."
        )
    count: int = declared["images"]
    expected, strides = [], []
    for index, entry in zip(graph.outputs, declared["outputs"], strict=True):
        codes = np.frombuffer(base64.b64decode(entry["codes"]), np.int8)
        values = -(-math.prod(graph.tensors[index].shape) // entry["stride"])
        if codes.size != count * values:
            name, size = graph.tensors[index].name, count * values
            raise VerificationError(
                f"Golden outputs of {name!r}: expected {size} values, found {codes.size}."
            )
        expected.append(codes.reshape(count, values))
        strides.append(entry["stride"])
    images = [
        [_image(graph, tensor, number, index) for index, tensor in enumerate(graph.inputs)]
        for number in range(count)
    ]
    return Golden(images, expected, strides, [_output_grid(graph, i) for i in graph.outputs])


def compare(golden: Golden, invoke: Invoke, delegated: bool) -> ReplayReport:
    """What `invoke` gives for the golden inputs, beside what it has to."""
    values, differing, largest = 0, 0, 0
    for number, arrays in enumerate(golden.images):
        outputs = invoke(*arrays)
        ends = zip(outputs, golden.expected, golden.strides, golden.grids, strict=True)
        for output, expected, stride, grid in ends:
            found = _codes(output, grid).reshape(-1)[::stride]
            steps = np.abs(found - expected[number].astype(np.int64))
            values += steps.size
            differing += int(np.count_nonzero(steps))
            largest = max(largest, int(steps.max(initial=0)))
    return ReplayReport(len(golden.images), values, differing, largest, delegated)


def _image(graph: FileGraph, tensor: int, number: int, index: int) -> np.ndarray:
    """A golden input as the file takes it: codes, or the floats or bytes that they stand for."""
    found = graph.tensors[tensor]
    codes = golden_codes(found.shape[1:], number, index)
    if found.type == "INT8":
        return codes
    if found.type == "UINT8":
        return as_bytes(codes)
    readers = (o for o in graph.operators if o.op == "QUANTIZE" and o.inputs[0] == tensor)
    operator = next(readers, None)
    if operator is None:
        raise VerificationError(f"Input {found.name!r} is read by no QUANTIZE.")
    return dequantized(codes, *_grid(graph, operator.outputs[0]))


def _output_grid(graph: FileGraph, tensor: int) -> tuple[float, int] | None:
    if graph.tensors[tensor].type == "INT8":
        return None
    if graph.tensors[tensor].type == "UINT8":
        return 1.0, -128
    operator = graph.producer(tensor)
    if operator is None or operator.op != "DEQUANTIZE":
        name = graph.tensors[tensor].name
        raise VerificationError(f"Output {name!r} is no DEQUANTIZE's result.")
    return _grid(graph, operator.inputs[0])


def _grid(graph: FileGraph, tensor: int) -> tuple[float, int]:
    found = graph.tensors[tensor]
    if found.scales.size != 1 or found.zero_points.size != 1:
        raise VerificationError(f"Tensor {found.name!r}: expected one scale and zero-point.")
    return float(found.scales[0]), int(found.zero_points[0])


def _codes(values: np.ndarray, grid: tuple[float, int] | None) -> np.ndarray:
    """An output as INT8 codes, int64; a value that is no number counts as the farthest."""
    if grid is None:
        return values.astype(np.int64)
    scale, zero_point = grid
    levels = np.rint(np.nan_to_num(values, nan=np.inf) / np.float32(scale))
    return np.clip(levels, -(2**20), 2**20).astype(np.int64) + zero_point

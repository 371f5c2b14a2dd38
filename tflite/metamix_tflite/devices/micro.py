"""LiteRT for Microcontrollers (TFLM), on this machine: does it load a file, in how much memory,
and does it compute what LiteRT computes?

What runs is the interpreter of the `tflite-micro` package with its portable kernels. A board may
have others (CMSIS-NN, Xtensa), and how long it takes can only be measured there.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from metamix_tflite.devices import Cell, DeviceReport, DeviceUnavailable, require_at_least
from metamix_tflite.devices.processes import ending, run_program
from metamix_tflite.file_graph import FileGraph
from metamix_tflite.read.files import read_file
from metamix_tflite.run.latency import random_inputs
from metamix_tflite.run.runner import Runner
from metamix_tflite.verification.kernels import promised_kernels

_PROCESS = Path(__file__).with_name("micro_process.py")
_ARENA = re.compile(r"Arena allocation (total|head) (\d+) bytes")
_PARTS = {"total": "arena_bytes", "head": "activations_bytes"}
# Lines that tell nothing about a refusal.
_NOISE = re.compile(r"INFO: |\[RecordingMicroAllocator\]|TFLM failed to allocate tensors|$")
_SPARE = 1 << 20  # bytes of arena beyond what tensors take


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a run in the interpreter.

    Attributes:
      runs: random inputs on which outputs are compared.
      timeout: seconds for all runs of a file.
    """

    runs: int = 20
    timeout: int = 600

    def __post_init__(self) -> None:
        require_at_least(runs=(1, self.runs), timeout=(1, self.timeout))


def measure(files: Mapping[str, bytes], options: Options) -> DeviceReport:
    """Arena and differences of each file.

    Raises:
      DeviceUnavailable: tflite-micro is not installed.
      OSError: a file takes longer than the time that it was given.
    """
    if importlib.util.find_spec("tflite_micro") is None:
        how = "pip install 'keras-metamix[micro]', or pip install tflite-micro"
        raise DeviceUnavailable(f"tflite-micro is not installed: {how}.")
    rows, telling = [], []
    for name, flat in files.items():
        inputs, expected = _reference(flat, options.runs)
        if options.runs > 1 and all((output == output[:1]).all() for output in expected):
            telling.append(f"{name}: every input gives LiteRT the same outputs: they tell nothing.")
        rows.append({"file": name, **_measure_file(name, flat, inputs, expected, options)})
    notes = [
        f"Outputs of {options.runs} random inputs against LiteRT here: its reference kernels for a "
        "file of target 'micro', else XNNPACK, which rounds otherwise than TFLM, so that steps "
        "may differ.",
        "The arena is that of this machine, whose pointers have 64 bits; a board's is smaller. The "
        "file itself stays in flash, and comes on top.",
    ]
    if any("FULLY_CONNECTED" in str(row.get("refused")) for row in rows):
        notes.append(
            'TFLM has no FULLY_CONNECTED of so few bits: convert with target="micro", without it.'
        )
    return DeviceReport("micro", rows, notes + telling)


def _reference(flat: bytes, runs: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Random inputs and LiteRT's outputs, shape (runs, ...) each."""
    graph = read_file(flat)
    fixed = bool(graph.metadata) and promised_kernels(graph) == "reference"
    runner = Runner(flat, kernels="reference" if fixed else "xnnpack")
    draws = [random_inputs(runner.input_details, seed) for seed in range(runs)]
    outputs = [runner.invoke(*arrays) for arrays in draws]
    inputs, results = (map(np.stack, zip(*rows, strict=True)) for rows in (draws, outputs))
    return list(inputs), list(results)


def _measure_file(
    name: str,
    flat: bytes,
    inputs: list[np.ndarray],
    expected: list[np.ndarray],
    options: Options,
) -> dict[str, Cell]:
    graph = read_file(flat)
    columns: dict[str, Cell] = {"file_bytes": len(flat)}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "model.tflite").write_bytes(flat)
        np.savez(Path(folder, "inputs.npz"), *inputs)
        command = [sys.executable, "-P", str(_PROCESS), folder, str(_arena(graph, flat))]
        late = f"{name}: TFLM takes longer than {options.timeout} s."
        done = run_program(command, options.timeout, late)
        if done.returncode:
            return columns | {"refused": _refusal(done.returncode, done.stderr)}
        with np.load(Path(folder, "outputs.npz")) as outputs:
            found = list(outputs.values())
    columns |= {_PARTS[part]: int(size) for part, size in _ARENA.findall(done.stderr)}
    return columns | _compare(graph, expected, found)


def _compare(
    graph: FileGraph, expected: list[np.ndarray], found: list[np.ndarray]
) -> dict[str, Cell]:
    """Differences in steps of the output's grid, and of a first output the classes that agree."""
    differing, values, largest = 0, 0, 0.0
    for index, ours, theirs in zip(graph.outputs, expected, found, strict=True):
        producer, step = graph.producer(index), 1.0
        if producer is not None and producer.op == "DEQUANTIZE":
            step = float(graph.tensors[producer.inputs[0]].scales[0])
        steps = np.rint(np.abs(theirs.astype(np.float64) - ours.astype(np.float64)) / step)
        differing, values = differing + int(np.count_nonzero(steps)), values + steps.size
        largest = max(largest, float(steps.max()))
    classes = [output[0].reshape(len(output[0]), -1).argmax(-1) for output in (expected, found)]
    return {
        "values": values,
        "differing": differing,
        "largest_steps": int(largest),
        "same_class_fraction": float(np.mean(classes[0] == classes[1])),
    }


def _arena(graph: FileGraph, flat: bytes) -> int:
    """Bytes that are enough whatever the plan: no tensor shares memory with another."""
    sizes = [4 * int(np.prod(tensor.shape)) for tensor in graph.tensors if tensor.data is None]
    return sum(sizes) + 10 * len(flat) + _SPARE


def _refusal(status: int, text: str) -> str:
    """What the runtime said, or what ended it."""
    lines = [line.strip() for line in text.splitlines() if not _NOISE.match(line.strip())]
    if status < 0:
        lines.append(ending(status))
    return "; ".join(lines[-3:]) or ending(status)

"""Coral's Edge TPU: which operators it takes, and how long a file takes where there is one.

With `edgetpu_compiler` on PATH the answer is the compiler's, and the compiled file is timed where
Coral's runtime and a device are there. Without it the answer is read from the file.
"""

from __future__ import annotations

import collections
import ctypes
import dataclasses
import shutil
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, load_delegate

from metamix_tflite.devices import Cell, DeviceReport, require_at_least
from metamix_tflite.devices.edgetpu_compiler import (
    MAPPED,
    CompilationError,
    CompilerLog,
    compile_file,
)
from metamix_tflite.devices.edgetpu_operators import refusal
from metamix_tflite.read.files import read_file
from metamix_tflite.run.latency import random_inputs

RUNTIME = "libedgetpu.so.1"
_ALL = "all"
_NO_COMPILER = (
    "edgetpu_compiler is not on PATH (Coral's Debian repository has it for x86-64): this is read "
    "from the file, by Coral's published list, and the compiler has the last word."
)
_ONE_PART = (
    "The compiler maps one part of a graph: what comes behind an operator that it refuses runs on "
    "the CPU as well."
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the compiler and the device.

    Attributes:
      runs, warmup: inferences that are timed, and that are not.
      timeout: seconds for the compilation of a file.
    """

    runs: int = 200
    warmup: int = 20
    timeout: int = 600

    def __post_init__(self) -> None:
        require_at_least(runs=(1, self.runs), warmup=(0, self.warmup), timeout=(1, self.timeout))


def measure(files: Mapping[str, bytes], options: Options) -> DeviceReport:
    """A row for all of each file, and one for each kind of operator and what becomes of it.

    Raises:
      ValueError: a file that cannot be read; names it.
      OSError: the compiler does not end.
    """
    compiler = shutil.which("edgetpu_compiler")
    rows: list[dict[str, Cell]] = []
    if compiler is None:
        for name, flat in files.items():
            rows += _static(name, flat)
        return DeviceReport("edgetpu", rows, [_NO_COMPILER, _ONE_PART])
    delegates, absence = edge_tpu()
    versions = set()
    for name, flat in files.items():
        try:
            compiled, log = compile_file(compiler, flat, options.timeout)
        except CompilationError as error:
            rows.append({"file": name, "operator": _ALL, "on_edge_tpu": 0, "why_not": str(error)})
            continue
        times = {} if delegates is None else _times(compiled, delegates, options)
        rows += _compiled(name, log, times)
        versions.add(log.version)
    notes = [f"Compiled by edgetpu_compiler {version}." for version in sorted(versions)]
    notes += [f"Not timed: {absence}"] if absence else []
    return DeviceReport("edgetpu", rows, [*notes, _ONE_PART])


def edge_tpu() -> tuple[list[Any] | None, str]:
    """The delegates of an Edge TPU; None where there is none, and why."""
    try:
        ctypes.CDLL(RUNTIME)  # load_delegate's finalizer fails where there is no library
        return [load_delegate(RUNTIME)], ""
    except (OSError, ValueError) as error:
        how = "install libedgetpu1-std from Coral's Debian repository and connect the device"
        return None, f"{RUNTIME} does not load ({error}): {how}."


def _static(name: str, flat: bytes) -> list[dict[str, Cell]]:
    try:
        graph = read_file(flat)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    found = collections.Counter((o.op, refusal(graph, o)) for o in graph.operators)
    operators = [(op, n, 0 if why else n, why) for (op, why), n in found.items()]
    return _rows(name, operators, {})


def _compiled(name: str, log: CompilerLog, times: dict[str, Cell]) -> list[dict[str, Cell]]:
    operators = [
        (op, n, n if status == MAPPED else 0, "" if status == MAPPED else status)
        for op, n, status in log.operators
    ]
    sizes: dict[str, Cell] = {
        "subgraphs": log.subgraphs,
        "on_chip_bytes": log.on_chip_bytes,
        "off_chip_bytes": log.off_chip_bytes,
    }
    return _rows(name, operators, {**sizes, **times})


def _rows(
    name: str, operators: list[tuple[str, int, int, str]], whole: dict[str, Cell]
) -> list[dict[str, Cell]]:
    """The whole file's row, and below it those of its operators."""
    count, taken = sum(row[1] for row in operators), sum(row[2] for row in operators)
    first = {"file": name, "operator": _ALL, "count": count, "on_edge_tpu": taken, "why_not": ""}
    rows: list[dict[str, Cell]] = [{**first, **whole}]
    for op, number, mapped, why in operators:
        row = {"file": name, "operator": op, "count": number, "on_edge_tpu": mapped, "why_not": why}
        rows.append(row)
    return rows


def _times(compiled: bytes, delegates: list[Any], options: Options) -> dict[str, Cell]:
    """Microseconds of one inference after the other."""
    interpreter = Interpreter(model_content=compiled, experimental_delegates=delegates)
    interpreter.allocate_tensors()
    details = interpreter.get_input_details()
    for detail, array in zip(details, random_inputs(details), strict=True):
        interpreter.set_tensor(detail["index"], array)
    times = []
    for _ in range(options.warmup + options.runs):
        start = time.perf_counter()
        interpreter.invoke()
        times.append((time.perf_counter() - start) * 1e6)
    low, median, high = np.percentile(times[options.warmup :], [10, 50, 90])
    return {"median_us": float(median), "low_us": float(low), "high_us": float(high)}

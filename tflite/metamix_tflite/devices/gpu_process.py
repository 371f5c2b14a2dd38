"""The process of `gpu` for one file: runs it on LiteRT's WebGPU accelerator and writes JSON.

python -m metamix_tflite.devices.gpu_process MODEL OUTPUT PRECISION RUNS WARMUP
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.compiled_model import CompiledModel
from ai_edge_litert.hardware_accelerator import HardwareAccelerator
from ai_edge_litert.options import GpuOptions, Options

from metamix_tflite.file_graph import VerificationError
from metamix_tflite.read.files import read_file
from metamix_tflite.run.latency import random_inputs
from metamix_tflite.verification.replay import Golden, compare, golden_of

_NOT_WHOLE = "ops are not accelerated"  # LiteRT's refusal of a file for the GPU alone


class GpuRunner:
    """A file of one signature on the accelerator, and what that does not take on the CPU.

    Raises:
      RuntimeError: the accelerator fails on the file.

    Attributes:
      whole: whether it took all operators.
    """

    def __init__(self, flat: bytes, precision: str):
        # LiteRT's is_fully_accelerated counts what the CPU runs: the GPU alone has to take it.
        try:
            self._model, self.whole = _compiled(flat, precision, HardwareAccelerator.GPU), True
        except RuntimeError as error:
            if _NOT_WHOLE not in str(error):
                raise
            places = HardwareAccelerator.GPU | HardwareAccelerator.CPU
            self._model, self.whole = _compiled(flat, precision, places), False
        name = next(iter(self._model.get_signature_list()))
        self.input_details = _described(self._model.get_input_tensor_details(name))
        self._outputs = _described(self._model.get_output_tensor_details(name))
        self._buffers = self._model.create_input_buffers(0), self._model.create_output_buffers(0)

    def invoke(self, *arrays: np.ndarray) -> list[np.ndarray]:
        """Outputs for one image; they are read, so that the GPU has ended."""
        inputs, outputs = self._buffers
        for buffer, array in zip(inputs, arrays, strict=True):
            buffer.write(array)
        self._model.run_by_index(0, inputs, outputs)
        return [
            buffer.read(math.prod(detail["shape"]), detail["dtype"])
            for buffer, detail in zip(outputs, self._outputs, strict=True)
        ]


def _compiled(flat: bytes, precision: str, places: HardwareAccelerator) -> CompiledModel:
    options = GpuOptions(enforce_f32=precision == "float32")
    return CompiledModel.from_buffer(flat, options=Options(places, gpu_options=options))


def _described(details: dict[str, Any]) -> list[dict[str, Any]]:
    """Shape and NumPy type of each tensor, in the signature's order."""
    ordered = sorted(details.values(), key=lambda detail: detail["index"])
    return [{"shape": d["shape"], "dtype": np.dtype(d["dtype"])} for d in ordered]


def columns(flat: bytes, precision: str, runs: int, warmup: int) -> dict[str, Any]:
    """What `gpu` reports of a file."""
    runner = GpuRunner(flat, precision)
    golden = _golden(flat)
    report = None if golden is None else compare(golden, runner.invoke, delegated=False)
    inputs = random_inputs(runner.input_details)
    times = []
    for run in range(warmup + runs):
        start = time.perf_counter()
        runner.invoke(*inputs)
        if run >= warmup:
            times.append((time.perf_counter() - start) * 1e6)
    low, median, high = np.percentile(times, [10, 50, 90])
    return {
        "whole_on_gpu": runner.whole,
        "median_us": float(median),
        "low_us": float(low),
        "high_us": float(high),
        "values": report.values if report else None,
        "differing": report.differing if report else None,
        "max_steps": report.max_steps if report else None,
    }


def _golden(flat: bytes) -> Golden | None:
    """The golden outputs of a file of `convert`; a stranger's has none."""
    try:
        return golden_of(read_file(flat))
    except VerificationError:
        return None


def main(arguments: list[str]) -> None:
    """Runs the file that the arguments name."""
    model, output, precision, runs, warmup = arguments
    found = columns(Path(model).read_bytes(), precision, int(runs), int(warmup))
    Path(output).write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])

"""Latency of a .tflite on the local machine."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Hashable, Mapping
from typing import Any, TypeVar

import numpy as np

from metamix_tflite.run.runner import Runner, require_count

DEVICES = ("local",)
_Name = TypeVar("_Name", bound=Hashable)


@dataclasses.dataclass(frozen=True)
class BenchmarkReport:
    """What was measured.

    Attributes:
      device: where.
      kernels: LiteRT's kernel set: "xnnpack", "builtin" or "reference".
      threads: CPU threads.
      median_us, low_us, high_us: median, 10th and 90th percentile of one inference of one image.
      runs: timed inferences.
      file_bytes: size of the file.
      delegated: whether one XNNPACK partition ran all of it; partitions: how many there were.
    """

    device: str
    kernels: str
    threads: int
    median_us: float
    low_us: float
    high_us: float
    runs: int
    file_bytes: int
    delegated: bool
    partitions: int

    def __str__(self) -> str:
        state = "one XNNPACK partition" if self.delegated else f"{self.partitions} partitions"
        if self.kernels != "xnnpack":
            state = f"{self.kernels} kernels"
        return (
            f"{self.median_us:.1f} us median ({self.low_us:.1f} to {self.high_us:.1f}) of "
            f"{self.runs} runs, {self.threads} thread(s), {self.file_bytes} bytes, {state}"
        )


def benchmark(
    flat: bytes,
    device: str = "local",
    threads: int = 1,
    runs: int = 200,
    warmup: int = 20,
    signature: str | None = None,
    kernels: str = "xnnpack",
) -> BenchmarkReport:
    """Times single-image inferences, one after the other, after a warm-up.

    Args:
      flat: bytes of a .tflite.
      device, threads: where.
      runs, warmup: inferences that are timed, and that are not.
      signature: which of the file's, where there are several.
      kernels: LiteRT's kernel set, see `metamix_tflite.run.interpreter.KERNELS`.

    Raises:
      ValueError: an unknown device, signature or kernel set, or counts below 1.
    """
    signatures = None if signature is None else {"file": signature}
    chosen = {"file": kernels}
    return benchmark_all({"file": flat}, device, threads, runs, warmup, signatures, chosen)["file"]


def benchmark_all(
    files: Mapping[_Name, bytes],
    device: str = "local",
    threads: int = 1,
    runs: int = 200,
    warmup: int = 20,
    signatures: Mapping[_Name, str] | None = None,
    kernels: Mapping[_Name, str] | None = None,
) -> dict[_Name, BenchmarkReport]:
    """`benchmark` of several files in turn, one inference each, so that the machine's drift
    falls on all of them alike.

    Args:
      files: by a name for the report, of any hashable type.
      device, threads, runs, warmup: see `benchmark`.
      signatures: the signature of each file that has several.
      kernels: the kernel set of each file that is not to run with XNNPACK.
    """
    if device not in DEVICES:
        raise ValueError(f"device: expected one of {DEVICES}, found {device!r}.")
    require_count("threads", 1, threads)
    require_count("runs", 1, runs)
    require_count("warmup", 0, warmup)
    chosen, sets = signatures or {}, dict.fromkeys(files, "xnnpack") | dict(kernels or {})
    runners = {
        name: Runner(flat, threads, signature=chosen.get(name), kernels=sets[name])
        for name, flat in files.items()
    }
    inputs = {name: random_inputs(runner.input_details) for name, runner in runners.items()}
    times: dict[_Name, list[float]] = {name: [] for name in files}
    for run in range(warmup + runs):
        for name, runner in runners.items():
            start = time.perf_counter()
            runner.invoke(*inputs[name])
            if run >= warmup:
                times[name].append((time.perf_counter() - start) * 1e6)
    reports = {}
    for name, runner in runners.items():
        low, median, high = np.percentile(times[name], [10, 50, 90])
        reports[name] = BenchmarkReport(
            device,
            sets[name],
            threads,
            float(median),
            float(low),
            float(high),
            runs,
            len(files[name]),
            runner.delegated,
            runner.partitions or 0,
        )
    return reports


def run_times(
    files: Mapping[_Name, bytes], threads: int = 1, runs: int = 200, warmup: int = 20
) -> dict[_Name, float]:
    """Median microseconds of computing the outputs of each file, the files in turn.

    As `benchmark_all`, without the copies of inputs and outputs, which no operator inside a file
    has: each run follows its input's writing, as it follows the operator before it there.
    """
    require_count("threads", 1, threads)
    require_count("runs", 1, runs)
    require_count("warmup", 0, warmup)
    runners = {name: Runner(flat, threads) for name, flat in files.items()}
    inputs = {name: random_inputs(runner.input_details) for name, runner in runners.items()}
    times: dict[_Name, list[float]] = {name: [] for name in files}
    for run in range(warmup + runs):
        for name, runner in runners.items():
            runner.write(*inputs[name])
            start = time.perf_counter()
            runner.run()
            if run >= warmup:
                times[name].append((time.perf_counter() - start) * 1e6)
    return {name: float(np.median(found)) for name, found in times.items()}


def random_inputs(details: list[dict[str, Any]], seed: int = 0) -> list[np.ndarray]:
    """An array for each input that LiteRT describes."""
    random = np.random.default_rng(seed)
    arrays = []
    for detail in details:
        if detail["dtype"] == np.float32:
            arrays.append(random.normal(size=detail["shape"]).astype(np.float32))
        else:
            values = random.integers(-128, 128, detail["shape"])
            arrays.append(values.astype(detail["dtype"]))  # of uint8 the bytes that wrap around
    return arrays

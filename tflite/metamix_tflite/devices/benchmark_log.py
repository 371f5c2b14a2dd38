"""Reads the text that TFLite's `benchmark_model` prints.

The format is that of tensorflow/lite/tools/benchmark from TensorFlow 2.3 (without percentiles, and
without "INFO:" before a line) to 2.21, and of the same tool in LiteRT.
"""

from __future__ import annotations

import dataclasses
import re

from metamix_tflite.devices import Cell

_NUMBER = r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?"
_RUNS = re.compile(rf"count=(\d+)((?: \w+={_NUMBER}(?:\(all same\))?)+)")
_INIT = re.compile(rf"Inference timings in us: Init: ({_NUMBER}),")
_MEMORY = re.compile(rf"emory footprint (?:delta .*)?\(MB\): init={_NUMBER} overall=({_NUMBER})")
_REPLACING = re.compile(
    r"Replacing (\d+) (?:out of (\d+) )?node\(s\) with delegate \((\w+)\) node, "
    r"yielding (\d+) partitions"
)
_APPLIED = "Explicitly applied {} delegate, and the model graph will be "
_COMPLETELY, _PARTIALLY = "completely executed", "partially executed"
# Lines in which the tool says that a delegate does nothing, after which it goes on without it.
_NOT_APPLIED = re.compile(
    r".*(?:will not be executed by the delegate|is unsupported on this platform"
    r"|Could not create .* delegate|Unconsumed cmdline flags: .*--use_).*"
)
_ERROR = re.compile(r"ERROR: .+|Failed to .+")
_LEVEL = re.compile(r"^(?:INFO|WARN|WARNING|ERROR|VERBOSE): ")


@dataclasses.dataclass(frozen=True)
class Delegate:
    """One way to run a model; `title` is the tool's name for it, "" for none."""

    flag: str
    title: str = ""


DELEGATES = {
    "cpu": Delegate("--use_xnnpack=false"),
    "xnnpack": Delegate("--use_xnnpack=true", "XNNPACK"),
    "gpu": Delegate("--use_gpu=true", "GPU"),
    "nnapi": Delegate("--use_nnapi=true", "NNAPI"),
    "hexagon": Delegate("--use_hexagon=true", "Hexagon"),
    "npu": Delegate("--use_npu=true", "NPU"),
}


def read_log(text: str, delegate: Delegate, status: int = 0) -> dict[str, Cell]:
    """The columns that a run of the tool gives.

    A delegate that the tool did not apply gives "refused", the tool's own line, and no times: the
    tool then measures the CPU.

    Args:
      text: what it printed.
      delegate: the one that was asked for.
      status: its exit status.
    """
    times = _timings(text)
    if status or times is None or "Benchmarking failed" in text:
        return {"refused": _reason(text, _ERROR) or f"exit status {status}, no output"}
    delegated = _delegated(text, delegate)
    if delegated is None:
        return {"refused": _reason(text, _NOT_APPLIED)}
    init, memory = _INIT.search(text), _MEMORY.search(text)
    return {
        **times,
        "init_us": float(init[1]) if init else None,
        "memory_bytes": float(memory[1]) * 2**20 if memory else None,
        "delegated": delegated,
    }


def _timings(text: str) -> dict[str, Cell] | None:
    """Of the last series; the one before it is the warm-up."""
    series = _RUNS.findall(text)
    if not series:
        return None
    count, fields = series[-1]
    values = {k: float(v) for k, v in re.findall(rf"(\w+)=({_NUMBER})", fields)}
    same = {"avg": values.get("curr"), "min": values.get("curr"), "max": values.get("curr")}
    values = same | {"std": 0.0} | values  # all the same: the tool prints one value
    return {
        "average_us": values["avg"],
        "std_us": values["std"],
        "least_us": values["min"],
        "most_us": values["max"],
        "runs": int(count),
    }


def _delegated(text: str, delegate: Delegate) -> str | None:
    """How much of the model the delegate ran, None where it was not applied."""
    if not delegate.title:
        return "nothing"
    applied = _APPLIED.format(delegate.title)
    nodes = [
        (int(replaced), int(total or 0), int(partitions))
        for replaced, total, name, partitions in _REPLACING.findall(text)
        if delegate.title.lower() in name.lower()
    ]
    partitions = sum(n[2] for n in nodes)
    split = f"{partitions} partition{'s' * (partitions != 1)}"
    if applied + _COMPLETELY in text:
        return f"whole model, {split}" if nodes else "whole model"
    if applied + _PARTIALLY not in text:
        return None
    if not nodes:
        kernels = re.search(r"delegate w/ (\d+) delegate kernels", text)
        return f"a part, {kernels[1]} kernels" if kernels else "a part"
    replaced, total = sum(n[0] for n in nodes), nodes[0][1]
    return f"{replaced} of {total} nodes, {split}" if total else f"{replaced} nodes, {split}"


def _reason(text: str, wanted: re.Pattern[str]) -> str:
    """The first line that says why, else the last one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found = next((line for line in lines if wanted.search(line)), lines[-1] if lines else "")
    return _LEVEL.sub("", found)

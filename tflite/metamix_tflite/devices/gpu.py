"""A GPU of this machine: LiteRT's WebGPU accelerator, over Vulkan.

Each file runs in a process of its own (`gpu_process`): the accelerator tells of its adapter in its
log alone, and a driver that crashes ends that process, not this one.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from metamix_tflite.devices import Cell, DeviceReport, DeviceUnavailable, require_at_least
from metamix_tflite.devices.processes import ending, run_program

PRECISIONS = ("float32", "float16")
_ADAPTER = re.compile(r"Selected adapter: (.*?), arch=.*?adapterType=(.*)")
_SPLIT = re.compile(
    r"(\d+) operations will run on the GPU, and the remaining (\d+) operations will run on the CPU"
)
_HINT = "install libvulkan1 and the GPU's driver, or name a driver's .json by --vulkan_icd"


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a run on a GPU.

    Attributes:
      precision: one of `PRECISIONS`, that the accelerator computes in.
      vulkan_icd: the .json of a Vulkan driver; None takes the machine's.
      runs, warmup: inferences that are timed, and that are not.
      timeout: seconds that one file may take.
    """

    precision: str = "float32"
    vulkan_icd: Path | None = None
    runs: int = 50
    warmup: int = 5
    timeout: int = 600

    def __post_init__(self) -> None:
        require_at_least(runs=(1, self.runs), warmup=(0, self.warmup), timeout=(1, self.timeout))
        if self.precision not in PRECISIONS:
            expected = " or ".join(PRECISIONS)
            raise ValueError(f"--precision: expected {expected}, found {self.precision!r}.")
        if self.vulkan_icd is not None and not self.vulkan_icd.is_file():
            raise FileNotFoundError(f"--vulkan_icd: expected a file, found no {self.vulkan_icd}.")


def measure(files: Mapping[str, bytes], options: Options) -> DeviceReport:
    """Latency of each file, and how its outputs compare with the integers that it promises.

    Raises:
      DeviceUnavailable: no Vulkan driver, or no accelerator in this LiteRT.
      OSError: the accelerator fails on a file; names it.
    """
    rows: list[dict[str, Cell]] = []
    adapters: dict[str, str] = {}  # name -> type
    for name, flat in files.items():
        found, adapter, kind = _run(name, flat, options)
        adapters[adapter] = kind
        if is_software(kind):
            found |= {"median_us": None, "low_us": None, "high_us": None}
        rows.append({"file": name, **found})
    notes = [
        f"{name} ({kind}), computing in {options.precision}." for name, kind in adapters.items()
    ]
    if any(map(is_software, adapters.values())):
        notes.append("The adapter is software on a CPU: latency would mean nothing, none is shown.")
    if any(row["operators_on_cpu"] != 0 for row in rows):
        notes.append("Operators that the accelerator does not take ran on the CPU, exactly.")
    if any(row["values"] is None for row in rows):
        notes.append("Files without golden outputs were compared with nothing.")
    notes.append(
        "The accelerator computes in floats: a difference of a step is its rounding, one of many "
        "steps a fault."
    )
    return DeviceReport("gpu", rows, notes)


def is_software(kind: str) -> bool:
    """Whether an adapter of this type runs on a CPU."""
    return "cpu" in kind.lower()


def _run(name: str, flat: bytes, options: Options) -> tuple[dict[str, Any], str, str]:
    """Columns of a file, the adapter that ran it and its type."""
    environment = dict(os.environ)
    if options.vulkan_icd is not None:
        # The loader's old and new name for the same setting.
        path = str(options.vulkan_icd.resolve())
        environment |= {"VK_ICD_FILENAMES": path, "VK_DRIVER_FILES": path}
    with tempfile.TemporaryDirectory() as folder:
        model, output = Path(folder, "model.tflite"), Path(folder, "found.json")
        model.write_bytes(flat)
        command = [sys.executable, "-m", "metamix_tflite.devices.gpu_process", model, output]
        command += [options.precision, str(options.runs), str(options.warmup)]
        late = f"{name}: the GPU took longer than {options.timeout} s."
        ended = run_program(command, options.timeout, late, environment)
        log = ended.stderr
        adapter = _ADAPTER.search(log)
        if adapter is None:
            raise DeviceUnavailable(f"gpu: {_missing(log)}")
        if ended.returncode or not output.is_file():
            raise OSError(f"{name}: the GPU fails on it: {_last_error(log, ended.returncode)}")
        found = json.loads(output.read_text())
        split = _SPLIT.search(log)
        left = 0 if found["whole_on_gpu"] else int(split[2]) if split else None
        columns = {"whole_on_gpu": found.pop("whole_on_gpu"), "operators_on_cpu": left, **found}
        return columns, adapter[1], adapter[2].strip()


def _missing(log: str) -> str:
    """Why there is no adapter."""
    if "Couldn't load Vulkan" in log:
        return f"no Vulkan loader was found (libvulkan.so.1): {_HINT}."
    if "No adapters found" in log or "Found no drivers" in log:
        return f"no Vulkan driver was found: {_HINT}."
    return f"LiteRT's accelerator did not start: {_last_error(log, 1)}"


def _last_error(log: str, status: int) -> str:
    lines = [line.strip() for line in log.splitlines() if re.search(r"error", line, re.IGNORECASE)]
    return lines[-1] if lines else f"{ending(status)}, without a word."

"""LiteRT's aarch64 build on an emulated ARM CPU: what its NEON kernels compute, not how fast.

qemu runs the real wheel's machine code, instruction by instruction. It needs no ARM machine.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import metamix_tflite
from metamix_tflite.devices import Cell, DeviceReport, require_at_least
from metamix_tflite.devices.arm64_cpu import CPUS, show
from metamix_tflite.devices.arm64_root import default_root, qemu, ready_root
from metamix_tflite.devices.processes import ending, run_program
from metamix_tflite.file_graph import VerificationError
from metamix_tflite.read.files import read_file
from metamix_tflite.run.interpreter import check_kernels
from metamix_tflite.verification.replay import golden_of


@dataclasses.dataclass(frozen=True)
class Options:
    """What the device can be told.

    Attributes:
      kernels: LiteRT's kernel sets, of "xnnpack", "builtin" and "reference".
      cpus: names of `CPUS`.
      arm64_root: folder of the emulated system; None for one in ~/.cache/keras-metamix.
      timeout: seconds that one file may take with one kernel set on one CPU.
    """

    kernels: Sequence[str] = ("xnnpack",)
    cpus: Sequence[str] = tuple(CPUS)
    arm64_root: Path | None = None
    timeout: int = 600

    def __post_init__(self) -> None:
        require_at_least(timeout=(1, self.timeout))
        for name in self.kernels:
            check_kernels(name)
        if not self.cpus or set(self.cpus) - set(CPUS):
            expected, found = ", ".join(CPUS), ",".join(self.cpus)
            raise ValueError(f"--cpus: expected some of {expected}, found {found!r}.")


def measure(files: Mapping[str, bytes], options: Options) -> DeviceReport:
    """Replays each file's golden inputs with each kernel set on each emulated CPU.

    Raises:
      DeviceUnavailable: no emulator, or its folder cannot be made.
      ValueError: a file without golden outputs; names it.
      OSError: the emulated LiteRT fails on a file; names it.
    """
    for name, flat in files.items():
        try:
            golden_of(read_file(flat))
        except VerificationError as error:
            raise ValueError(f"{name}: {error}") from error
    emulator, root = qemu(), options.arm64_root or default_root()
    held = ready_root(root)
    rows: list[dict[str, Cell]] = []
    for name, flat in files.items():
        for cpu, kernels in itertools.product(options.cpus, options.kernels):
            guest = _Guest(emulator, root, held["python"], cpu, options.timeout)
            found = guest.replay(name, flat, kernels)
            rows.append({"file": name, "cpu": cpu, "kernels": kernels, **found})
    return DeviceReport(
        "arm64",
        rows,
        [
            f"LiteRT {held['ai-edge-litert']} for aarch64, emulated by qemu, in {root}.",
            "Emulated time says nothing of an ARM CPU's, so none is shown; Debian's "
            "qemu-user-static takes no plugins, so that it counts no instructions either.",
        ],
    )


@dataclasses.dataclass(frozen=True)
class _Guest:
    """An emulated CPU with the programs of a folder.

    Attributes:
      emulator: qemu.
      root: of `ready_root`.
      python: its interpreter's path in there.
      cpu: a name of `CPUS`.
      timeout: in seconds.
    """

    emulator: str
    root: Path
    python: str
    cpu: str
    timeout: int

    def replay(self, name: str, flat: bytes, kernels: str) -> dict[str, Any]:
        """Columns of a file with one kernel set."""
        with tempfile.TemporaryDirectory() as folder:
            view, packages = Path(folder, "root"), Path(folder, "packages")
            for made in (view, packages):
                made.mkdir()
            show(self.root, self.cpu, view)
            # This package alone: beside it may lie libraries of this machine's kind.
            here = Path(metamix_tflite.__file__).parent
            (packages / "metamix_tflite").symlink_to(here, target_is_directory=True)
            model, output = Path(folder, "model.tflite"), Path(folder, "found.json")
            model.write_bytes(flat)
            command = [
                self.emulator,
                "-cpu",
                CPUS[self.cpu].model,
                "-L",
                view,
                view / self.python,
                "-B",
                "-s",
            ]
            command += ["-m", "metamix_tflite.devices.replay_process", model, output, kernels]
            self._run(name, command, [view / "wheels", packages])
            if not output.is_file():
                raise OSError(f"{name}: the emulated LiteRT gave no result.")
            found = json.loads(output.read_text())
        machine, _ = found.pop("machine"), found.pop("images")
        if machine != "aarch64":
            raise OSError(f"{name}: expected an aarch64 machine, found {machine!r}.")
        return found

    def _run(self, name: str, command: list[str | Path], packages: list[Path]) -> None:
        environment = {"PYTHONPATH": os.pathsep.join(map(str, packages)), "PATH": os.defpath}
        late = f"{name}: its emulation took longer than {self.timeout} s."
        ended = run_program(command, self.timeout, late, environment)
        if ended.returncode:
            raise OSError(f"{name}: the emulated LiteRT fails: {_reason(ended)}")


def _reason(ended: subprocess.CompletedProcess[str]) -> str:
    """Why a process failed, in a line."""
    lines = [] if ended.returncode < 0 else ended.stderr.strip().splitlines()
    return lines[-1] if lines else f"{ending(ended.returncode)}."

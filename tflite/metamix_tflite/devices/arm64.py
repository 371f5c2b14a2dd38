"""LiteRT's aarch64 build on an emulated ARM CPU: what its NEON kernels compute, not how fast.

qemu runs the real wheel's machine code, and can count its instructions. It needs no ARM machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import metamix_tflite
from metamix_tflite.devices import Cell, DeviceReport, require_at_least
from metamix_tflite.devices.arm64_cpu import CPUS, show
from metamix_tflite.devices.arm64_instructions import Ranges, count
from metamix_tflite.devices.arm64_root import default_root, qemu, ready_root
from metamix_tflite.devices.processes import ending, run_program
from metamix_tflite.file_graph import VerificationError
from metamix_tflite.read.files import read_file
from metamix_tflite.run.interpreter import check_kernels
from metamix_tflite.verification.replay import golden_of


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a replay by emulated ARM CPUs.

    Attributes:
      kernels: LiteRT's kernel sets, of "xnnpack", "builtin" and "reference".
      cpus: names of `CPUS`.
      arm64_root: folder of the emulated system; None for one in ~/.cache/keras-metamix.
      instructions: whether to count those of an inference, too.
      timeout: seconds that one file may take with one kernel set on one CPU.
    """

    kernels: Sequence[str] = ("xnnpack",)
    cpus: Sequence[str] = tuple(CPUS)
    arm64_root: Path | None = None
    instructions: bool = False
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
    golden = {name: _has_golden(name, flat, options) for name, flat in files.items()}
    emulator, root = qemu(), options.arm64_root or default_root()
    held = ready_root(root)
    rows: list[dict[str, Cell]] = []
    addresses: Ranges = []
    for name, flat in files.items():
        for cpu, kernels in itertools.product(options.cpus, options.kernels):
            guest = _Guest(emulator, root, held["python"], cpu, options.timeout)
            row: dict[str, Cell] = {"file": name, "cpu": cpu, "kernels": kernels}
            row |= guest.replay(name, flat, kernels) if golden[name] else _NOT_REPLAYED
            if options.instructions:
                found, addresses = guest.count(name, flat, kernels, addresses)
                row |= found
            rows.append(row)
    notes = [
        f"LiteRT {held['ai-edge-litert']} for aarch64, emulated by qemu, in {root}.",
        "Emulated time says nothing of an ARM CPU's, so none is shown.",
    ]
    if options.instructions:
        notes.append(
            "Instructions are those of one inference of a random image in LiteRT's libraries; they "
            "tell files apart on one CPU, and CPUs take different times for them."
        )
    if not all(golden.values()):
        notes.append("Files without golden outputs were compared with nothing.")
    return DeviceReport("arm64", rows, notes)


_NOT_REPLAYED = dict.fromkeys(("values", "differing", "max_steps", "delegated"))


def _has_golden(name: str, flat: bytes, options: Options) -> bool:
    """Whether a file can be replayed; one that can only be counted may do without.

    Raises:
      ValueError: it cannot, and instructions are not asked for; names it.
    """
    try:
        golden_of(read_file(flat))
    except VerificationError as error:
        if options.instructions:
            return False
        raise ValueError(f"{name}: {error}") from error
    return True


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
        with self._program("replay_process", flat, kernels) as program:
            late = f"{name}: its emulation took longer than {self.timeout} s."
            ended = run_program(program.command([]), self.timeout, late, program.environment)
            if ended.returncode:
                raise OSError(f"{name}: the emulated LiteRT fails: {_reason(ended)}")
            if not program.output.is_file():
                raise OSError(f"{name}: the emulated LiteRT gave no result.")
            found = json.loads(program.output.read_text())
        machine, _ = found.pop("machine"), found.pop("images")
        if machine != "aarch64":
            raise OSError(f"{name}: expected an aarch64 machine, found {machine!r}.")
        return found

    def count(
        self, name: str, flat: bytes, kernels: str, addresses: Ranges
    ) -> tuple[dict[str, Any], Ranges]:
        """See `arm64_instructions.count`."""
        with self._program("count_process", flat, kernels) as program:
            return count(
                name,
                program.command,
                program.environment,
                program.output,
                self.timeout,
                addresses,
            )

    @contextlib.contextmanager
    def _program(self, module: str, flat: bytes, kernels: str) -> Iterator[_Program]:
        """A module of this folder, to be run by the emulated Python on a file."""
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
            first = [self.emulator, "-cpu", CPUS[self.cpu].model, "-L", view]
            second = [view / self.python, "-B", "-s", "-m", f"metamix_tflite.devices.{module}"]
            paths = os.pathsep.join(map(str, (view / "wheels", packages)))
            environment = {"PYTHONPATH": paths, "PATH": os.defpath, "PYTHONHASHSEED": "0"}
            yield _Program(first, [*second, model, output, kernels], environment, output)


@dataclasses.dataclass(frozen=True)
class _Program:
    """An emulated program, ready to be started.

    Attributes:
      emulator, program: its command line, without flags that the emulator takes between.
      environment: its variables.
      output: where it writes JSON.
    """

    emulator: list[str | Path]
    program: list[str | Path]
    environment: dict[str, str]
    output: Path

    def command(self, flags: list[str]) -> list[str | Path]:
        """The command line."""
        return [*self.emulator, *flags, *self.program]


def _reason(ended: subprocess.CompletedProcess[str]) -> str:
    """Why a process failed, in a line."""
    lines = [] if ended.returncode < 0 else ended.stderr.strip().splitlines()
    return lines[-1] if lines else f"{ending(ended.returncode)}."

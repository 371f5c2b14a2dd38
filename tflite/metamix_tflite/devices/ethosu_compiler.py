"""Vela, Arm's compiler for Ethos-U NPUs, and what it tells of a file.

Two tables of it are read: the summary and the operators (CSV files of `--verbose-performance`);
from what it prints, why operators stay on the CPU and the bytes of read-only tensors.
"""

from __future__ import annotations

import csv
import dataclasses
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from metamix_tflite.devices import DeviceUnavailable
from metamix_tflite.devices.processes import ending, run_program
from metamix_tflite.read.files import read_signatures, small_tensors

_PROGRAM = "vela"
_ARM_CONFIG = "Arm/vela.ini"  # comes with Vela, which knows the path
_KIB = 1024
_CPU_OPERATOR = re.compile(
    r"^Warning \(\S.*?\) operator: \S+, ofm: '(.*)'\nReason: (.+(?:\n[^\s#].*)*)", re.MULTILINE
)
_NAMED = re.compile(r" \([^()]*\)")  # tensors' names, in a reason
_READ_ONLY = "Tensor Allocation for read-only NPU tensors:"
_ALLOCATED = re.compile(r"^ *\d+ - +\d+: +0x\w+ - +0x\w+: +(\d+): +\d+: \S+ *: (\S.*?) *$")
_PEAK = re.compile(r"^Allocation Peak Tensor Size: (\d+) bytes")
_SECTION = re.compile(r"^\s*(System_Config|Memory_Mode)\.(\S+)", re.MULTILINE)
_NO_REASON = "Vela does not say"


@dataclasses.dataclass(frozen=True)
class CompiledOperator:
    """An operator of the compiled network.

    Attributes:
      name: of the tensor that it writes; of operators that Vela adds one of its own.
      kind: what it was in the file, in Vela's words.
      cycles: of the NPU.
      refusal: why the CPU runs it; "" on the NPU.
    """

    name: str
    kind: str
    cycles: int
    refusal: str


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What Vela tells of a file; cycles and times are its estimates.

    Attributes:
      cycles: of the NPU, one inference.
      clock_hz: of the NPU.
      sram_bytes, dram_bytes, flash_bytes: what the NPU's tensors take of each memory.
      encoded_bytes: the weights, compressed, without scales and biases.
      read_only_bytes: these, scales, biases and tables: what is to be stored.
      tensors: bytes of the read-only tensors by name; weights with their scales and biases.
      operators: in the order in which they run.
    """

    cycles: int
    clock_hz: float
    sram_bytes: int
    dram_bytes: int
    flash_bytes: int
    encoded_bytes: int
    read_only_bytes: int
    tensors: Mapping[str, int]
    operators: tuple[CompiledOperator, ...]

    @property
    def microseconds(self) -> float:
        """Of one inference."""
        return self.cycles / self.clock_hz * 1e6


@dataclasses.dataclass(frozen=True)
class Vela:
    """The installed compiler, and its options.

    Attributes:
      program: its path.
      version: as it says.
      flags: for every file.
      timeout: seconds for a file.
    """

    program: str
    version: str
    flags: tuple[str, ...]
    timeout: int

    def compile(self, name: str, flat: bytes) -> Compiled:
        """Compiles a .tflite of one signature in a temporary folder.

        Args:
          name: of the file, for messages.
          flat: its bytes.

        Raises:
          ValueError: a file that Vela does not take, or an option of which it knows nothing.
          OSError: it takes too long.
        """
        _require_compilable(name, flat)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.tflite")
            path.write_bytes(flat)
            reports = ("--verbose-performance", "--verbose-allocation", "--show-cpu-operations")
            command = [self.program, str(path), f"--output-dir={folder}", *self.flags, *reports]
            late = f"{name}: Vela takes longer than {self.timeout} s."
            done = run_program(command, self.timeout, late)
            found = [sorted(Path(folder).glob(f"*_{t}*.csv")) for t in ("summary", "per-layer")]
            if done.returncode or not all(found):
                said = _last_line(done.stderr) or ending(done.returncode)
                raise ValueError(f"{name}: Vela {self.version} does not compile it: {said}")
            (summary, *_), operators = (_rows(paths[0]) for paths in found)
        return _compiled(summary, operators, done.stdout)


def find_vela(flags: Sequence[str], timeout: int) -> Vela:
    """The `vela` beside this Python, or the one on PATH.

    Raises:
      DeviceUnavailable: there is none.
    """
    program = shutil.which(_PROGRAM, path=os.fspath(Path(sys.executable).parent))
    program = program or shutil.which(_PROGRAM)
    if program is None:
        how = "pip install 'keras-metamix[ethosu]', or pip install ethos-u-vela"
        raise DeviceUnavailable(f"vela is neither beside this Python nor on PATH: {how}.")
    done = run_program([program, "--version"], timeout, f"{program} --version does not end.")
    return Vela(program, done.stdout.strip() or "of unknown version", tuple(flags), timeout)


def configurations(vela: Vela, config: Path | None) -> dict[str, list[str]]:
    """Names of the system configurations and memory modes of a file, Vela's own by default.

    Raises:
      ValueError: Vela cannot read it.
    """
    path = _ARM_CONFIG if config is None else str(config)
    late = "vela --list-configs does not end."
    done = run_program([vela.program, "--list-configs", path], vela.timeout, late)
    found: dict[str, list[str]] = {"System_Config": [], "Memory_Mode": []}
    for kind, name in _SECTION.findall(done.stdout):
        found[kind].append(name)
    if done.returncode or not all(found.values()):
        said = _last_line(done.stderr) or f"found {found}"
        raise ValueError(
            f"--vela_config={path}: expected an .ini of Vela, with sections [System_Config.NAME] "
            f"and [Memory_Mode.NAME]: {said}"
        )
    return found


def _require_compilable(name: str, flat: bytes) -> None:
    """Raises ValueError for a file that must not reach Vela, which crashes or goes wrong on it."""
    try:
        small = small_tensors(flat)
        signatures = {} if small else read_signatures(flat)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if len(signatures) > 1:
        raise ValueError(
            f"{name}: expected one signature, found {[*signatures]}: write each operating point "
            "into a file of its own. Vela repeats the weights that signatures share."
        )
    if not small:
        return
    tensor, kind = next(iter(small.items()))
    raise ValueError(
        f"{name}: {len(small)} of its tensors are of {kind}, such as {tensor!r}, which Vela does "
        'not compile: convert with target="ethosu" (metamix-export --target=ethosu). Weights of '
        "fewer bits are compressed there all the same."
    )


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _compiled(
    summary: Mapping[str, str], operators: Sequence[Mapping[str, str]], printed: str
) -> Compiled:
    refusals = {
        name: " ".join(_NAMED.sub("", why).split()) for name, why in _CPU_OPERATOR.findall(printed)
    }
    found: dict[tuple[str, str], CompiledOperator] = {}
    for row in operators:  # a fused activation has a row of the same name
        name, kind = row["Name"], row["Original Operator"]
        refusal = refusals.get(name, _NO_REASON) if row["Target"] == "CPU" else ""
        before = found.get((name, kind))
        cycles = int(row["Op Cycles"]) + (before.cycles if before else 0)
        found[name, kind] = CompiledOperator(name, kind, cycles, refusal)
    tensors, read_only = _read_only(printed)

    def memory(*names: str) -> int:
        return round(sum(float(summary[f"{name}_memory_used"]) for name in names) * _KIB)

    return Compiled(
        cycles=int(summary["cycles_total"]),
        clock_hz=float(summary["core_clock"]),
        sram_bytes=memory("sram"),
        dram_bytes=memory("dram"),
        flash_bytes=memory("on_chip_flash", "off_chip_flash"),
        encoded_bytes=int(summary["total_npu_encoded_weights"]),
        read_only_bytes=read_only,
        tensors=tensors,
        operators=tuple(found.values()),
    )


def _read_only(printed: str) -> tuple[dict[str, int], int]:
    """Bytes of each read-only tensor, and of all of them as they lie in memory."""
    tensors: dict[str, int] = {}
    total = 0
    for part in printed.split(_READ_ONLY)[1:]:
        for line in part.splitlines():
            if row := _ALLOCATED.match(line):
                tensors[row[2]] = tensors.get(row[2], 0) + int(row[1])
            elif peak := _PEAK.match(line):
                total += int(peak[1])
                break
    return tensors, total


def _last_line(text: str) -> str:
    """What a Python program died of, without the name of the exception."""
    lines = text.strip().splitlines()
    return re.sub(r"^[\w.]+: ", "", lines[-1]).strip("'\"") if lines else ""

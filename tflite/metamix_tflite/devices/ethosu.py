"""Arm's Ethos-U NPUs: what Vela makes of a file, in cycles, bytes and operators. No NPU is run."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from metamix_tflite.devices import Cell, DeviceReport, require_at_least
from metamix_tflite.devices.ethosu_compiler import (
    Compiled,
    CompiledOperator,
    Vela,
    configurations,
    find_vela,
)
from metamix_tflite.encoding import DEFAULT_SIGNATURE
from metamix_tflite.read.files import read_signatures

ACCELERATORS = (
    *(f"ethos-u55-{macs}" for macs in (32, 64, 128, 256)),
    *(f"ethos-u65-{macs}" for macs in (256, 512)),
    *(f"ethos-u85-{macs}" for macs in (128, 256, 512, 1024, 2048)),
)
OPTIMISE = ("Performance", "Size")
# By the accelerator's family: system configuration and memory mode, of Vela's own file.
_DEFAULTS = {
    "ethos-u55": ("Ethos_U55_High_End_Embedded", "Shared_Sram"),
    "ethos-u65": ("Ethos_U65_High_End", "Dedicated_Sram_384KB"),
    "ethos-u85": ("Ethos_U85_SYS_Flash_High", "Shared_Sram"),
}
_ALL = "all"
_DRAM = "dram_bytes"  # a column that is left out where there is none
_ONE_POINT = (
    "{}: write each operating point into a file of its own (convert without operating_points, or "
    "metamix-export --bits): Vela compiles every signature and repeats the weights that they share."
)
_CPU = "Cycles and times are the NPU's: what stays on the CPU comes on top."


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of Vela.

    Attributes:
      accelerator: one of `ACCELERATORS`.
      system_config, memory_mode: sections of `vela_config`, by their names; without it the
        accelerator's family has defaults.
      optimise: for "Performance" or for "Size", the least SRAM.
      vela_config: an .ini of Vela; None for Arm's, which comes with it.
      timeout: seconds for the compilation of a file.
    """

    accelerator: str = "ethos-u55-256"
    system_config: str | None = None
    memory_mode: str | None = None
    optimise: str = OPTIMISE[0]
    vela_config: Path | None = None
    timeout: int = 600

    def __post_init__(self) -> None:
        require_at_least(timeout=(1, self.timeout))
        for name, known in (("accelerator", ACCELERATORS), ("optimise", OPTIMISE)):
            found = getattr(self, name)
            if found not in known:
                raise ValueError(f"--{name}: expected one of {', '.join(known)}, found {found!r}.")
        names = self.system_config, self.memory_mode
        if self.vela_config is not None and None in names:
            raise ValueError("--vela_config: expected --system_config and --memory_mode beside it.")
        for name, value, default in zip(
            ("system_config", "memory_mode"),
            names,
            _DEFAULTS[self.accelerator.rpartition("-")[0]],
            strict=True,
        ):
            object.__setattr__(self, name, value or default)


def compiler(options: Options) -> Vela:
    """Vela with its flags.

    Raises:
      DeviceUnavailable: it is not installed.
      ValueError: no such configuration file, or it has no section of that name; names those there.
    """
    if options.vela_config is not None and not options.vela_config.is_file():
        raise ValueError(
            f"--vela_config: expected an .ini of Vela, found no file {options.vela_config}."
        )
    flags = [
        f"--accelerator-config={options.accelerator}",
        f"--system-config={options.system_config}",
        f"--memory-mode={options.memory_mode}",
        f"--optimise={options.optimise}",
        f"--config={options.vela_config.absolute() if options.vela_config else 'Arm/vela.ini'}",
    ]
    vela = find_vela(flags, options.timeout)
    known = configurations(vela, options.vela_config)
    for name, section in (("system_config", "System_Config"), ("memory_mode", "Memory_Mode")):
        found = getattr(options, name)
        if found not in known[section]:
            expected = ", ".join(known[section])
            raise ValueError(f"--{name}: expected one of {expected}, found {found!r}.")
    return vela


def measure(files: Mapping[str, bytes], options: Options) -> DeviceReport:
    """A row for all of each file, and one for each kind of operator and where it runs.

    Raises:
      DeviceUnavailable: Vela is not installed.
      ValueError: an option that Vela does not know, or a file that it does not take; names it.
      OSError: it takes longer than the time that it was given.
    """
    vela = compiler(options)
    compiled = {name: vela.compile(name, flat) for name, flat in files.items()}
    rows = [row for name, found in compiled.items() for row in _rows(name, found)]
    if not any(row.get(_DRAM) for row in rows):
        rows = [{k: v for k, v in row.items() if k != _DRAM} for row in rows]
    notes = [
        f"Estimated by Vela {vela.version} for {options.accelerator}, {options.system_config}, "
        f"{options.memory_mode}, at {clock / 1e6:g} MHz: no NPU was run."
        for clock in sorted({found.clock_hz for found in compiled.values()})
    ]
    left = {
        f"{name}: {operator.kind} stays on the CPU: {operator.refusal}.": None
        for name, found in compiled.items()
        for operator in found.operators
        if operator.refusal
    }
    notes += [*left, *([_CPU] if left else [])]
    points = [name for name, flat in files.items() if _is_point(flat)]
    return DeviceReport("ethosu", rows, notes + [_ONE_POINT.format(name) for name in points])


def _is_point(flat: bytes) -> bool:
    """Whether a file is, or was, one of several operating points."""
    ((name, graph),) = read_signatures(flat).items()
    return bool(graph.metadata) and name != DEFAULT_SIGNATURE


def _rows(name: str, found: Compiled) -> list[dict[str, Cell]]:
    """The whole file's row, and below it those of its kinds of operators."""
    kinds: dict[str, list[CompiledOperator]] = collections.defaultdict(list)
    for operator in found.operators:
        kinds[operator.kind].append(operator)
    rows: list[dict[str, Cell]] = [
        {
            "file": name,
            "operator": _ALL,
            "count": len(found.operators),
            "on_npu": _on_npu(found.operators),
            "cycles": found.cycles,
            "time_us": found.microseconds,
            "sram_bytes": found.sram_bytes,
            _DRAM: found.dram_bytes,
            "flash_bytes": found.flash_bytes,
            "weights_bytes": found.encoded_bytes,
        }
    ]
    for kind, operators in kinds.items():
        counts: dict[str, Cell] = {"count": len(operators), "on_npu": _on_npu(operators)}
        cycles = sum(operator.cycles for operator in operators)
        rows.append({"file": name, "operator": kind, **counts, "cycles": cycles})
    return rows


def _on_npu(operators: Sequence[CompiledOperator]) -> int:
    return sum(not operator.refusal for operator in operators)

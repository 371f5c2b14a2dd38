"""Coral's `edgetpu_compiler`, and what it prints.

The format is that of versions 14 to 16.0, its last: facts as "name: value", and with `-s` a table
of operators, their number and what became of them.
"""

from __future__ import annotations

import dataclasses
import re
import subprocess
import tempfile
from pathlib import Path

_FACT = r"^{}: *(.+?) *$"
_SIZE = re.compile(r"([\d.]+) *(B|KiB|MiB|GiB)")
_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_OPERATOR = re.compile(r"^(\S+) +(\d+) +(\S.*?) *$")
_TABLE = re.compile(r"^Operator +Count +Status *$", re.MULTILINE)
MAPPED = "Mapped to Edge TPU"
# Lines of a failure that do not say why.
_NOISE = re.compile(
    r"Edge TPU Compiler|Started a compil|Compilation child|Searching|Try to|Interm|$"
)


@dataclasses.dataclass(frozen=True)
class CompilerLog:
    """What the compiler says of one file.

    Attributes:
      version: of the compiler.
      operators: name, number and status, in its order.
      subgraphs: that run on the Edge TPU.
      on_chip_bytes, off_chip_bytes: parameters that stay on the Edge TPU, and that are sent to it
        with each image.
    """

    version: str
    operators: tuple[tuple[str, int, str], ...]
    subgraphs: int | None
    on_chip_bytes: float | None
    off_chip_bytes: float | None


class CompilationError(ValueError):
    """The compiler refuses a file; the message is its own."""


def compile_file(compiler: str, flat: bytes, timeout: float) -> tuple[bytes, CompilerLog]:
    """The compiled file, and what was said of it.

    Args:
      compiler: path of the program.
      flat: bytes of a .tflite.
      timeout: seconds.

    Raises:
      CompilationError: the compiler refuses the file.
      OSError: it takes more than `timeout` seconds.
    """
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "model.tflite")
        source.write_bytes(flat)
        try:
            done = subprocess.run(
                [compiler, "-s", "-o", folder, str(source)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                timeout=timeout,
            )
        except subprocess.TimeoutExpired as error:
            raise OSError(f"{compiler}: no result after {timeout:g} s.") from error
        compiled = Path(folder, "model_edgetpu.tflite")
        if done.returncode or not compiled.is_file():
            lines = [line.strip() for line in done.stdout.splitlines()]
            reasons = [line for line in lines if not _NOISE.match(line)]
            reason = "; ".join(reasons[-2:]) or f"exit status {done.returncode}"
            raise CompilationError(reason.replace(folder, ""))
        return compiled.read_bytes(), read_log(done.stdout)


def read_log(text: str) -> CompilerLog:
    """What the compiler printed of one file."""
    version = re.search(r"Edge TPU Compiler version (\S+)", text)
    header = _TABLE.search(text)
    rows = text[header.end() :].splitlines() if header else []
    operators = [found.groups() for line in rows if (found := _OPERATOR.match(line))]
    subgraphs = _fact(text, "Number of Edge TPU subgraphs")
    return CompilerLog(
        version[1] if version else "unknown",
        tuple((name, int(count), status) for name, count, status in operators),
        int(subgraphs) if subgraphs else None,
        _size(_fact(text, "On-chip memory used for caching model parameters")),
        _size(_fact(text, "Off-chip memory used for streaming uncached model parameters")),
    )


def _fact(text: str, name: str) -> str:
    found = re.search(_FACT.format(re.escape(name)), text, re.MULTILINE)
    return found[1] if found else ""


def _size(text: str) -> float | None:
    found = _SIZE.fullmatch(text)
    return float(found[1]) * _UNITS[found[2]] if found else None

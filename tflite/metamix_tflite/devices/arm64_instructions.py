"""Counts the instructions that an emulated inference runs in LiteRT's libraries.

qemu's log has the instructions of each block of code when it is translated (`in_asm`), and the
block's address each time that it runs (`exec`; `nochain`, or it leaves out those that follow one
another). `-dfilter` keeps it to addresses: those of LiteRT's libraries, which a first run tells.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from metamix_tflite.devices.count_process import BEGIN, END
from metamix_tflite.devices.processes import ending

_TRIES = 3
Ranges = list[list[int]]


def count(
    name: str,
    command: Callable[[list[str]], list[str | Path]],
    environment: dict[str, str],
    output: Path,
    timeout: float,
    guess: Ranges,
) -> tuple[dict[str, Any], Ranges]:
    """Instructions of one inference.

    Args:
      name: of the file, for errors.
      command: the emulator's command line with flags of its own.
      environment: its variables.
      output: where the emulated process writes its JSON.
      timeout: seconds that one run may take.
      guess: the libraries' addresses, as another call returned them; [] takes a run to learn them.

    Returns:
      Columns of the file, and the libraries' addresses.

    Raises:
      OSError: it fails or takes longer, or loads its libraries elsewhere each time.
    """
    for _ in range(_TRIES):
        flags = ["-d", "in_asm,exec,nochain", "-dfilter", _filter(guess)] if guess else []
        executed = _run(name, command(flags), environment, timeout)
        found = json.loads(output.read_text())
        ranges = found.pop("ranges")
        if ranges == guess:
            if not executed:
                raise OSError(f"{name}: qemu's log tells of no instruction of LiteRT's.")
            return {**found, "instructions": executed}, ranges
        guess = ranges
    raise OSError(f"{name}: the emulated LiteRT has other addresses in each of {_TRIES} runs.")


def executed_instructions(log: Iterable[str]) -> int:
    """Instructions of the blocks that ran between the marks of a log; 0 for one without blocks."""
    length: dict[str, int] = {}  # by a block's address
    runs: Counter[str] = Counter()
    block, last, inside = "", "", False
    for line in log:
        if line.startswith("Trace"):  # Trace 0: HOST [.../ADDRESS/.../...]
            block = ""
            if inside:
                last = line.split("/", 2)[1].lstrip("0")
                runs[last] += 1
        elif line.startswith("0x"):  # 0xADDRESS:  WORD  MNEMONIC ...
            if not block:
                block = line[2 : line.index(":")].lstrip("0")
                length[block] = 0
            length[block] += 1
        elif line.startswith("IN:"):
            block = ""
        elif line.startswith("Stopped execution") and inside:  # of a block that was to run
            runs[last] -= 1
        elif line.startswith((BEGIN, END)):
            inside = line.startswith(BEGIN)
    return sum(times * length[address] for address, times in runs.items())


def _filter(ranges: Ranges) -> str:
    return ",".join(f"{first:#x}..{last - 1:#x}" for first, last in ranges)


def _run(name: str, command: list[str | Path], environment: dict[str, str], timeout: float) -> int:
    """Runs the emulator, whose log may have hundreds of megabytes, and counts on the way."""
    said: list[str] = []

    def lines(log: Iterable[str]) -> Iterable[str]:
        for line in log:
            if not line.startswith(("Trace", "0x")):
                said[:] = [*said[-1:], line]
            yield line

    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        env=environment,
    ) as process:
        timer = threading.Timer(timeout, process.kill)
        timer.start()
        try:
            executed = executed_instructions(lines(process.stderr or ()))
            status = process.wait()
        finally:
            late = not timer.is_alive()
            timer.cancel()
            process.kill()
    if late:
        raise OSError(f"{name}: counting took longer than {timeout} s.")
    if status:
        reason = said[-1].strip() if status > 0 and said else ending(status)
        raise OSError(f"{name}: the emulated LiteRT fails: {reason}")
    return executed

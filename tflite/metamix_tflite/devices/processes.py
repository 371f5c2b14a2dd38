"""Programs that a device's code runs: to their end, in a time that is given."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path


def run_program(
    command: Sequence[str | Path],
    timeout: float,
    late: str,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs a program without input and keeps what it prints.

    Args:
      command: the program and its arguments.
      timeout: seconds that it may take.
      late: what to say where it takes longer.
      environment: its variables; None for those of this process.

    Raises:
      OSError: it takes longer, or cannot be started.
    """
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env=environment,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as error:
        raise OSError(late) from error


def ending(status: int) -> str:
    """How a program ended that said nothing else."""
    return f"ended by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"

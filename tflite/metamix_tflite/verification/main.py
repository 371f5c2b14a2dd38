"""The entry point of `metamix-verify`, which `command` describes."""

from __future__ import annotations

import re
import sys
from typing import NoReturn

# 1.0 has no schema of .tflite files, and 1.1.0's interpreter takes no number of threads.
LEAST = (1, 1, 1)


def run() -> None:
    """Runs the command; a fault, even of the environment, is reported in one line."""
    try:
        require_litert()
        from metamix_tflite.verification import command
    except ImportError as error:
        least = ".".join(map(str, LEAST))
        _end(f"expected ai-edge-litert {least} or newer and a NumPy that it runs with: {error}")
    try:
        sys.exit(command.main(command.parse_flags(sys.argv[1:])))
    except (OSError, TypeError, ValueError) as error:
        _end(error_text(error))


def require_litert() -> None:
    """Raises ImportError unless there is a LiteRT that is new enough."""
    from ai_edge_litert import __version__ as found

    numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", found)
    if numbers is None or tuple(map(int, numbers.groups())) < LEAST:
        raise ImportError(f"found {found}")


def error_text(error: Exception) -> str:
    """What an error says, without the number that the operating system gives it."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.strerror}: {str(error.filename)!r}"
    return str(error)


def _end(message: str) -> NoReturn:
    sys.exit(f"metamix-verify: {' '.join(message.split())}")


if __name__ == "__main__":
    run()

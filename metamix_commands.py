"""Entry points of the commands that import TensorFlow.

They stand outside `keras_metamix`, which imports TensorFlow: before that they turn off its notes on
this machine's CPU and GPUs, unless TF_CPP_MIN_LOG_LEVEL is set.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from collections.abc import Iterator

_LEVEL = "TF_CPP_MIN_LOG_LEVEL"


def _run(launcher: str) -> None:
    silenced = contextlib.nullcontext() if _LEVEL in os.environ else _silenced()
    os.environ.setdefault(_LEVEL, "2")
    with silenced:  # some notes heed no level
        module = importlib.import_module(f"keras_metamix.launch.{launcher}")
    module.run()


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Drops what C++ writes to stderr; an exception of Python's is shown behind it."""
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


train = functools.partial(_run, "train")
doctor = functools.partial(_run, "doctor")
export = functools.partial(_run, "export")
benchmark = functools.partial(_run, "benchmark")
profile = functools.partial(_run, "profile")
report = functools.partial(_run, "report")

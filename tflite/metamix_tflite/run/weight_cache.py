"""XNNPACK's cache of packed weights, bound to the file that it was made from.

XNNPACK lays weights out anew when a file is loaded, for each signature by itself. With a cache,
signatures share what is equal, and a cache file spares the next process the work, and the memory.
LiteRT does not ask whose weights a cache file holds: a second model of the same structure, opened
with it, runs with the first one's. So its name is made here, of all that it depends on.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path

IN_MEMORY = ":memory"  # LiteRT's own word
WeightCache = str | os.PathLike[str] | None


@contextlib.contextmanager
def packed_by(weight_cache: WeightCache, content: bytes) -> Iterator[str]:
    """The path that LiteRT is to be given while it loads a file.

    Args:
      weight_cache: `IN_MEMORY`, a folder of cache files, or None for no cache.
      content: bytes of the .tflite.

    Raises:
      NotADirectoryError: no such folder.
      OSError: no cache file of this .tflite is in it, and none can be made.
    """
    if weight_cache is None or weight_cache == IN_MEMORY:
        yield "" if weight_cache is None else IN_MEMORY
        return
    folder = Path(weight_cache)
    if not folder.is_dir():
        raise NotADirectoryError(
            f"weight_cache: expected {IN_MEMORY!r} or a folder, found no folder {folder}."
        )
    path = folder / cache_name(content)
    if path.is_file():
        yield str(path)
        return
    # A name in a folder of its own until it is whole: other processes may look for it.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".packing-") as scratch:
        made = Path(scratch, "weights")
        yield str(made)
        if not made.is_file():
            raise OSError(
                f"weight_cache: LiteRT wrote no packed weights of this file to {folder}: the disk "
                "is full, as its log says then, or XNNPACK takes none of them. It runs without."
            )
        made.replace(path)


def cache_name(content: bytes) -> str:
    """The name of a .tflite's cache file: its SHA-256, LiteRT's version, and the CPU's kind.

    Which layout XNNPACK packs follows from its version and from the instructions of the CPU.
    """
    cpu = hashlib.sha256(_cpu().encode()).hexdigest()[:16]
    version = importlib.metadata.version("ai-edge-litert")
    return f"{hashlib.sha256(content).hexdigest()}-litert{version}-{cpu}.xnnpack"


def _cpu() -> str:
    """What tells CPUs apart that have different instructions."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip().lower() in ("flags", "features"):
                return f"{platform.machine()} {value.strip()}"
    return f"{platform.machine()} {platform.processor()}"

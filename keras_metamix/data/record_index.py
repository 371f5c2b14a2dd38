"""Where each record of TFRecord files begins, so that any record can be read without the others.

The index of ImageNet's 1,281,167 training images takes 1,281,167 small reads (of each record's
length) and 10 MB, so it is made once and kept in a file. It holds positions, no images.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_metamix.files import written_whole

# A record is its length (uint64, little endian), a checksum, the data and another checksum.
_LENGTH_BYTES, _CHECKSUM_BYTES = 8, 4
_SCANNERS = 16


@dataclasses.dataclass(frozen=True)
class RecordIndex:
    """Positions of records in files.

    Attributes:
      files: the TFRecord files.
      shards: int32 of shape (records,), the number of each record's file.
      offsets: int64 of shape (records,), bytes from the file's begin to the record.
    """

    files: tuple[str, ...]
    shards: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets)


def record_index(
    files: Sequence[str | os.PathLike[str]], counts: Sequence[int], cache: Path
) -> RecordIndex:
    """The index of some TFRecord files, from `cache` where that is of these files.

    A cache is of these files when their names and sizes are the same; any other is replaced.

    Args:
      files: uncompressed TFRecord files.
      counts: how many records each file has to hold.
      cache: the .npz file to keep the index in; its folder is made if need be.

    Raises:
      OSError: a file cannot be read, or the cache cannot be written; names it.
      ValueError: a file does not hold as many records as it should, or is cut short; names it.
    """
    paths = [Path(file) for file in files]
    names = np.array([path.name for path in paths])
    sizes = np.array([path.stat().st_size for path in paths], np.int64)
    offsets = _cached(cache, names, sizes, sum(counts))
    if offsets is None:
        with concurrent.futures.ThreadPoolExecutor(_SCANNERS) as pool:
            offsets = np.concatenate(list(pool.map(_scan, paths, counts)))
        _save(cache, names, sizes, offsets)
    shards = np.repeat(np.arange(len(paths), dtype=np.int32), counts)
    return RecordIndex(tuple(map(str, paths)), shards, offsets)


def _scan(path: Path, count: int) -> np.ndarray:
    """The offsets of a file's records."""
    offsets, position, size = [], 0, path.stat().st_size
    with path.open("rb", buffering=0) as file:
        while position < size:
            length = int.from_bytes(os.pread(file.fileno(), _LENGTH_BYTES, position), "little")
            offsets.append(position)
            position += _LENGTH_BYTES + _CHECKSUM_BYTES + length + _CHECKSUM_BYTES
    if position != size or len(offsets) != count:
        cut = " or a part of one" if position != size else ""
        raise ValueError(
            f"{path}: expected {count} records, found {len(offsets)}{cut} in {size} bytes."
        )
    return np.array(offsets, np.int64)


def _cached(cache: Path, names: np.ndarray, sizes: np.ndarray, count: int) -> np.ndarray | None:
    """The offsets in the cache; None where it is not there or of other files."""
    if not cache.is_file():
        return None
    with np.load(cache, allow_pickle=False) as kept:
        same = np.array_equal(kept["names"], names) and np.array_equal(kept["sizes"], sizes)
        return kept["offsets"] if same and len(kept["offsets"]) == count else None


def _save(cache: Path, names: np.ndarray, sizes: np.ndarray, offsets: np.ndarray) -> None:
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(cache) as temporary:
            np.savez(temporary, names=names, sizes=sizes, offsets=offsets)
    except PermissionError as error:
        raise PermissionError(
            f"{cache}: the index of the records cannot be written there; name another folder "
            "(index_dir, in a config data.index_dir)."
        ) from error

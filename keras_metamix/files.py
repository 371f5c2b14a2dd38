"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def require_folder(flag: str, folder: Path) -> None:
    """Checks that files can be written into a folder, which is there or can be made.

    Raises:
      OSError: it is a file or lies in one, or may not be written; names the flag.
    """
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(f"{flag}: expected a folder {folder}, found the file {place}.")
    if not os.access(place, os.W_OK):
        raise PermissionError(f"{flag}: expected a folder to write to, found {place}.")


@contextlib.contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a temporary path beside `path`, which takes its name when the block ends well.

    The suffix is that of `path`. An error leaves `path` as it was and no temporary file.
    """
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)

"""What a file holds beside graph, weights and declaration: metadata for apps, and associated files.

Tools that know nothing of our declaration add these, too, and pack the file anew while they do.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping

DESCRIPTION = "keras-metamix"  # of every file of `convert`
# What zipfile raises for an archive that is none, or not as it says.
_DAMAGE = (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, EOFError, struct.error)


def attached(flat: bytes, metadata: Mapping[str, bytes], description: str) -> dict[str, int]:
    """A CRC-32 of each part, by what it is and its name.

    Args:
      flat: the file; associated files are a ZIP archive at its end.
      metadata: the contents of its metadata entries, without those of `convert`'s own.
      description: of the flatbuffer.
    """
    found = {f"metadata {name!r}": zlib.crc32(content) for name, content in metadata.items()}
    found["description"] = zlib.crc32(description.encode())
    return found | {f"file {name!r}": crc for name, crc in _archived(flat).items()}


def differences(declared: Mapping[str, int], found: Mapping[str, int]) -> list[str]:
    """What became of the parts that a file declares; never empty: bytes at least were moved."""
    changes = [f"{part} was added" for part in found if part not in declared]
    changes += [f"{part} was removed" for part in declared if part not in found]
    changes += [f"{p} was replaced" for p, crc in declared.items() if found.get(p, crc) != crc]
    return changes or ["its bytes lie in other places"]


def _archived(flat: bytes) -> dict[str, int]:
    """CRC-32 of each file in the archive at the end, as its directory has it."""
    content = io.BytesIO(flat)
    try:
        if not zipfile.is_zipfile(content):
            return {}
        with zipfile.ZipFile(content) as archive:
            return {entry.filename: entry.CRC for entry in archive.infolist()}
    except _DAMAGE:
        return {"(an archive that cannot be read)": 0}

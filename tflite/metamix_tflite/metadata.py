"""What a file of ours declares about itself, so that any later change of it is noticed."""

from __future__ import annotations

import zlib

import numpy as np

METADATA_NAME = "keras_metamix"


def checksum(array: np.ndarray) -> int:
    """CRC-32 of an array's bytes."""
    return zlib.crc32(np.ascontiguousarray(array).tobytes())

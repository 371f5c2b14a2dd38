"""Names and numbers of the .tflite format that reading and writing share."""

from __future__ import annotations

import zlib

import numpy as np
from ai_edge_litert import schema_py_generated as schema

TensorType = schema.TensorType
Op = schema.BuiltinOperator
Fused = schema.ActivationFunctionType
PADDING = {"same": schema.Padding.SAME, "valid": schema.Padding.VALID}

FILE_IDENTIFIER = b"TFL3"
DEFAULT_SIGNATURE = "serving_default"  # of a file with one network


def pack_int4(values: np.ndarray) -> np.ndarray:
    """Packs integers of [-8, 7] two to a byte, the first in the low half."""
    flat = values.astype(np.int8).reshape(-1)
    if flat.size and (flat.min() < -8 or flat.max() > 7):
        raise ValueError(
            f"INT4 holds integers of [-8, 7], found [{int(flat.min())}, {int(flat.max())}]."
        )
    nibbles = np.append(flat, np.zeros(flat.size % 2, np.int8)).view(np.uint8) & 0x0F
    return nibbles[0::2] | (nibbles[1::2] << 4)


def unpack_int4(packed: np.ndarray, size: int) -> np.ndarray:
    """The inverse of `pack_int4`: `size` int8 values."""
    packed = packed.view(np.uint8)
    nibbles = np.stack([packed & 0x0F, packed >> 4], axis=-1).reshape(-1)[:size]
    return np.where(nibbles > 7, nibbles.astype(np.int16) - 16, nibbles).astype(np.int8)


def checksum(array: np.ndarray) -> int:
    """CRC-32 of an array's bytes."""
    return zlib.crc32(np.ascontiguousarray(array).tobytes())

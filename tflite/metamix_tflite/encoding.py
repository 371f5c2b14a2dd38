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


def packed(values: np.ndarray, bits: int) -> np.ndarray:
    """Integers of 2 or 4 bits, four or two to a byte, the first in the lowest bits."""
    flat, high = values.astype(np.int8).reshape(-1), 2 ** (bits - 1) - 1
    if flat.size and (flat.min() < -high - 1 or flat.max() > high):
        raise ValueError(
            f"INT{bits} holds integers of [{-high - 1}, {high}], found [{int(flat.min())}, "
            f"{int(flat.max())}]."
        )
    share = 8 // bits
    filled = np.append(flat, np.zeros(-flat.size % share, np.int8)).view(np.uint8)
    places = (filled & (2**bits - 1)).reshape(-1, share) << _shifts(bits)
    return np.bitwise_or.reduce(places, axis=1)


def unpacked(content: np.ndarray, bits: int, size: int) -> np.ndarray:
    """The inverse of `packed`: `size` int8 values."""
    codes = ((content.view(np.uint8)[:, None] >> _shifts(bits)) & (2**bits - 1)).reshape(-1)[:size]
    return np.where(codes >> (bits - 1), codes.astype(np.int16) - 2**bits, codes).astype(np.int8)


def _shifts(bits: int) -> np.ndarray:
    return np.arange(0, 8, bits).astype(np.uint8)


def checksum(array: np.ndarray) -> int:
    """CRC-32 of an array's bytes."""
    return zlib.crc32(np.ascontiguousarray(array).tobytes())

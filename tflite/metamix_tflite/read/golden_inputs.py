"""Inputs that any machine makes anew, so that a file holds the expected outputs alone.

Image `number` of input `index`, of shape (height, width, channels), is the sum of four layers of
random blocks of 256, 16, 4 and 1 pixels, a layer having one random byte for each block and channel:
the largest give each image a colour, the next ones shapes, single pixels a texture. The sum, 0 to
1020, becomes a code of the input's INT8 grid:

    code = clip((sum - 510) // 2, -128, 127)

The random bytes are those of a Weyl sequence, mixed: byte n = 0, 1, 2, ... of stream s is

    x = (n + 1 + s * 2^40) * G mod 2^64,    x = (x xor (x >> 32)) * G mod 2^64
    byte = (x xor (x >> 32)) >> 56,         G = 0x9E3779B97F4A7C15 (2^64 / golden ratio)

with s = 256 * number + 4 * index + layer. All of it is integer arithmetic, without a random number
generator whose stream may change from one NumPy to the next. Any other shape has blocks along all
but its last dimension.
"""

from __future__ import annotations

import numpy as np

GENERATOR = "blocks-1"  # what a file names; another algorithm gets another name
_BLOCKS = (256, 16, 4, 1)
_WEYL = np.uint64(0x9E3779B97F4A7C15)
_HALF, _TOP = np.uint64(32), np.uint64(56)


def golden_codes(shape: tuple[int, ...], number: int, index: int = 0) -> np.ndarray:
    """One input of a file.

    Args:
      shape: of the input, without the batch.
      number: of the golden input, from 0.
      index: of the input, for networks that have several.

    Returns:
      int8 codes of shape (1, *shape).
    """
    total = np.zeros(shape, np.int64)
    for layer, block in enumerate(_BLOCKS):
        blocks = [*(-(-size // block) for size in shape[:-1]), shape[-1]]
        pixels = _random_bytes(int(np.prod(blocks)), 256 * number + 4 * index + layer)
        pixels = pixels.reshape(blocks)
        for axis in range(len(shape) - 1):
            pixels = pixels.repeat(block, axis)
        total += pixels[tuple(slice(size) for size in shape)]
    codes = np.clip((total - 510) // 2, -128, 127)
    return codes.astype(np.int8)[np.newaxis]


def dequantized(codes: np.ndarray, scale: float, zero_point: int) -> np.ndarray:
    """The float32 values that codes stand for; QUANTIZE gives exactly the codes again."""
    return (codes.astype(np.int32) - zero_point).astype(np.float32) * np.float32(scale)


def as_bytes(codes: np.ndarray) -> np.ndarray:
    """The bytes that codes stand for, 0 to 255; QUANTIZE gives exactly the codes again."""
    return (codes.astype(np.int32) + 128).astype(np.uint8)


def _random_bytes(count: int, stream: int) -> np.ndarray:
    """`count` integers of [0, 255], int64."""
    start = 1 + (stream << 40)
    x = np.arange(start, start + count, dtype=np.uint64) * _WEYL
    x = (x ^ (x >> _HALF)) * _WEYL
    return ((x ^ (x >> _HALF)) >> _TOP).astype(np.int64)

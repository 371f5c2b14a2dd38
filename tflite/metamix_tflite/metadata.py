"""What a file of ours declares about itself, so that a later change of it is noticed."""

from __future__ import annotations

import json
import zlib
from typing import Any

import numpy as np

from metamix_tflite.containers import check_container

METADATA_NAME = "keras_metamix"
FORMAT = 1
_LARGEST = 1 << 24  # bytes of JSON, enough for 50,000 layers
_FIELDS = {
    "layers": {
        "layer": str,
        "weight_bits": int,
        "container": str,
        "weights": int,
        "weight_scales": int,
        "bias": int,
    },
    "tensors": {"scale": float, "zero_point": int, "activation": str},
}


def checksum(array: np.ndarray) -> int:
    """CRC-32 of an array's bytes."""
    return zlib.crc32(np.ascontiguousarray(array).tobytes())


def encode(declared: dict[str, Any]) -> bytes:
    """A declaration as compressed JSON."""
    text = json.dumps({"format": FORMAT, **declared}, separators=(",", ":"))
    return zlib.compress(text.encode(), 9)


def decode(content: bytes) -> dict[str, Any]:
    """The inverse of `encode`.

    Raises:
      ValueError: a declaration that `encode` did not write.
    """
    stream = zlib.decompressobj()
    try:
        declared = json.loads(stream.decompress(content, _LARGEST))
    except (zlib.error, ValueError, RecursionError) as error:
        raise ValueError(f"its declaration is damaged ({error})") from error
    if not stream.eof or not isinstance(declared, dict) or declared.get("format") != FORMAT:
        raise ValueError(f"its declaration is not of format {FORMAT}")
    check_container(declared.get("weight_container", ""))
    for section, fields in _FIELDS.items():
        entries = declared.get(section)
        if not isinstance(entries, dict):
            raise ValueError(f"its declaration has no {section}")
        for name, entry in entries.items():
            if not isinstance(entry, dict) or {k: type(v) for k, v in entry.items()} != fields:
                raise ValueError(f"its declaration of {name!r} has other fields than {[*fields]}")
    return declared

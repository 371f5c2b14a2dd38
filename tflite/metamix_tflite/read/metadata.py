"""What a file of ours declares about itself: bits, BOPs, integers, origin, expected outputs."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Collection
from typing import Any

from metamix_tflite.read.golden_inputs import GENERATOR
from metamix_tflite.read.interface import check_structure, leaves
from metamix_tflite.targets import declared_target

METADATA_NAME = "keras_metamix"
FORMAT, POINTS_FORMAT = 3, 4  # of one network, and of several by their signatures' names
MOST_GOLDEN = 64  # golden inputs of a file
_LARGEST = 1 << 24  # bytes of JSON, enough for 50,000 layers
_FIELDS = {
    "layers": {
        "layer": str,
        "activation_bits": int,
        "weight_bits": int,
        "container": str,
        "weights": int,
        "weight_scales": int,
        "bias": int,
    },
    "tensors": {"scale": float, "zero_point": int, "activation": str},
}


def encode(declared: dict[str, Any]) -> bytes:
    """A declaration as compressed JSON.

    Args:
      declared: "target", "weight_container", "io", "versions" and "run", maybe "attached" (see
        there), with "bops", "layers", "tensors", "outputs" (their structure, see `Interface`) and
        maybe "golden" of the file's signature, or with these of several by name as "signatures".

    Raises:
      ValueError: more than `decode` reads.
    """
    number = POINTS_FORMAT if "signatures" in declared else FORMAT
    text = json.dumps({"format": number, **declared}, separators=(",", ":"))
    if len(text) > _LARGEST:
        raise ValueError(f"A file declares at most {_LARGEST:,} bytes, found {len(text):,}.")
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
    known = (FORMAT, POINTS_FORMAT)
    if not stream.eof or not isinstance(declared, dict) or declared.get("format") not in known:
        raise ValueError(f"its declaration is not of format {FORMAT} or {POINTS_FORMAT}")
    declared_target(declared)
    for name in ("versions", "run"):
        if not isinstance(declared.get(name), dict):
            raise ValueError(f"its declaration has no {name}")
    parts = declared.get("attached", {})
    if not isinstance(parts, dict) or not all(type(crc) is int for crc in parts.values()):
        raise ValueError("its declaration of what is attached is damaged")
    if declared["format"] == FORMAT:
        _check_sections(declared)
        return declared
    signatures = declared.get("signatures")
    if not isinstance(signatures, dict):
        raise ValueError("its declaration has no signatures")
    for name, entry in signatures.items():
        _check_sections(entry, f" of {name!r}")
    return declared


def of_signatures(declared: dict[str, Any], names: Collection[str]) -> dict[str, dict[str, Any]]:
    """What a file declares of each of its signatures, {} where it declares nothing.

    Raises:
      ValueError: the file has other signatures than it declares.
    """
    if "signatures" not in declared:
        if declared and len(names) != 1:
            raise ValueError(f"its declaration is of one signature, found {sorted(names)}")
        return dict.fromkeys(names, declared)
    shared = {key: value for key, value in declared.items() if key != "signatures"}
    points = declared["signatures"]
    if set(points) != set(names):
        raise ValueError(f"its declaration is of {sorted(points)}, found {sorted(names)}")
    return {name: shared | points[name] for name in names}


def _check_sections(declared: Any, of: str = "") -> None:
    """Raises ValueError for a signature's declaration that `encode` did not write."""
    if not isinstance(declared, dict) or type(declared.get("bops")) is not int:
        raise ValueError(f"its declaration{of} has no BOPs")
    for section, fields in _FIELDS.items():
        entries = declared.get(section)
        if not isinstance(entries, dict):
            raise ValueError(f"its declaration{of} has no {section}")
        for name, entry in entries.items():
            if not isinstance(entry, dict) or {k: type(v) for k, v in entry.items()} != fields:
                raise ValueError(f"its declaration of {name!r} has other fields than {[*fields]}")
    outputs = declared.get("outputs")
    check_structure(outputs, len([*leaves(outputs)]))
    if "golden" in declared:
        _check_golden(declared["golden"])


def _check_golden(golden: Any) -> None:
    """Raises ValueError unless `golden_outputs` may have written this."""
    try:
        number, count = golden["images"], len(golden["outputs"])
        if golden["inputs"] != GENERATOR:
            raise ValueError(f"of generator {golden['inputs']!r}, expected {GENERATOR!r}")
        if type(number) is not int or not 1 <= number <= MOST_GOLDEN or not count:
            raise ValueError(f"of {number!r} inputs and {count} outputs")
        for output in golden["outputs"]:
            base64.b64decode(output["codes"], validate=True)
            if type(output["stride"]) is not int or output["stride"] < 1:
                raise ValueError(f"of every {output['stride']!r}th value")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"its declaration of golden outputs is damaged ({error})") from error

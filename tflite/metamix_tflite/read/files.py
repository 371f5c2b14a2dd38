"""Reads a .tflite into Python, and refuses what is not well-formed graphs."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from typing import Any

from metamix_tflite.encoding import FILE_IDENTIFIER
from metamix_tflite.file_graph import (
    CompiledFileError,
    FileGraph,
    VerificationError,
    check_order,
    named_signature,
)
from metamix_tflite.read.attached import differences
from metamix_tflite.read.fields import FileReader
from metamix_tflite.read.file_hash import (
    contents_hash,
    declared_hashes,
    file_hash,
    with_hashes,
)
from metamix_tflite.read.interface import Interface


def require_tflite(flat: bytes) -> None:
    """Raises unless `flat` begins as a .tflite does.

    Raises:
      TypeError: not bytes.
      VerificationError: bytes of something else.
    """
    if not isinstance(flat, bytes | bytearray):
        found = type(flat).__name__
        if isinstance(flat, str | os.PathLike):
            path = repr(os.fspath(flat))
            found = f"the path {path}: read the file first, with pathlib.Path({path}).read_bytes()"
        raise TypeError(f"Expected the bytes of a .tflite, found {found}.")
    if flat[4:8] != FILE_IDENTIFIER:
        raise VerificationError(
            f"Expected the bytes of a .tflite (identifier TFL3 at byte 4), found "
            f"{len(flat)} bytes that begin with {bytes(flat[:8])!r}."
        )


def read_file(flat: bytes, declared: bool = False) -> FileGraph:
    """The graph of a .tflite of one signature; see `read_signatures`.

    Raises:
      TypeError: not bytes.
      VerificationError: not a readable .tflite of one well-formed graph, or not `convert`'s.
    """
    graphs = read_signatures(flat, declared)
    if len(graphs) != 1:
        raise VerificationError(f"Expected a file of one signature, found {[*graphs]}.")
    return next(iter(graphs.values()))


def read_signatures(flat: bytes, declared: bool = False) -> dict[str, FileGraph]:
    """The graph of each signature of a .tflite, in the order of its subgraphs.

    A file without signatures counts as one of "serving_default".

    Args:
      flat: bytes of a .tflite.
      declared: whether it has to declare its bit-widths, as `convert`'s files do.

    Raises:
      TypeError: not bytes.
      VerificationError: not a readable .tflite of well-formed graphs, or not `convert`'s.
    """
    with _readable(flat) as reader:
        graphs = reader.graphs()
    if declared and not all(graph.metadata for graph in graphs.values()):
        raise VerificationError("The file declares no bit-widths: it was not written by convert.")
    for name, graph in graphs.items():
        with named_signature(name, graphs):
            check_order(graph)
    return graphs


def read_operating_points(flat: bytes) -> dict[str, dict[str, Any]]:
    """What a .tflite declares of its operating points; no tensor is read.

    Returns:
      The declaration by signature, {} for a file without operating points.

    Raises:
      TypeError: not bytes.
      VerificationError: not a readable .tflite.
    """
    with _readable(flat) as reader:
        return reader.operating_points()


def read_interface(flat: bytes, signature: str | None = None) -> Interface:
    """Names of a signature's inputs and outputs, and the outputs' structure.

    Args:
      flat: bytes of a .tflite.
      signature: its name; None for the only one.

    Raises:
      TypeError: not bytes.
      ValueError: not a readable .tflite; no such signature, or several and no name.
    """
    with _readable(flat) as reader:
        names = reader.names()
        if signature in names or (signature is None and len(names) == 1):
            return reader.interface(signature or names[0])
    raise _unknown_signature(names, signature)


def small_tensors(flat: bytes) -> dict[str, str]:
    """The types of all tensors that have fewer than 8 bits, by name.

    Raises:
      TypeError: not bytes.
      VerificationError: not a readable .tflite.
    """
    with _readable(flat) as reader:
        return reader.small_tensors()


def changes(flat: bytes) -> list[str]:
    """What others changed in a .tflite of `convert` that computes and declares what it did.

    Returns:
      A phrase for each part, such as "metadata 'TFLITE_METADATA' was added"; [] for a file that is,
      byte for byte, what `convert` wrote.

    Raises:
      TypeError: not bytes.
      VerificationError: not a readable .tflite, one without hashes, or one whose graph, weights or
        declaration were changed.
    """
    with _readable(flat) as reader:
        place = reader.hash_place()
        (expected, contents), found = declared_hashes(flat, place), file_hash(flat, place)
        if found == expected:
            return []
        if _contents(reader) == contents:
            return differences(reader.declaration().get("attached", {}), reader.attached())
    raise VerificationError(
        f"The file was changed since it was written: SHA-256 declared {expected.hex()}, found "
        f"{found.hex()}."
    )


def require_unchanged(flat: bytes) -> None:
    """Raises unless a .tflite is, byte for byte, what `convert` wrote; see `changes`."""
    found = changes(flat)
    if found:
        raise VerificationError(
            f"The file was packed anew since it was written: {', '.join(found)}. It computes and "
            "declares what it did: metamix-verify replays it."
        )


def hashed(flat: bytes) -> bytes:
    """The same .tflite with its hashes set anew; it has to have them.

    Raises:
      VerificationError: not a readable .tflite, or one without hashes.
    """
    with _readable(flat) as reader:
        place, contents = reader.hash_place(), _contents(reader)
    return with_hashes(bytes(flat), place, contents)


def _contents(reader: FileReader) -> bytes:
    return contents_hash(reader.graphs(), reader.declaration_bytes() or b"")


def only_signature(flat: bytes, name: str | None) -> bytes:
    """The same .tflite with one subgraph, a signature's.

    LiteRT's interpreter prepares all subgraphs, and tells of the first one's operators alone.

    Args:
      flat: bytes of a .tflite.
      name: the signature; None for the only one.

    Raises:
      TypeError: not bytes.
      ValueError: no such signature, or several and no name.
    """
    with _readable(flat) as reader:
        names = reader.names()
        if len(names) == 1 and name in (None, *names):
            return bytes(flat)
        if name in names:
            return reader.only(name)
    raise _unknown_signature(names, name)


def _unknown_signature(names: list[str], found: str | None) -> ValueError:
    return ValueError(f"signature: expected one of {names}, found {found!r}.")


@contextlib.contextmanager
def _readable(flat: bytes) -> Iterator[FileReader]:
    require_tflite(flat)
    with _named_errors():
        reader = FileReader(bytes(flat))
        compiler = reader.compiler()
    if compiler:
        raise CompiledFileError(
            f"This file was compiled by {compiler}, where alone it runs: verify and measure the "
            ".tflite that it was made from."
        )
    with _named_errors():
        yield reader


@contextlib.contextmanager
def _named_errors() -> Iterator[None]:
    """Tells in our words what cannot be read."""
    try:
        yield
    except KeyError as error:
        raise VerificationError(f"The .tflite cannot be read: unknown code {error}.") from error
    except (TypeError, ValueError, struct.error) as error:
        # What the flatbuffer's accessors raise for offsets that lead outside it, and our own.
        raise VerificationError(f"The .tflite cannot be read: {error}.") from error

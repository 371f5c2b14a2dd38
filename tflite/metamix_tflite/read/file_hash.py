"""The hashes that a file holds of itself, by which any later change of it is noticed.

The first covers every byte of the file; its own bytes, and those of the second, count as zeros. The
second covers what the file means: the graph of each signature, and the declaration. It tells a file
that others packed anew, with metadata or files of theirs, from one that computes something else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from metamix_tflite.file_graph import FileGraph, FileOperator, FileTensor

HASH_NAME = "keras_metamix.sha256"  # of the metadata entry that holds both
_SIZE = 32
HASH_SIZE = 2 * _SIZE
# Stands in the file until the hashes are known: bytes that no tensor of it holds by chance.
PLACEHOLDER = b"".join(hashlib.sha256(f"{HASH_NAME}{i}".encode()).digest() for i in range(2))


def file_hash(flat: bytes, place: int) -> bytes:
    """SHA-256 of a file whose hashes begin at byte `place`."""
    digest = hashlib.sha256(flat[:place])
    digest.update(bytes(HASH_SIZE))
    digest.update(flat[place + HASH_SIZE :])
    return digest.digest()


def contents_hash(graphs: Mapping[str, FileGraph], declaration: bytes) -> bytes:
    """SHA-256 of what a file means, wherever its parts lie.

    Args:
      graphs: its signatures by name, in the order of their subgraphs.
      declaration: as the file holds it, compressed.
    """
    digest = hashlib.sha256(declaration)
    for name, graph in graphs.items():
        ends = graph.inputs, graph.outputs, graph.input_names, graph.output_names
        digest.update(repr((name, ends, len(graph.tensors), len(graph.operators))).encode())
        for part in (*map(_tensor, graph.tensors), *map(_operator, graph.operators)):
            for field in part:
                content = field if isinstance(field, bytes) else repr(field).encode()
                digest.update(len(content).to_bytes(8, "little") + content)
    return digest.digest()


def _tensor(tensor: FileTensor) -> tuple[Any, ...]:
    constant = b"" if tensor.data is None else _bytes(tensor.data)
    grid = _bytes(tensor.scales), _bytes(tensor.zero_points), tensor.quantized_dimension
    return tensor.name, tensor.shape, tensor.type, *grid, constant


def _operator(operator: FileOperator) -> tuple[Any, ...]:
    return operator.op, operator.version, operator.inputs, operator.outputs, operator.options


def _bytes(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def declared_hashes(flat: bytes, place: int) -> tuple[bytes, bytes]:
    """The hashes that begin at byte `place`: of the file, and of its contents."""
    found = bytes(flat[place : place + HASH_SIZE])
    return found[:_SIZE], found[_SIZE:]


def with_hashes(flat: bytes, place: int, contents: bytes) -> bytes:
    """The same file with its hashes at byte `place`; `contents` is the second."""
    return flat[:place] + file_hash(flat, place) + contents + flat[place + HASH_SIZE :]

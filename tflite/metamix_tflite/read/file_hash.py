"""The SHA-256 that a file holds of itself, by which any later change of it is noticed.

It covers every byte of the file: graph, weights, declaration. Its own 32 bytes count as zeros.
"""

from __future__ import annotations

import hashlib

HASH_NAME = "keras_metamix.sha256"  # of the metadata entry that holds it
HASH_SIZE = 32
# Stands in the file until the hash is known: bytes that no tensor of it holds by chance.
PLACEHOLDER = hashlib.sha256(HASH_NAME.encode()).digest()


def file_hash(flat: bytes, place: int) -> bytes:
    """SHA-256 of a file whose hash begins at byte `place`."""
    digest = hashlib.sha256(flat[:place])
    digest.update(bytes(HASH_SIZE))
    digest.update(flat[place + HASH_SIZE :])
    return digest.digest()


def with_hash(flat: bytes, place: int) -> bytes:
    """The same file with its hash at byte `place`."""
    return flat[:place] + file_hash(flat, place) + flat[place + HASH_SIZE :]

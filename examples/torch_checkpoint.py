"""Reads a PyTorch checkpoint of plain tensors into NumPy: no torch, and no code of the file.

A checkpoint is a pickle, and a pickle may call any function that it names. Here it may name those
of `_GLOBALS` and no others. The format is the one of torch.save before 1.6: pickles of a magic
number, the protocol, the machine, the state and the names of its storages, then the raw storages.
"""

from __future__ import annotations

import collections
import pickle
from typing import Any, BinaryIO

import numpy as np

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_DTYPES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
}


class _Tensor:
    """A view of a storage, as the pickle describes it."""

    def __init__(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any):
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides


_GLOBALS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
    # Names, not classes: there is nothing to call in them.
    **{("torch", name): name for name in _DTYPES},
}


class _Unpickler(pickle.Unpickler):
    """Resolves the globals of `_GLOBALS`, and storages to (type, key, number of values)."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _GLOBALS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is refused") from None

    def persistent_load(self, pid: Any) -> tuple[str, str, int]:
        match pid:
            case ("storage", str(kind), str(key), str(), int(count), None) if kind in _DTYPES:
                return kind, key, count
        raise pickle.UnpicklingError(f"it refers to {pid!r}, expected a storage")


def read_checkpoint(file: BinaryIO, name: str) -> dict[str, np.ndarray]:
    """The arrays of a state dict.

    Args:
      file: the checkpoint, at its start.
      name: what messages call it.

    Raises:
      ValueError: not such a checkpoint, one that names anything but tensors, or one cut short.
    """
    if file.read(2) == b"PK":
        raise ValueError(f"{name}: expected a checkpoint of torch < 1.6, found a zip archive.")
    file.seek(0)
    try:
        return _read(file)
    except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, KeyError) as error:
        raise ValueError(f"{name} is no checkpoint of plain tensors: {error}.") from error
    except (TypeError, ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{name} is a damaged checkpoint: {error}") from error


def _read(file: BinaryIO) -> dict[str, np.ndarray]:
    magic, protocol, machine = (_Unpickler(file).load() for _ in range(3))
    if (magic, protocol) != (_MAGIC, _PROTOCOL) or not machine.get("little_endian"):
        raise ValueError(f"expected protocol {_PROTOCOL}, little-endian, found {protocol}.")
    state, keys = _Unpickler(file).load(), _Unpickler(file).load()
    if not all(isinstance(tensor, _Tensor) for tensor in state.values()):
        raise ValueError("expected a state dict of tensors.")
    kinds = {tensor.storage[1]: tensor.storage for tensor in state.values()}
    storages = {key: _read_storage(file, *kinds[key]) for key in keys}
    return {
        name: _view(storages[tensor.storage[1]], tensor, name) for name, tensor in state.items()
    }


def _read_storage(file: BinaryIO, kind: str, key: str, count: int) -> np.ndarray:
    found = int.from_bytes(file.read(8), "little")
    values = file.read(count * _DTYPES[kind].itemsize) if found == count else b""
    if len(values) != count * _DTYPES[kind].itemsize:
        raise ValueError(f"storage {key}: expected {count} values, found fewer or another number.")
    return np.frombuffer(values, _DTYPES[kind])


def _view(storage: np.ndarray, tensor: _Tensor, name: str) -> np.ndarray:
    """A copy of what a tensor shows of its storage; strides count values."""
    shape, strides, offset = tensor.shape, tensor.strides, tensor.offset
    numbers = (offset, *shape, *strides)
    if len(shape) != len(strides) or any(type(n) is not int or n < 0 for n in numbers):
        raise ValueError(f"{name!r}: expected counts, found {shape}, {strides} and {offset}.")
    # as_strided checks nothing: this keeps it inside the storage.
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    if 0 not in shape and last >= storage.size:
        raise ValueError(f"{name!r}: reaches value {last} of a storage of {storage.size}.")
    if 0 in shape:
        return np.zeros(shape, storage.dtype)
    size = storage.itemsize
    return np.lib.stride_tricks.as_strided(
        storage[offset:], shape, [stride * size for stride in strides]
    ).copy()

"""Reads a .tflite into plain Python: tensors with their quantization, operators with activations."""

from __future__ import annotations

import dataclasses
import json
import struct
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from metamix_tflite.flatbuffer import FILE_IDENTIFIER, unpack_int4
from metamix_tflite.metadata import METADATA_NAME

_NUMPY = {"FLOAT32": np.float32, "INT32": np.int32, "INT8": np.int8, "INT64": np.int64}


class VerificationError(ValueError):
    """A file is not what it was declared to be."""


def _names(enum: type) -> dict[int, str]:
    return {v: k for k, v in vars(enum).items() if isinstance(v, int)}


_TYPE_NAMES = _names(schema.TensorType)
_OP_NAMES = _names(schema.BuiltinOperator)
_FUSED_NAMES = _names(schema.ActivationFunctionType)


@dataclasses.dataclass(frozen=True)
class FileTensor:
    """A tensor; `data` is None unless it is a constant (INT4 unpacked to int8)."""

    name: str
    shape: tuple[int, ...]
    type: str
    scales: np.ndarray
    zero_points: np.ndarray
    quantized_dimension: int
    data: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class FileOperator:
    """An operator; tensors by index, `activation` is its fused one."""

    op: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    activation: str


@dataclasses.dataclass(frozen=True)
class FileGraph:
    """One subgraph and what the file declares (`metadata`, {} for a stranger's file)."""

    tensors: list[FileTensor]
    operators: list[FileOperator]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    metadata: dict[str, Any]

    def producer(self, tensor: int) -> FileOperator | None:
        """The operator that writes a tensor."""
        for operator in self.operators:
            if tensor in operator.outputs:
                return operator
        return None


def read_file(flat: bytes) -> FileGraph:
    """The first subgraph of a .tflite.

    Raises:
      VerificationError: not a readable .tflite.
    """
    if not isinstance(flat, bytes | bytearray) or bytes(flat[4:8]) != FILE_IDENTIFIER:
        raise VerificationError(
            f"Expected the bytes of a .tflite (identifier TFL3 at byte 4), found "
            f"{len(flat)} bytes that begin with {bytes(flat[:8])!r}."
        )
    try:
        return _read(flatbuffer_utils.read_model_from_bytearray(bytearray(flat)))
    except (
        AttributeError,
        IndexError,
        KeyError,
        MemoryError,
        OverflowError,
        TypeError,
        UnicodeDecodeError,
        ValueError,
        struct.error,
    ) as error:
        raise VerificationError(
            f"The .tflite cannot be read: {type(error).__name__}: {error}; truncated or damaged?"
        ) from error


def _read(model: Any) -> FileGraph:
    graph = model.subgraphs[0]
    codes = [
        _OP_NAMES[max(c.builtinCode, c.deprecatedBuiltinCode)] for c in model.operatorCodes
    ]
    metadata = {}
    for entry in model.metadata or []:
        name = entry.name.decode() if isinstance(entry.name, bytes) else entry.name
        if name == METADATA_NAME:
            metadata = json.loads(bytes(bytearray(model.buffers[entry.buffer].data)))
    operators = [
        FileOperator(
            codes[op.opcodeIndex],
            tuple(int(i) for i in op.inputs),
            tuple(int(i) for i in op.outputs),
            _FUSED_NAMES[getattr(op.builtinOptions, "fusedActivationFunction", 0)],
        )
        for op in graph.operators
    ]
    return FileGraph(
        [_tensor(t, model.buffers) for t in graph.tensors],
        operators,
        tuple(int(i) for i in graph.inputs),
        tuple(int(i) for i in graph.outputs),
        metadata,
    )


def _tensor(tensor: Any, buffers: list[Any]) -> FileTensor:
    name = tensor.name.decode() if isinstance(tensor.name, bytes) else tensor.name
    shape = tuple(int(n) for n in (tensor.shape if tensor.shape is not None else ()))
    kind = _TYPE_NAMES[tensor.type]
    quantization = tensor.quantization
    scales = zero_points = None
    if quantization is not None:
        scales, zero_points = quantization.scale, quantization.zeroPoint
    raw = buffers[tensor.buffer].data
    data = None
    if tensor.buffer and raw is not None:
        data = _data(np.asarray(raw, np.uint8), kind, shape)
    return FileTensor(
        name,
        shape,
        kind,
        np.asarray(scales if scales is not None else [], np.float32),
        np.asarray(zero_points if zero_points is not None else [], np.int64),
        quantization.quantizedDimension if quantization is not None else 0,
        data,
    )


def _data(raw: np.ndarray, kind: str, shape: tuple[int, ...]) -> np.ndarray | None:
    if kind == "INT4":
        return unpack_int4(raw, int(np.prod(shape))).reshape(shape)
    if kind not in _NUMPY:
        return None
    return raw.view(_NUMPY[kind]).reshape(shape)

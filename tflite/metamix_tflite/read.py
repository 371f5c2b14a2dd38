"""Reads a .tflite into Python, and refuses what is not one well-formed graph."""

from __future__ import annotations

import dataclasses
import functools
import math
import struct
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from metamix_tflite.flatbuffer import FILE_IDENTIFIER, unpack_int4
from metamix_tflite.metadata import METADATA_NAME, decode

_NUMPY = {"FLOAT32": np.float32, "INT32": np.int32, "INT8": np.int8, "INT64": np.int64}
# The options that hold an operator's fused activation. LiteRT ignores options of another type.
_FUSED_OPTIONS = {
    "CONV_2D": schema.Conv2DOptions,
    "DEPTHWISE_CONV_2D": schema.DepthwiseConv2DOptions,
    "FULLY_CONNECTED": schema.FullyConnectedOptions,
    "ADD": schema.AddOptions,
    "MUL": schema.MulOptions,
    "MAX_POOL_2D": schema.Pool2DOptions,
}
_LARGEST_RANK = 8
_LARGEST_EXPANSION = 64  # equal constants share their bytes: what is read may exceed the file


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
    """One subgraph and what the file declares (`metadata`, {} for a stranger's file).

    Tensors have different names. Operators stand in the order in which they run: each reads
    inputs, constants and what was written before it, and writes what nothing else writes.
    """

    tensors: list[FileTensor]
    operators: list[FileOperator]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    metadata: dict[str, Any]

    def producer(self, tensor: int) -> FileOperator | None:
        """The operator that writes a tensor."""
        return self._producers.get(tensor)

    @functools.cached_property
    def _producers(self) -> dict[int, FileOperator]:
        return {i: operator for operator in self.operators for i in operator.outputs}


def require_tflite(flat: bytes) -> None:
    """Raises unless `flat` begins as a .tflite does.

    Raises:
      TypeError: not bytes.
      VerificationError: bytes of something else.
    """
    if not isinstance(flat, bytes | bytearray):
        raise TypeError(f"Expected the bytes of a .tflite, found {type(flat).__name__}.")
    if flat[4:8] != FILE_IDENTIFIER:
        raise VerificationError(
            f"Expected the bytes of a .tflite (identifier TFL3 at byte 4), found "
            f"{len(flat)} bytes that begin with {bytes(flat[:8])!r}."
        )


def read_file(flat: bytes) -> FileGraph:
    """The graph of a .tflite.

    Raises:
      TypeError: not bytes.
      VerificationError: not a readable .tflite of one well-formed graph.
    """
    require_tflite(flat)
    try:
        graph = _Reader(bytes(flat)).graph()
    except KeyError as error:
        raise VerificationError(f"The .tflite cannot be read: unknown code {error}.") from error
    except (TypeError, ValueError, struct.error) as error:
        # What the flatbuffer's accessors raise for offsets that lead outside it, and our own.
        raise VerificationError(f"The .tflite cannot be read: {error}.") from error
    _check_order(graph)
    return graph


def _check_order(graph: FileGraph) -> None:
    tensors = graph.tensors

    def named(index: int) -> str:
        name = f" {tensors[index].name!r}" if 0 <= index < len(tensors) else ""
        return f"tensor {index}{name}"

    if len({t.name for t in tensors}) != len(tensors):
        raise VerificationError("Several tensors of the file have the same name.")
    constants = {i for i, t in enumerate(tensors) if t.data is not None}
    if not set(graph.inputs) <= set(range(len(tensors))) - constants:
        raise VerificationError(f"The graph's inputs {graph.inputs} are no tensors to set.")
    written = set(graph.inputs)
    for number, operator in enumerate(graph.operators):
        where = f"Operator {number} ({operator.op})"
        for index in operator.inputs:
            if index not in written and index not in constants:
                raise VerificationError(f"{where} reads {named(index)}, which nothing wrote.")
        for index in operator.outputs:
            if index in written or index in constants or not 0 <= index < len(tensors):
                raise VerificationError(f"{where} writes {named(index)}, which it cannot.")
            written.add(index)
    if not set(graph.outputs) <= written:
        raise VerificationError(f"The graph's outputs {graph.outputs} are not all written.")


class _Reader:
    """Reads one file, field by field, and no more bytes than a file of its size can mean."""

    def __init__(self, flat: bytes):
        self._model = schema.Model.GetRootAs(flat, 0)
        self._unread = _LARGEST_EXPANSION * len(flat)

    def graph(self) -> FileGraph:
        if self._model.SubgraphsLength() != 1:
            raise ValueError(f"expected one subgraph, found {self._model.SubgraphsLength()}")
        graph = self._model.Subgraphs(0)
        codes = [self._code(i) for i in range(self._model.OperatorCodesLength())]
        return FileGraph(
            [self._tensor(graph.Tensors(i)) for i in range(graph.TensorsLength())],
            [self._operator(graph.Operators(i), codes) for i in range(graph.OperatorsLength())],
            self._integers(graph.InputsAsNumpy()),
            self._integers(graph.OutputsAsNumpy()),
            self._metadata(),
        )

    def _vector(self, values: Any) -> np.ndarray:
        """A vector as the schema returns it: the integer 0 where it is absent."""
        if not isinstance(values, np.ndarray):
            return np.empty(0)
        self._count(values.nbytes)
        return values

    def _count(self, size: int) -> None:
        self._unread -= size + 1
        if self._unread < 0:
            raise ValueError("it points at the same bytes over and over")

    def _integers(self, values: Any) -> tuple[int, ...]:
        return tuple(int(i) for i in self._vector(values))

    def _text(self, content: bytes | None) -> str:
        content = content or b""
        self._count(len(content))
        return content.decode()

    def _code(self, index: int) -> str:
        self._count(0)
        code = self._model.OperatorCodes(index)
        return _OP_NAMES[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]

    def _operator(self, operator: Any, codes: list[str]) -> FileOperator:
        if operator.OpcodeIndex() >= len(codes):
            raise ValueError(f"an operator has code number {operator.OpcodeIndex()}")
        op = codes[operator.OpcodeIndex()]
        activation = 0
        if op in _FUSED_OPTIONS:
            options = _FUSED_OPTIONS[op]()
            expected = getattr(schema.BuiltinOptions, type(options).__name__)
            table = operator.BuiltinOptions()
            if operator.BuiltinOptionsType() != expected or table is None:
                raise ValueError(f"{op} without its options")
            options.Init(table.Bytes, table.Pos)
            activation = options.FusedActivationFunction()
        return FileOperator(
            op,
            self._integers(operator.InputsAsNumpy()),
            self._integers(operator.OutputsAsNumpy()),
            _FUSED_NAMES[activation],
        )

    def _tensor(self, tensor: Any) -> FileTensor:
        name = self._text(tensor.Name())
        shape = self._integers(tensor.ShapeAsNumpy())
        if len(shape) > _LARGEST_RANK or any(n < 0 for n in shape):
            raise ValueError(f"tensor {name!r} has a shape of {len(shape)} dimensions, {shape[:8]}")
        scales: Any = 0
        zero_points, dimension, details = 0, 0, 0
        quantization = tensor.Quantization()
        if quantization is not None:
            scales, zero_points = quantization.ScaleAsNumpy(), quantization.ZeroPointAsNumpy()
            dimension, details = quantization.QuantizedDimension(), quantization.DetailsType()
        if details or tensor.Sparsity() is not None or tensor.IsVariable():
            raise ValueError(f"tensor {name!r} is sparse, blockwise quantized or variable")
        kind = _TYPE_NAMES[tensor.Type()]
        return FileTensor(
            name,
            shape,
            kind,
            self._vector(scales).astype(np.float32),
            self._vector(zero_points).astype(np.int64),
            dimension,
            self._data(name, self._bytes(tensor.Buffer()), kind, shape),
        )

    def _bytes(self, index: int) -> np.ndarray:
        """The content of a buffer, empty where there is none."""
        if index >= self._model.BuffersLength():
            raise ValueError(f"buffer {index} is not there")
        buffer = self._model.Buffers(index)
        if buffer.Offset() or buffer.Size():
            raise ValueError(f"buffer {index} lies outside the flatbuffer")
        return self._vector(buffer.DataAsNumpy()).astype(np.uint8)

    def _data(
        self, name: str, raw: np.ndarray, kind: str, shape: tuple[int, ...]
    ) -> np.ndarray | None:
        if not raw.size:
            return None
        if kind != "INT4" and kind not in _NUMPY:
            raise ValueError(f"tensor {name!r} is a constant of type {kind}")
        size = math.prod(shape)
        expected = (size + 1) // 2 if kind == "INT4" else size * np.dtype(_NUMPY[kind]).itemsize
        if raw.size != expected:
            raise ValueError(f"tensor {name!r}: expected {expected} bytes, found {raw.size}")
        values = unpack_int4(raw, size) if kind == "INT4" else raw.view(_NUMPY[kind])
        return values.reshape(shape)

    def _metadata(self) -> dict[str, Any]:
        for number in range(self._model.MetadataLength()):
            entry = self._model.Metadata(number)
            if self._text(entry.Name()) == METADATA_NAME:
                return decode(self._bytes(entry.Buffer()).tobytes())
        return {}

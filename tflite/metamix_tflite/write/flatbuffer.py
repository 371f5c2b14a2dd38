"""Builds a .tflite flatbuffer tensor by tensor and operator by operator.

Nothing is inferred: every scale, zero-point, container and operator version in the file
is one that the caller wrote.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from metamix_tflite.encoding import FILE_IDENTIFIER, TensorType, packed

_DTYPES = {
    TensorType.FLOAT32: np.float32,
    TensorType.INT32: np.int32,
    TensorType.INT8: np.int8,
    TensorType.UINT8: np.uint8,
}
_PACKED = {TensorType.INT4: 4, TensorType.INT2: 2}
SCHEMA_VERSION = 3


@dataclasses.dataclass(frozen=True)
class Signature:
    """Names of a subgraph's inputs and outputs, by tensor index."""

    inputs: dict[str, int]
    outputs: dict[str, int]


class SubgraphBuilder:
    """Collects the tensors and operators of one subgraph."""

    def __init__(self, model: ModelBuilder, name: str):
        self._model = model
        self._graph = schema.SubGraphT()
        self._graph.name = name
        self._graph.tensors, self._graph.operators = [], []

    def tensor(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: int,
        scale: np.ndarray | float | None = None,
        zero_point: int = 0,
        data: np.ndarray | None = None,
        quantized_dimension: int = 0,
    ) -> int:
        """Adds a tensor, constant when `data` is given, and returns its index."""
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type = name, np.array(shape, np.int32), dtype
        tensor.hasRank = True
        tensor.buffer = 0 if data is None else self._model.buffer(data, dtype)
        if scale is not None:
            scales = np.atleast_1d(np.asarray(scale, np.float32))
            quantization = schema.QuantizationParametersT()
            quantization.scale = scales
            quantization.zeroPoint = np.full(scales.shape, zero_point, np.int64)
            quantization.quantizedDimension = quantized_dimension
            tensor.quantization = quantization
        self._graph.tensors.append(tensor)
        return len(self._graph.tensors) - 1

    def operator(
        self,
        op: int,
        inputs: list[int],
        outputs: list[int],
        options: object | None = None,
        version: int = 1,
    ) -> None:
        """Adds an operator; `options` is the schema's `...OptionsT` object."""
        operator = schema.OperatorT()
        operator.opcodeIndex = self._model.opcode(op, version)
        operator.inputs, operator.outputs = inputs, outputs
        if options is not None:
            kind = type(options).__name__.removesuffix("T")
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
            operator.builtinOptions = options
        self._graph.operators.append(operator)

    @property
    def calls(self) -> Iterator[tuple[str, list[int], list[int]]]:
        """Of each operator the name of its result, and the tensors that it reads and writes."""
        for operator in self._graph.operators:
            name = self._graph.tensors[operator.outputs[0]].name
            yield name, operator.inputs, operator.outputs

    def finish(self, signature: Signature) -> None:
        """Declares the subgraph's inputs and outputs and adds it to the model."""
        self._graph.inputs = list(signature.inputs.values())
        self._graph.outputs = list(signature.outputs.values())
        self._model.add(self._graph, signature)


class _SharingBuilder(flatbuffers.Builder):
    """Writes equal vectors once: LiteRT wants a zero-point for each channel, and all are 0."""

    def __init__(self, size: int):
        super().__init__(size)
        self._vectors: dict[tuple[str, bytes], int] = {}

    def CreateNumpyVector(self, x: np.ndarray) -> int:
        key = x.dtype.str, x.tobytes()
        if key not in self._vectors:
            self._vectors[key] = super().CreateNumpyVector(x)
        return self._vectors[key]


def pack_model(model: schema.ModelT) -> bytes:
    """The bytes of a file."""
    builder = _SharingBuilder(1 << 20)
    builder.Finish(model.Pack(builder), FILE_IDENTIFIER)
    return bytes(builder.Output())


class ModelBuilder:
    """Collects subgraphs; equal constants are stored once, whatever subgraph they are of."""

    def __init__(self, description: str):
        self._model = schema.ModelT()
        self._model.version, self._model.description = SCHEMA_VERSION, description
        self._model.operatorCodes, self._model.subgraphs = [], []
        self._model.signatureDefs, self._model.metadata = [], []
        self._model.buffers = [schema.BufferT()]
        self._opcodes: dict[tuple[int, int], int] = {}
        self._buffers: dict[bytes, int] = {}

    def subgraph(self, name: str) -> SubgraphBuilder:
        """Starts a subgraph; its `finish` adds it."""
        return SubgraphBuilder(self, name)

    def buffer(self, data: np.ndarray, dtype: int) -> int:
        """Stores a constant's bytes (of few bits: packed) and returns the buffer's index."""
        if dtype in _PACKED:
            return self._store(packed(data, _PACKED[dtype]).tobytes())
        return self._store(np.ascontiguousarray(data.astype(_DTYPES[dtype])).tobytes())

    def metadata(self, name: str, content: bytes) -> None:
        """Adds a named metadata buffer."""
        entry = schema.MetadataT()
        entry.name, entry.buffer = name, self._store(content)
        self._model.metadata.append(entry)

    def opcode(self, op: int, version: int) -> int:
        """Index of an operator code, added on its first use."""
        if (op, version) not in self._opcodes:
            code = schema.OperatorCodeT()
            code.builtinCode, code.version = op, version
            code.deprecatedBuiltinCode = min(op, 127)
            self._model.operatorCodes.append(code)
            self._opcodes[op, version] = len(self._model.operatorCodes) - 1
        return self._opcodes[op, version]

    def add(self, graph: schema.SubGraphT, signature: Signature) -> None:
        """Adds a finished subgraph with its signature, keyed by the subgraph's name."""
        self._model.subgraphs.append(graph)
        definition = schema.SignatureDefT()
        definition.signatureKey = graph.name
        definition.subgraphIndex = len(self._model.subgraphs) - 1
        definition.inputs = _tensor_maps(signature.inputs)
        definition.outputs = _tensor_maps(signature.outputs)
        self._model.signatureDefs.append(definition)

    def finish(self) -> bytes:
        """The file's bytes."""
        return pack_model(self._model)

    def _store(self, content: bytes) -> int:
        if content not in self._buffers:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(content, np.uint8)
            self._model.buffers.append(buffer)
            self._buffers[content] = len(self._model.buffers) - 1
        return self._buffers[content]


def _tensor_maps(names: dict[str, int]) -> list[schema.TensorMapT]:
    maps = []
    for name, index in names.items():
        entry = schema.TensorMapT()
        entry.name, entry.tensorIndex = name, index
        maps.append(entry)
    return maps

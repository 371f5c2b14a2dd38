"""Reads the fields of a .tflite, which nothing vouches for."""

from __future__ import annotations

import functools
import inspect
import math
import struct
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from metamix_tflite.encoding import DEFAULT_SIGNATURE, unpacked
from metamix_tflite.file_graph import FileGraph, FileOperator, FileTensor, named_signature
from metamix_tflite.operators import LITERT
from metamix_tflite.read.attached import attached
from metamix_tflite.read.file_hash import HASH_NAME, HASH_SIZE
from metamix_tflite.read.interface import Interface, check_structure, default_structure
from metamix_tflite.read.metadata import METADATA_NAME, decode, of_signatures

_NUMPY = {"FLOAT32": np.float32, "INT32": np.int32, "INT8": np.int8, "INT64": np.int64}
_SUBGRAPHS, _SIGNATURES = 8, 18  # of Model's vectors, in its table by the schema
_DATA = 4  # of Buffer's
_LARGEST_RANK = 8
_PACKED = {"INT4": 4, "INT2": 2}  # bits of those that may be constants
_SMALL = (*_PACKED, "UINT4")
# Custom operators that compilers leave in the place of the graph.
_COMPILERS = {
    b"ethos-u": "Vela for an Ethos-U NPU",
    b"edgetpu-custom-op": "edgetpu_compiler for an Edge TPU",
}
_LARGEST_EXPANSION = 64  # equal constants share their bytes: what is read may exceed the file


def _names(enum: type) -> dict[int, str]:
    return {v: k for k, v in vars(enum).items() if isinstance(v, int)}


_TYPE_NAMES = _names(schema.TensorType)
_OP_NAMES = _names(schema.BuiltinOperator)
_OPTIONS_NAMES = _names(schema.BuiltinOptions)
_FUSED_NAMES = _names(schema.ActivationFunctionType)


def _options(operator: Any, op: str, cls: Any) -> Any:
    """The options of an operator."""
    options = cls()  # LiteRT ignores options of another type
    expected, table = getattr(schema.BuiltinOptions, cls.__name__), operator.BuiltinOptions()
    if operator.BuiltinOptionsType() != expected or table is None:
        raise ValueError(f"{op} without its options")
    options.Init(table.Bytes, table.Pos)
    return options


@functools.cache
def _accessors(options: type) -> list[str]:
    """Names of the schema's methods that return an option, a number or a whole vector."""
    methods = {
        name: method.__code__.co_argcount
        for name, method in vars(options).items()
        if inspect.isfunction(method) and not name.endswith(("Length", "IsNone"))
    }
    return sorted(name for name, arguments in methods.items() if arguments == 1)


class FileReader:
    """Reads one file, field by field, and no more bytes than a file of its size can mean.

    Every method raises ValueError, TypeError, KeyError or struct.error for what it cannot read.
    """

    def __init__(self, flat: bytes):
        self._flat, self._model = flat, schema.Model.GetRootAs(flat, 0)
        self._unread = _LARGEST_EXPANSION * len(flat)
        self._constants: dict[tuple[int, str, tuple[int, ...]], np.ndarray | None] = {}

    def compiler(self) -> str:
        """What compiled the file, and for what; "" for a graph that any LiteRT runs."""
        for number in range(self._model.OperatorCodesLength()):
            self._count(0)
            found = _COMPILERS.get(self._model.OperatorCodes(number).CustomCode() or b"")
            if found:
                return found
        return ""

    def small_tensors(self) -> dict[str, str]:
        """See `small_tensors`."""
        found = {}
        for number in range(self._model.SubgraphsLength()):
            graph = self._model.Subgraphs(number)
            for index in range(graph.TensorsLength()):
                kind = _TYPE_NAMES[graph.Tensors(index).Type()]
                if kind in _SMALL:
                    found[self._text(graph.Tensors(index).Name())] = kind
                self._count(0)
        return found

    def graphs(self) -> dict[str, FileGraph]:
        """The graph of each signature, in the order of the subgraphs."""
        definitions = self._definitions()
        declarations = self._declared(self.declaration(), list(definitions))
        codes = [self._code(i) for i in range(self._model.OperatorCodesLength())]
        graphs = {}
        for index, (name, definition) in enumerate(definitions.items()):
            with named_signature(name, definitions):
                subgraph = self._model.Subgraphs(index)
                graphs[name] = self._graph(definition, subgraph, codes, declarations[name])
        return graphs

    def operating_points(self) -> dict[str, dict[str, Any]]:
        """See `read_operating_points`."""
        definitions, declared = self._definitions(), self.declaration()
        if "signatures" not in declared or not self._model.SignatureDefsLength():
            return {}
        return of_signatures(declared, list(definitions))

    def interface(self, name: str) -> Interface:
        """What goes into a signature and what comes out of it."""
        names = self.names()
        declared = self._declared(self.declaration(), names)[name]
        definition = None
        index = 0
        if self._model.SignatureDefsLength():
            definition = self._model.SignatureDefs(names.index(name))
            index = definition.SubgraphIndex()
        if index >= self._model.SubgraphsLength():
            raise ValueError(f"signature {name!r} is of subgraph {index}, which is not there")
        inputs, outputs = self._named_tensors(definition, self._model.Subgraphs(index))
        return Interface(inputs, outputs, self._structure(declared, len(outputs)))

    def _structure(self, declared: dict[str, Any], count: int) -> Any:
        """The structure of a signature's outputs, as declared or else as LiteRT has them."""
        structure = declared.get("outputs", default_structure(count))
        check_structure(structure, count)
        return structure

    def _named_tensors(
        self, definition: Any, graph: Any
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Names of a subgraph's inputs and outputs, in its order; without signature its tensors'.

        Two names may stand for one tensor.
        """
        found = []
        for which in ("Inputs", "Outputs"):
            tensors = self._integers(getattr(graph, f"{which}AsNumpy")())
            if definition is None:
                found.append(tuple(self._tensor_name(graph, index) for index in tensors))
                continue
            entries = getattr(definition, which), getattr(definition, f"{which}Length")()
            self._check_entry(*entries, tensors)
            names = list(self._names(*entries).items())
            names.sort(key=lambda entry, order=tensors: order.index(entry[1]))
            found.append(tuple(name for name, _ in names))
        inputs, outputs = found
        return inputs, outputs

    def _tensor_name(self, graph: Any, index: int) -> str:
        if not 0 <= index < graph.TensorsLength():
            raise ValueError(f"tensor {index} is not there")
        return self._text(graph.Tensors(index).Name())

    def names(self) -> list[str]:
        """The signatures' names; a stranger's file may have other subgraphs beside theirs."""
        count = self._model.SignatureDefsLength()
        names = [self._text(self._model.SignatureDefs(i).SignatureKey()) for i in range(count)]
        return names or [self._name_without_signatures()]

    def only(self, name: str) -> bytes:
        """The file with one subgraph and no signature: two vectors are cut short."""
        index = list(self._definitions()).index(name)
        content, table = bytearray(self._flat), self._model._tab
        subgraphs, signatures = (table.Vector(table.Offset(f)) for f in (_SUBGRAPHS, _SIGNATURES))
        position = self._model.Subgraphs(index)._tab.Pos
        struct.pack_into("<II", content, subgraphs - 4, 1, position - subgraphs)
        struct.pack_into("<I", content, signatures - 4, 0)
        return bytes(content)

    def declaration(self) -> dict[str, Any]:
        """What `encode` wrote, {} in a stranger's file."""
        content = self.declaration_bytes()
        return {} if content is None else decode(content)

    def declaration_bytes(self) -> bytes | None:
        """The declaration as the file holds it; None in a stranger's."""
        buffer = self._metadata(METADATA_NAME)
        return None if buffer is None else self._bytes(buffer).tobytes()

    def attached(self) -> dict[str, int]:
        """What the file holds besides, see `attached`."""
        entries = map(self._model.Metadata, range(self._model.MetadataLength()))
        contents = {self._text(e.Name()): self._bytes(e.Buffer()).tobytes() for e in entries}
        others = {n: c for n, c in contents.items() if n not in (METADATA_NAME, HASH_NAME)}
        return attached(self._flat, others, self._text(self._model.Description()))

    def hash_place(self) -> int:
        """The byte at which the file's hashes of itself begin."""
        buffer = self._metadata(HASH_NAME)
        if buffer is None or self._bytes(buffer).size != HASH_SIZE:
            raise ValueError("it holds no SHA-256 of itself")
        table = self._model.Buffers(buffer)._tab
        if not table.Offset(_DATA):
            raise ValueError("its SHA-256 of itself lies behind the flatbuffer")
        return table.Vector(table.Offset(_DATA))

    def _metadata(self, name: str) -> int | None:
        """The buffer of a metadata entry, None where there is no such entry."""
        for number in range(self._model.MetadataLength()):
            entry = self._model.Metadata(number)
            if self._text(entry.Name()) == name:
                return entry.Buffer()
        return None

    def _definitions(self) -> dict[str, Any]:
        """The signatures by name, in the order of their subgraphs."""
        subgraphs, count = self._model.SubgraphsLength(), self._model.SignatureDefsLength()
        if subgraphs != max(count, 1):
            raise ValueError(
                f"expected one subgraph for each signature, found {subgraphs} for {count}"
            )
        found: dict[int, tuple[str, Any]] = {}
        for number in range(count):
            definition = self._model.SignatureDefs(number)
            found[definition.SubgraphIndex()] = self._text(definition.SignatureKey()), definition
        if not found:
            return {self._name_without_signatures(): None}
        definitions = dict(found[index] for index in sorted(found))
        if sorted(found) != [*range(count)] or len(definitions) != count:
            raise ValueError("several of its signatures have the same subgraph, or the same name")
        return definitions

    def _name_without_signatures(self) -> str:
        """The operating point that `only` left, or the default."""
        name = self._text(self._model.Subgraphs(0).Name()) if self._model.SubgraphsLength() else ""
        return name if name in self.declaration().get("signatures", {}) else DEFAULT_SIGNATURE

    def _declared(self, declared: dict[str, Any], names: list[str]) -> dict[str, dict[str, Any]]:
        """What the file declares of each signature; of one that `only` left, of this one."""
        points = declared.get("signatures", {})
        if not self._model.SignatureDefsLength() and names[0] in points:
            declared["signatures"] = {names[0]: points[names[0]]}
        return of_signatures(declared, names)

    def _graph(
        self,
        definition: Any,
        graph: Any,
        codes: list[tuple[str, int]],
        declared: dict[str, Any],
    ) -> FileGraph:
        inputs = self._integers(graph.InputsAsNumpy())
        outputs = self._integers(graph.OutputsAsNumpy())
        names = self._named_tensors(definition, graph)
        self._structure(declared, len(outputs))
        return FileGraph(
            [self._tensor(graph.Tensors(i)) for i in range(graph.TensorsLength())],
            [self._operator(graph.Operators(i), codes) for i in range(graph.OperatorsLength())],
            inputs,
            outputs,
            *names,
            declared,
        )

    def _check_entry(self, entry: Any, count: int, expected: tuple[int, ...]) -> None:
        """A signature names each input or output of its subgraph once."""
        found = self._names(entry, count)
        if sorted(found.values()) != sorted(expected):
            raise ValueError(f"a signature has tensors {found}, its subgraph {expected}")

    def _names(self, entry: Any, count: int) -> dict[str, int]:
        """Tensors of a signature's inputs or outputs by name."""
        return {self._text(entry(i).Name()): entry(i).TensorIndex() for i in range(count)}

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

    def _code(self, index: int) -> tuple[str, int]:
        """An operator's name and version."""
        self._count(0)
        code = self._model.OperatorCodes(index)
        return _OP_NAMES[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())], code.Version()

    def _operator(self, operator: Any, codes: list[tuple[str, int]]) -> FileOperator:
        if operator.OpcodeIndex() >= len(codes):
            raise ValueError(f"an operator has code number {operator.OpcodeIndex()}")
        op, version = codes[operator.OpcodeIndex()]
        activation, numbers = 0, []
        if op in LITERT and LITERT[op].fused is not None:
            activation = _options(operator, op, LITERT[op].fused).FusedActivationFunction()
        if op in LITERT and LITERT[op].options is not None:
            options = _options(operator, op, LITERT[op].options)
            numbers = [getattr(options, name)() for name in LITERT[op].numbers]
        inputs = self._integers(operator.InputsAsNumpy())
        while inputs and inputs[-1] == -1:  # an optional one that is absent, such as a bias
            inputs = inputs[:-1]
        return FileOperator(
            op,
            inputs,
            self._integers(operator.OutputsAsNumpy()),
            _FUSED_NAMES[activation],
            tuple(numbers),
            version,
            self._options(operator),
        )

    def _options(self, operator: Any) -> tuple[tuple[str, object], ...]:
        """What an operator's options say, but for zeros, which a flatbuffer may leave out."""
        number, table = operator.BuiltinOptionsType(), operator.BuiltinOptions()
        if not number or table is None:
            return ()
        if number not in _OPTIONS_NAMES:
            raise ValueError(f"an operator has options of kind {number}, unknown to this LiteRT")
        options = getattr(schema, _OPTIONS_NAMES[number])()
        options.Init(table.Bytes, table.Pos)
        found: list[tuple[str, object]] = []
        for name in _accessors(type(options)):
            value = getattr(options, name)()
            if isinstance(value, np.ndarray):
                value = tuple(self._vector(value).tolist())
            self._count(0)
            if value and isinstance(value, int | float | tuple):
                found.append((name, value))
        return tuple(found)

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
            self._constant(name, tensor.Buffer(), kind, shape),
        )

    def _bytes(self, index: int) -> np.ndarray:
        """The content of a buffer, empty where there is none."""
        if index >= self._model.BuffersLength():
            raise ValueError(f"buffer {index} is not there")
        buffer = self._model.Buffers(index)
        start, size = buffer.Offset(), buffer.Size()
        if not start and not size:
            return self._vector(buffer.DataAsNumpy()).astype(np.uint8)
        if start + size > len(self._flat):  # behind the flatbuffer, as some tools write it
            raise ValueError(f"buffer {index} lies outside the file")
        return self._vector(np.frombuffer(self._flat, np.uint8, size, start))

    def _constant(
        self, name: str, buffer: int, kind: str, shape: tuple[int, ...]
    ) -> np.ndarray | None:
        """A tensor's data, None where its buffer is empty; signatures share what is equal."""
        key = buffer, kind, shape
        if key not in self._constants:
            self._constants[key] = self._data(name, self._bytes(buffer), kind, shape)
        return self._constants[key]

    def _data(
        self, name: str, raw: np.ndarray, kind: str, shape: tuple[int, ...]
    ) -> np.ndarray | None:
        if not raw.size:
            return None
        if kind not in _PACKED and kind not in _NUMPY:
            raise ValueError(f"tensor {name!r} is a constant of type {kind}")
        size, bits = math.prod(shape), _PACKED.get(kind)
        expected = -(-size * (bits or 8 * np.dtype(_NUMPY[kind]).itemsize) // 8)
        if raw.size != expected:
            raise ValueError(f"tensor {name!r}: expected {expected} bytes, found {raw.size}")
        values = unpacked(raw, bits, size) if bits else raw.view(_NUMPY[kind])
        return values.reshape(shape)

"""Cuts a .tflite into files of one operator each, to time them alone."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from metamix_tflite.flatbuffer import (
    ModelBuilder,
    Op,
    Signature,
    TensorType,
    pack_model,
)
from metamix_tflite.read import read_file


@dataclasses.dataclass(frozen=True)
class OperatorFile:
    """One operator of a file.

    Attributes:
      kernel: operator, types, shapes and geometry: what its time depends on. Scales, zero-points,
        values and clipping, and with them the bits of activations, are no part of it.
      layer: the MAC layer that the operator computes, "" for any other operator.
      flat: bytes of a .tflite of the operator alone.
    """

    kernel: str
    layer: str
    flat: bytes


def operator_files(flat: bytes) -> list[OperatorFile]:
    """The operators of a file of `convert`, of one signature, in the order in which they run.

    Raises:
      TypeError, VerificationError: not such a file.
    """
    declared = read_file(flat, declared=True).metadata["layers"]
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(flat, 0))
    (graph,) = model.subgraphs
    files = []
    for operator in graph.operators:
        (output,) = operator.outputs
        name = graph.tensors[output].name.decode()
        layer = declared.get(name, {}).get("layer", "")
        kernel = _kernel(model, graph.tensors, operator)
        files.append(OperatorFile(kernel, layer, _alone(model, graph.tensors, operator)))
    return files


def empty_file() -> bytes:
    """A .tflite that computes next to nothing: an ADD of two numbers.

    What it takes is the price of calling the interpreter and its delegate once.
    """
    file = ModelBuilder("keras-metamix")
    graph = file.subgraph("empty")
    left, right, total = (graph.tensor(n, (1, 1), TensorType.INT8, 1.0) for n in ("a", "b", "sum"))
    graph.operator(Op.ADD, [left, right], [total], schema.AddOptionsT(), version=2)
    graph.finish(Signature({"a": left, "b": right}, {"sum": total}))
    return file.finish()


_GEOMETRY = ("padding", "strideH", "strideW", "dilationHFactor", "dilationWFactor")
_GEOMETRY += ("filterHeight", "filterWidth", "depthMultiplier", "axis", "keepDims")
_NAMES = {
    enum: {value: name for name, value in vars(enum).items() if isinstance(value, int)}
    for enum in (schema.BuiltinOperator, schema.TensorType)
}


def _kernel(model: Any, tensors: Sequence[Any], operator: Any) -> str:
    """See `OperatorFile.kernel`."""

    def described(index: int) -> str:
        tensor = tensors[index]
        shape = "x".join(str(size) for size in tensor.shape)
        kind = "constant " if model.buffers[tensor.buffer].data is not None else ""
        return f"{kind}{_NAMES[schema.TensorType][tensor.type]} {shape}"

    code = model.operatorCodes[operator.opcodeIndex]
    name = _NAMES[schema.BuiltinOperator][max(code.builtinCode, code.deprecatedBuiltinCode)]
    found = vars(operator.builtinOptions) if operator.builtinOptions is not None else {}
    options = "".join(f", {key} {found[key]}" for key in _GEOMETRY if key in found)
    read = ", ".join(described(i) for i in operator.inputs)
    return f"{name} {read} -> {described(operator.outputs[0])}{options}"


def _alone(model: Any, tensors: Sequence[Any], operator: Any) -> bytes:
    """A file of one operator with its tensors and constants."""
    used = list(dict.fromkeys(int(i) for i in (*operator.inputs, *operator.outputs)))
    place = {index: number for number, index in enumerate(used)}
    alone, graph, moved = schema.ModelT(), schema.SubGraphT(), copy.copy(operator)
    alone.version, alone.description = model.version, model.description
    alone.operatorCodes = [model.operatorCodes[operator.opcodeIndex]]
    alone.buffers, graph.tensors, graph.inputs = [schema.BufferT()], [], []
    for index in used:
        tensor = copy.copy(tensors[index])
        buffer = model.buffers[tensor.buffer]
        tensor.buffer = 0
        if buffer.data is not None:
            tensor.buffer = len(alone.buffers)
            alone.buffers.append(buffer)
        elif index not in operator.outputs:
            graph.inputs.append(place[index])
        graph.tensors.append(tensor)
    moved.opcodeIndex = 0
    moved.inputs = np.array([place[int(i)] for i in operator.inputs], np.int32)
    moved.outputs = np.array([place[int(i)] for i in operator.outputs], np.int32)
    graph.operators, graph.outputs = [moved], list(moved.outputs)
    alone.subgraphs = [graph]
    return pack_model(alone)

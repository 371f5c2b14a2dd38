"""Cuts a .tflite into files of one operator each, to time them alone.

A convolution of patches (`patches`) stays together with the operators that make them, one of blocks
with that which lays them out.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from metamix_tflite.containers import BLOCKS, PATCHES
from metamix_tflite.encoding import Op, TensorType
from metamix_tflite.operators import LITERT
from metamix_tflite.read.files import read_file
from metamix_tflite.write.flatbuffer import ModelBuilder, Signature, pack_model


@dataclasses.dataclass(frozen=True)
class OperatorFile:
    """One operator of a file, or all those of one MAC layer.

    Attributes:
      kernel: of each operator its name, types, shapes and geometry: what its time depends on.
        Scales, zero-points, values and clipping, and with them the bits of activations, are no
        part of it.
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
    runs: list[tuple[str, list[Any]]] = []  # operators by the call of a layer that they are of
    for operator in graph.operators:
        (output,) = operator.outputs
        name = graph.tensors[output].name.decode()
        name = name.rpartition(PATCHES)[0] or name.removesuffix(BLOCKS)
        if runs and name in declared and runs[-1][0] == name:
            runs[-1][1].append(operator)
        else:
            runs.append((name, [operator]))
    files = []
    for name, together in runs:
        layer = declared.get(name, {}).get("layer", "")
        kernel = "; ".join(_kernel(model, graph.tensors, each) for each in together)
        files.append(OperatorFile(kernel, layer, _alone(model, graph.tensors, together)))
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
    options = "".join(f", {key} {found[key]}" for key in LITERT[name].geometry if key in found)
    read = ", ".join(described(i) for i in operator.inputs)
    return f"{name} {read} -> {described(operator.outputs[0])}{options}"


def _alone(model: Any, tensors: Sequence[Any], operators: Sequence[Any]) -> bytes:
    """A file of operators that follow each other, with their tensors and constants."""
    used = list(dict.fromkeys(int(i) for o in operators for i in (*o.inputs, *o.outputs)))
    written = {int(i) for operator in operators for i in operator.outputs}
    place = {index: number for number, index in enumerate(used)}
    alone, graph = schema.ModelT(), schema.SubGraphT()
    alone.version, alone.description = model.version, model.description
    alone.operatorCodes, alone.buffers = model.operatorCodes, [schema.BufferT()]
    graph.tensors, graph.inputs, graph.operators = [], [], []
    for index in used:
        tensor = copy.copy(tensors[index])
        buffer = model.buffers[tensor.buffer]
        tensor.buffer = 0
        if buffer.data is not None:
            tensor.buffer = len(alone.buffers)
            alone.buffers.append(buffer)
        elif index not in written:
            graph.inputs.append(place[index])
        graph.tensors.append(tensor)
    for operator in operators:
        moved = copy.copy(operator)
        moved.inputs = np.array([place[int(i)] for i in operator.inputs], np.int32)
        moved.outputs = np.array([place[int(i)] for i in operator.outputs], np.int32)
        graph.operators.append(moved)
    graph.outputs = list(graph.operators[-1].outputs)
    alone.subgraphs = [graph]
    return pack_model(alone)

"""A signature under construction: its tensors, and what the file declares of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from keras import tree

from keras_metamix.graph.ends import named_inputs
from keras_metamix.graph.topology import Node, Topology
from keras_metamix.layers.grid import Grid
from keras_metamix.layers.integer import Dequantize
from metamix_tflite.encoding import TensorType
from metamix_tflite.write.flatbuffer import ModelBuilder, Signature

PADDING = {"same": schema.Padding.SAME, "valid": schema.Padding.VALID}


@dataclasses.dataclass(frozen=True)
class FileTensor:
    """A tensor of the file, by index; `grid` is None for one of floats."""

    index: int
    shape: tuple[int, ...]
    grid: Grid | None


class SignatureWriter:
    """What the operators of one folded model are added to: a signature and its subgraph.

    Args:
      model: the file; it stores what is equal in several signatures once.
      name: the signature's key.

    Attributes:
      folded, topology: the folded model, and what it reads where.
      container: the weight container.
      io: type of the signature's inputs and outputs.
      graph: its subgraph.
      values: the subgraph's tensor for each of the model's, by identity.
      inputs: index of the tensor of each model input.
      declared: what `verify` compares the signature with.
    """

    def __init__(
        self, model: ModelBuilder, name: str, folded: keras.Model, container: str, io: str
    ):
        self.folded, self.topology = folded, Topology(folded)
        self.container, self.io = container, io
        self.graph = model.subgraph(name)
        self.values: dict[int, FileTensor] = {}
        self.inputs: dict[str, int] = {}
        self.declared: dict[str, Any] = {"bops": 0, "layers": {}, "tensors": {}}
        for tensor in self.topology.inputs:
            shape, index = batch_one(tensor), -1
            if io == "float32":
                index = self._input(tensor, shape)
                self.inputs[tensor.name] = index
            self.values[id(tensor)] = FileTensor(index, shape, None)

    def finish(self) -> None:
        """Adds the signature to the file, once every node has its operators."""
        inputs = {name: self.inputs[t.name] for name, t in named_inputs(self.folded)}
        outputs = {
            self._output_name(tensor): self.values[id(tensor)].index
            for tensor in self.topology.outputs
        }
        self.declared["outputs"] = _structure(self.folded)
        self.graph.finish(Signature(inputs, outputs))

    def _input(self, tensor: Any, shape: tuple[int, ...]) -> int:
        """Index of the tensor of an input: of floats, or of bytes where the model takes these."""
        if tensor.dtype == "uint8":
            return self.graph.tensor(tensor.name, shape, TensorType.UINT8, 1.0)
        return self.graph.tensor(tensor.name, shape, TensorType.FLOAT32)

    def _output_name(self, tensor: Any) -> str:
        node = self.topology.producer(tensor)
        if node is None or not isinstance(node.operation, Dequantize):
            raise ValueError(f"Output {tensor.name!r} is no layer's dequantized result.")
        return node.operation.output_name

    def read(self, node: Node) -> list[FileTensor]:
        """The tensors that a node reads."""
        return [self.values[id(t)] for t in node.inputs]

    def output(self, node: Node, grid: Grid | None, activation: str = "NONE") -> int:
        """Index of the INT8 tensor of a node's output, declared."""
        tensor = self.tensor(node.name, batch_one(node.output), grid, activation)
        self.values[id(node.output)] = tensor
        return tensor.index

    def tensor(
        self, name: str, shape: tuple[int, ...], grid: Grid | None, activation: str = "NONE"
    ) -> FileTensor:
        """An INT8 tensor, declared."""
        if grid is None:
            raise TypeError(f"Layer {name!r}: its output has no integer grid.")
        index = self.graph.tensor(name, shape, TensorType.INT8, grid.scale, grid.zero_point)
        self.declared["tensors"][name] = {
            "scale": float(np.float32(grid.scale)),
            "zero_point": grid.zero_point,
            "activation": activation,
        }
        return FileTensor(index, shape, grid)

    def vector(self, name: str, values: list[Any]) -> int:
        """Index of an INT32 constant."""
        data = np.asarray(values, np.int32)
        return self.graph.tensor(name, data.shape, TensorType.INT32, data=data)


def _structure(model: keras.Model) -> Any:
    """Places of the outputs in the structure in which Keras gives them, see `Ends`."""
    structure: Any = tree.pack_sequence_as(model.output, [*range(len(model.outputs))])
    if isinstance(structure, (list, tuple)) and len(structure) == 1:
        return structure[0]
    return structure


def batch_one(tensor: Any) -> tuple[int, ...]:
    """A tensor's shape with one image.

    Raises:
      ValueError: another dimension is not known; names the tensor.
    """
    if None in tensor.shape[1:]:
        raise ValueError(f"Tensor {tensor.name!r}: expected a known shape, found {tensor.shape}.")
    return (1, *tensor.shape[1:])

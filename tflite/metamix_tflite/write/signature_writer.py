"""A signature under construction: its tensors, and what the file declares of them."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import tree

from keras_metamix.graph.io_names import named_inputs
from keras_metamix.graph.topology import Node, Topology
from keras_metamix.layers.grid import Grid, clip_level
from keras_metamix.layers.integer import Dequantize, QuantizeInput
from metamix_tflite.containers import xnnpack_partitions
from metamix_tflite.encoding import TensorType
from metamix_tflite.operators.base import Outside, WrittenTensor, batch_one
from metamix_tflite.targets import Target
from metamix_tflite.write.flatbuffer import ModelBuilder, Signature


class SignatureWriter:
    """What the operators of one folded model are added to: a signature and its subgraph.

    Args:
      model: the file; it stores what is equal in several signatures once.
      name: the signature's key.

    Attributes:
      folded, topology: the folded model, and what it reads where.
      target: where the file runs, with its weight container, inputs and outputs.
      graph: its subgraph.
      values: the subgraph's tensor for each of the model's, by identity.
      inputs: index of the tensor of each model input.
      declared: what `verify` compares the signature with.
      outside: layers whose operator XNNPACK leaves to LiteRT's own kernel.
    """

    def __init__(self, model: ModelBuilder, name: str, folded: keras.Model, target: Target):
        self.folded, self.topology = folded, Topology(folded)
        self.target = target
        self.graph = model.subgraph(name)
        self.values: dict[int, WrittenTensor] = {}
        self.inputs: dict[str, int] = {}
        self.outside: dict[str, Outside] = {}
        self.declared: dict[str, Any] = {"bops": 0, "layers": {}, "tensors": {}}
        for tensor in self.topology.inputs:
            shape, index = batch_one(tensor), -1
            if target.io == "float32" or (target.io == "uint8" and tensor.dtype == "uint8"):
                index = self._input(tensor, shape)
                self.inputs[tensor.name] = index
            self.values[id(tensor)] = WrittenTensor(index, shape, None)

    def finish(self) -> None:
        """Adds the signature to the file, once every node has its operators."""
        inputs = {name: self.inputs[t.name] for name, t in named_inputs(self.folded)}
        outputs = {
            self._output_name(tensor): self.values[id(tensor)].index
            for tensor in self.topology.outputs
        }
        self.declared["outputs"] = _structure(self.folded)
        self.graph.finish(Signature(inputs, outputs))

    def reads_bytes(self, node: Node) -> bool:
        """Whether a node's operator is a QUANTIZE of bytes."""
        first = isinstance(node.operation, QuantizeInput)
        return first and (self.target.io == "uint8" or node.inputs[0].dtype == "uint8")

    @property
    def partitions(self) -> int:
        """How many partitions of the signature XNNPACK runs."""
        return xnnpack_partitions(
            (inputs, outputs, name not in self.outside)
            for name, inputs, outputs in self.graph.calls
        )

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

    def read(self, node: Node) -> list[WrittenTensor]:
        """The tensors that a node reads."""
        return [self.values[id(t)] for t in node.inputs]

    def output(self, node: Node, grid: Grid | None, activation: str = "NONE") -> int:
        """Index of the INT8 tensor of a node's output, declared."""
        tensor = self.tensor(node.name, batch_one(node.output), grid, activation)
        self.values[id(node.output)] = tensor
        return tensor.index

    def tensor(
        self, name: str, shape: tuple[int, ...], grid: Grid | None, activation: str = "NONE"
    ) -> WrittenTensor:
        """An INT8 tensor, declared."""
        if grid is None:
            raise TypeError(f"Layer {name!r}: its output has no integer grid.")
        index = self.graph.tensor(name, shape, TensorType.INT8, grid.scale, grid.zero_point)
        self.declared["tensors"][name] = {
            "scale": float(np.float32(grid.scale)),
            "zero_point": grid.zero_point,
            "activation": activation,
        }
        return WrittenTensor(index, shape, grid)

    def fused_activation(self, node: Node) -> str:
        """The activation that, with INT8's saturation, clips as a node's layer does.

        Raises:
          ValueError: there is none; names the layer.
        """
        layer: Any = node.operation
        grid, ends = layer.output_grid, (layer.low, layer.high)
        least, most = -128 - grid.zero_point, 127 - grid.zero_point
        unit = int(np.rint(np.float32(1.0) / np.float32(grid.scale)))
        ranges = {
            "NONE": (least, most),
            "RELU": (max(least, 0), most),
            "RELU6": (max(least, 0), min(most, clip_level(grid, 6.0))),
            "RELU_N1_TO_1": (max(least, -unit), min(most, unit)),
        }
        for activation, found in ranges.items():
            if found == ends:
                return activation
        raise ValueError(
            f"Layer {node.name!r}: no LiteRT activation clips to levels [{layer.low}, "
            f"{layer.high}] at scale {grid.scale} and zero-point {grid.zero_point}."
        )

    def vector(self, name: str, values: list[Any]) -> int:
        """Index of an INT32 constant."""
        data = np.asarray(values, np.int32)
        return self.graph.tensor(name, data.shape, TensorType.INT32, data=data)


def _structure(model: keras.Model) -> Any:
    """Places of the outputs in the structure in which Keras gives them, see `Interface`."""
    structure: Any = tree.pack_sequence_as(model.output, [*range(len(model.outputs))])
    if isinstance(structure, (list, tuple)) and len(structure) == 1:
        return structure[0]
    return structure

"""What a file has to give for its golden inputs: computed by Keras, never by LiteRT."""

from __future__ import annotations

import base64
from typing import Any

import keras
import numpy as np

from keras_metamix.graph.topology import Topology
from keras_metamix.layers.grid import Grid
from keras_metamix.layers.integer import Dequantize, QuantizeInput
from metamix_tflite.read.golden_inputs import GENERATOR, as_bytes, dequantized, golden_codes

_LARGEST_OUTPUT = 4096  # values of one input that are kept; of more every second, third, ...


def golden_outputs(folded: keras.Model, images: int) -> dict[str, Any]:
    """The declaration of a signature's golden inputs and of the outputs they give.

    The folded network computes them, which is exact: the device has to give the same integers.

    Args:
      folded: of `fold_batch_norm`.
      images: number of inputs.

    Returns:
      The generator's name, the number of inputs, and for each output its codes of all inputs in
      base64; of a large output every `stride`-th value of one input, from the first.
    """
    topology = Topology(folded)
    grids = [_input_grid(topology, tensor) for tensor in topology.inputs]
    arrays = []
    for index, (tensor, grid) in enumerate(zip(topology.inputs, grids, strict=True)):
        shape = tuple(tensor.shape[1:])
        codes = np.concatenate([golden_codes(shape, n, index) for n in range(images)])
        if tensor.dtype == "uint8":
            arrays.append(as_bytes(codes))
        else:
            arrays.append(dequantized(codes, grid.scale, grid.zero_point))
    given = keras.tree.pack_sequence_as(folded.input, arrays)
    outputs = keras.tree.flatten(folded(given, training=False))
    entries = []
    for tensor, values in zip(topology.outputs, outputs, strict=True):
        codes = _codes(np.asarray(values), _output_grid(topology, tensor)).reshape(images, -1)
        stride = -(-codes.shape[1] // _LARGEST_OUTPUT)
        kept = base64.b64encode(codes[:, ::stride].tobytes()).decode()
        entries.append({"stride": stride, "codes": kept})
    return {"inputs": GENERATOR, "images": images, "outputs": entries}


def _codes(values: np.ndarray, grid: Grid) -> np.ndarray:
    """The INT8 codes that float outputs stand for."""
    return (np.rint(values / np.float32(grid.scale)) + grid.zero_point).astype(np.int8)


def _input_grid(topology: Topology, tensor: Any) -> Grid:
    """Of the first quantizer that reads an input; `convert` writes its QUANTIZE first."""
    for node in topology.nodes:
        if isinstance(node.operation, QuantizeInput) and node.inputs[0] is tensor:
            return node.operation.output_grid
    raise ValueError(f"Input {tensor.name!r} is read by no quantizer.")


def _output_grid(topology: Topology, tensor: Any) -> Grid:
    node = topology.producer(tensor)
    if node is None or not isinstance(node.operation, Dequantize):
        raise ValueError(f"Output {tensor.name!r} is no layer's dequantized result.")
    return node.operation.input_grid

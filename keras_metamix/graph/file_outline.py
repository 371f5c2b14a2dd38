"""The bytes of a quantized network's file, before it is trained and without writing one."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, cast

import numpy as np

from keras_metamix.cost.file_size import FileBytes, with_margin
from keras_metamix.cost.table import FileOutline
from keras_metamix.graph.fold_bn import fold_network, require_foldable
from keras_metamix.graph.operators.multiply import IntegerFactors
from keras_metamix.graph.topology import Node, Topology
from keras_metamix.keras_internals import calls_of, operation_of
from keras_metamix.layers import integer
from keras_metamix.layers.grid import Grid
from metamix_tflite.containers import BLOCKS, held_bytes
from metamix_tflite.encoding import Op
from metamix_tflite.operators import writer_of
from metamix_tflite.operators.base import WrittenTensor, batch_one
from metamix_tflite.operators.data_movement import Same, reshaped
from metamix_tflite.operators.depth import laid_out
from metamix_tflite.operators.patches import patches
from metamix_tflite.targets import MacForm, Target


def file_outline(model: Any, target: Target) -> FileOutline:
    """What the file of `metamix_tflite.convert(model)` takes, by weight bits of each layer.

    Args:
      model: a QuantizedModel, MetaMixModel or BitMixerModel; its steps and weights do not matter.
      target: where the file runs.

    Raises:
      ValueError: the model has no file; names the layer.
    """
    require_foldable(model)
    topology = Topology(fold_network(model.network, distinct=True))
    file, calls = FileBytes(), defaultdict[str, list[Node]](list)
    for tensor in topology.inputs:
        if target.io != "int8":
            scale = ("bytes", tensor.name) if target.io == "uint8" else None
            file.tensor(tensor.name, batch_one(tensor), scale)
    for node in topology.nodes:
        operation = node.operation
        if isinstance(operation, integer.IntegerMac):
            if operation.layer:
                calls[operation.layer].append(node)
            else:  # constants, whose bits are no choice
                _mac(file, node, operation.weight_bits, target)
        elif not isinstance(writer_of(operation), Same):
            _add(file, node, target)
    for tensor in topology.outputs:
        file.golden(math.prod(tensor.shape[1:]))
    layers: dict[str, dict[int, FileBytes]] = {}
    for layer in model.mac_layers:
        row = layers[layer.name] = {b: FileBytes(0) for b in layer.weight_quantizer.candidates}
        for (bits, found), node in itertools.product(row.items(), calls[layer.name]):
            _mac(found, node, bits, target)
    _share(file, [[*row.values()] for row in layers.values()])
    return FileOutline(
        with_margin(file.total),
        {
            name: {bits: with_margin(found.total) for bits, found in row.items()}
            for name, row in layers.items()
        },
    )


class _Counter:
    """What operators are written to in place of a file; counts their bytes.

    Args:
      file: where it adds them.
    """

    def __init__(self, file: FileBytes):
        self._file, self.graph = file, self

    def tensor(self, name: str, shape: tuple[int, ...], grid: Any, *_: Any) -> WrittenTensor:
        """An INT8 tensor, declared."""
        self._file.activation(name, shape, grid.scale)
        return WrittenTensor(0, shape, grid)

    def vector(self, name: str, values: list[Any]) -> int:
        """An INT32 constant."""
        data = np.asarray(values, np.int32)
        self._file.tensor(name, data.shape, data=data.nbytes, known=data.tobytes())
        return 0

    def operator(self, op: int, inputs: list[int], *_: Any, **__: Any) -> None:
        """An operator."""
        self._file.operator(op, len(inputs))


def _share(file: FileBytes, layers: Sequence[Sequence[FileBytes]]) -> None:
    """Counts what several layers have at some of their bits once: half in the file, half in them.

    The sum is right where all of them have it, and off by a half of it at most where some or none
    do.

    Args:
      file: the parts that do not depend on bits.
      layers: the parts of each layer, at each of its weight bits.
    """
    parts = [{part: n for one in found for part, n in one.once.items()} for found in layers]
    count = Counter(part for found in parts for part in found if part not in file.once)
    for one in itertools.chain.from_iterable(layers):
        one.once = {
            part: n if count[part] == 1 else n / 2 / count[part]
            for part, n in one.once.items()
            if part in count
        }
    for found in parts:
        file.once |= {part: n / 2 for part, n in found.items() if count[part] > 1}


def _mac(file: FileBytes, node: Node, weight_bits: int, target: Target) -> None:
    """A MAC operator with its constants, and the operators around it."""
    layer, name, writer = node.operation, node.name, cast(Any, _Counter(file))
    (tensor,), result = node.inputs, batch_one(node.output)
    source, kernel = WrittenTensor(0, batch_one(tensor), _grid(tensor)), layer.kernel_shape
    form = target.mac_form(layer.kind, kernel, layer.strides, source.shape[-1], weight_bits)
    _constants(file, node, form)
    _output(file, node)
    file.operator(getattr(Op, form.operator), 3)
    file.layer(layer.layer or name)
    if form.patches:
        patches(writer, name, source, layer, result)
    elif form.blocks:
        laid_out(writer, name + BLOCKS, source, result)
    elif layer.kind == "transpose":
        writer.vector(f"{name}/size", [*result])
    elif layer.kind == "dense" and form.operator == "CONV_2D" and len(result) != 4:
        shape = (1, 1, math.prod(result[1:-1]), source.shape[-1])
        reshaped(writer, f"{name}/image", source, shape)
        reshaped(writer, f"{name}/flat", WrittenTensor(0, shape, layer.output_grid), result)


def _constants(file: FileBytes, node: Node, form: MacForm) -> None:
    """Weights and bias."""
    layer, kernel = node.operation, node.operation.kernel_shape
    owner = layer.layer or node.name  # a layer that is called twice stores them once
    scale: Any = f"{owner}/scale"
    weights: Any = f"{owner}/weights"
    bias: Any = f"{owner}/bias"
    rows = layer.channels * (math.prod(kernel[:2]) if form.blocks else 1)
    if not layer.layer:  # constants, which other layers may share; of a pool, all biases are 0
        scale = np.asarray(layer.weight_scale).tobytes()
        weights = np.asarray(layer.kernel).tobytes()
        bias = bias if np.any(layer.bias) else ("zeros", rows)
    shape = (layer.kind, kernel, 0, 0)[: 2 if form.operator == "FULLY_CONNECTED" else 4]
    held = held_bytes(form.container, math.prod(kernel))
    file.tensor(f"{node.name}/weights", shape, scale, rows, held, weights)
    file.tensor(f"{node.name}/bias", (rows,), f"{owner}/bias", rows, 4 * rows, bias)


def _add(file: FileBytes, node: Node, target: Target) -> None:
    """Any other layer's operators."""
    operation, name = node.operation, node.name
    if target.io == "int8" and isinstance(operation, integer.QuantizeInput):
        _output(file, node)
        return
    if isinstance(operation, integer.Dequantize):
        if target.io == "int8":
            return
        scale = ("bytes", name) if target.io == "uint8" else None
        file.tensor(f"{name}/float", batch_one(node.output), scale)
        file.operator(Op.DEQUANTIZE, 1)
        return
    family: Any = writer_of(operation)
    *before, last = family.outline(node)
    for number, (inputs, constants) in enumerate(before):
        file.activation(f"{name}/columns", (1, name, number, 1), _grid(node.inputs[0]).scale)
        _operator(file, node, inputs, constants, number)
    inputs, constants = last
    if isinstance(operation, integer.Rescale):
        factor = float(operation.factor)
        file.tensor(f"{name}/one", (1,), ("one", factor), data=1, known="one")
        inputs += 1
    if isinstance(operation, IntegerFactors):
        shape, scale = operation.factors.shape, float(operation.scale)
        known, data = operation.factors.tobytes(), operation.factors.size
        file.tensor(f"{name}/factors", (1, *shape, 1), ("factors", scale), 1, data, known)
        inputs += 1
    _output(file, node)
    _operator(file, node, inputs, constants, -1)


def _operator(
    file: FileBytes, node: Node, inputs: int, constants: Sequence[int], number: int
) -> None:
    """One of a layer's operators, with its constants."""
    for place, size in enumerate(constants):
        known = type(node.operation), node.output.shape[1:], number, place
        file.tensor(f"{node.name}/shape", (size,), data=4 * size, known=known)
    names = [form.name for form in cast(Any, writer_of(node.operation)).litert]
    kind = getattr(Op, names[0]) if len(names) == 1 else type(node.operation)
    file.operator(kind, inputs + len(constants))


def _output(file: FileBytes, node: Node) -> None:
    file.activation(node.name, batch_one(node.output), _grid(node.output).scale)


def _grid(tensor: Any) -> Grid:
    """That of the last integer layer before a tensor: data movement keeps it."""
    operation = operation_of(tensor)
    grid = getattr(operation, "output_grid", None)
    return _grid(calls_of(operation)[0].input_tensors[0]) if grid is None else grid

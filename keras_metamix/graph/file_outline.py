"""The bytes of a quantized network's file, before it is trained and without writing one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_metamix.cost.file_size import FileBytes, MacShape, with_margin
from keras_metamix.cost.table import FileOutline
from keras_metamix.graph.fold_bn import fold_network, require_foldable
from keras_metamix.graph.operators.multiply import IntegerFactors
from keras_metamix.graph.topology import Node, Topology
from keras_metamix.keras_internals import calls_of, operation_of
from keras_metamix.layers import integer
from metamix_tflite.operators import writer_of
from metamix_tflite.operators.data_movement import Same
from metamix_tflite.targets import Target


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
    file, shapes = FileBytes(), {}
    for tensor in topology.inputs:
        if target.io != "int8":
            scale = ("bytes", tensor.name) if target.io == "uint8" else None
            file.tensor(tensor.name, tensor.shape, scale)
    for node in topology.nodes:
        operation = node.operation
        if isinstance(operation, integer.IntegerMac):
            shape = _mac(file, node, target)
            if operation.layer:
                shapes.setdefault(operation.layer, []).append(shape)
        elif not isinstance(writer_of(operation), Same):
            _add(file, node, target)
    for tensor in topology.outputs:
        file.golden(math.prod(tensor.shape[1:]))
    bits = {layer.name: layer.weight_quantizer.candidates for layer in model.mac_layers}
    return FileOutline(
        with_margin(file.total),
        {
            name: {
                b: with_margin(
                    sum(shape.bytes_at(b, number > 0) for number, shape in enumerate(found))
                )
                for b in bits[name]
            }
            for name, found in shapes.items()
        },
    )


def _mac(file: FileBytes, node: Node, target: Target) -> MacShape:
    """A MAC operator but for the trained integers of its weights, whose shape it returns."""
    layer, name, trained = node.operation, node.name, bool(node.operation.layer)
    channels, kernel = layer.channels, layer.kernel_shape
    strides = () if layer.kind == "dense" else layer.strides
    owner = layer.layer or name  # a layer that is called twice has one scale
    scale: Any = f"{owner}/weights"
    data: int | None = 0
    if not trained:  # constants, which other layers may share
        scale = np.asarray(layer.weight_scale).tobytes()
        data = file.data(np.asarray(layer.kernel).tobytes(), math.prod(kernel))
    file.tensor(f"{name}/weights", (name, 1, 1, 1), scale, channels, data)
    # Of a pool, or a PReLU, all are 0.
    zeros = not trained and not np.any(layer.bias)
    bias = file.data(("zeros", channels) if zeros else f"{owner}/bias", 4 * channels)
    file.tensor(f"{name}/bias", (channels,), f"{owner}/bias", channels, bias)
    _output(file, node)
    file.operator(3)
    file.declared(layers=1)
    if layer.kind == "dense" and not target.held.matrix and len(node.output.shape) != 4:
        for number, end in enumerate(("image", "flat")):  # a CONV_2D between two RESHAPEs
            scale = _scale(node.output if number else node.inputs[0])
            shape = node.output.shape if number else (1, 1, *node.output.shape[1:])
            file.tensor(f"{name}/{end}", shape, scale)
            file.declared(tensors=1)
            data = file.data((end, len(shape), node.output.shape[1:]), 4 * len(shape))
            file.tensor(f"{name}/shape", (len(shape),), data=data)
            file.operator(2)
    channels = node.inputs[0].shape[-1]
    return MacShape(name, layer.kind, kernel, strides, channels, layer.padding, target)


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
        file.tensor(f"{name}/float", node.output.shape, scale)
        file.operator(1)
        return
    family: Any = writer_of(operation)
    *before, last = family.outline(node)
    for number, (inputs, constants) in enumerate(before):
        file.tensor(f"{name}/columns", (1, name, number, 1), _scale(node.inputs[0]))
        file.declared(tensors=1)
        _operator(file, node, inputs, constants, number)
    inputs, constants = last
    if isinstance(operation, integer.Rescale):
        factor = float(operation.factor)
        file.tensor(f"{name}/one", (1,), ("one", factor), data=file.data("one", 1))
        inputs += 1
    if isinstance(operation, IntegerFactors):
        shape, scale = operation.factors.shape, float(operation.scale)
        data = file.data(operation.factors.tobytes(), operation.factors.size)
        file.tensor(f"{name}/factors", (1, *shape, 1), ("factors", scale), data=data)
        inputs += 1
    _output(file, node)
    _operator(file, node, inputs, constants, -1)


def _operator(
    file: FileBytes, node: Node, inputs: int, constants: Sequence[int], number: int
) -> None:
    """One of a layer's operators, with its constants."""
    for place, size in enumerate(constants):
        known = type(node.operation), node.output.shape[1:], number, place
        file.tensor(f"{node.name}/shape", (size,), data=file.data(known, 4 * size))
    file.operator(inputs + len(constants))


def _output(file: FileBytes, node: Node) -> None:
    file.tensor(node.name, node.output.shape, _scale(node.output))
    file.declared(tensors=1)


def _scale(tensor: Any) -> float:
    """That of the last integer layer before a tensor: data movement keeps it."""
    operation = operation_of(tensor)
    grid = getattr(operation, "output_grid", None)
    return _scale(calls_of(operation)[0].input_tensors[0]) if grid is None else grid.scale

"""Layers of weights: what multiplies and accumulates."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from metamix_tflite.containers import BLOCKS
from metamix_tflite.encoding import PADDING, Fused, Op, TensorType, checksum
from metamix_tflite.file_graph import FileTensor
from metamix_tflite.operators.base import (
    Call,
    Family,
    FileWriter,
    Litert,
    batch_one,
    check_multiplier,
)
from metamix_tflite.operators.data_movement import reshaped
from metamix_tflite.operators.depth import laid_out
from metamix_tflite.operators.patches import patches
from metamix_tflite.targets import MacForm, Target

_LARGEST_SMALL_SUM = 2**27  # XNNPACK's kernels for ARM hold 16 times as much in an int32
_CHANNEL_AXIS = {"CONV_2D": 0, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 0, "TRANSPOSE_CONV": 0}
_WEIGHT_RANK = {"CONV_2D": 4, "DEPTHWISE_CONV_2D": 4, "FULLY_CONNECTED": 2, "TRANSPOSE_CONV": 4}
_GEOMETRY = ("padding", "strideH", "strideW", "dilationHFactor", "dilationWFactor")
_DEPTHWISE = (*_GEOMETRY, "depthMultiplier")
_CONTAINER = 'convert with target="edgetpu"'


class Mac(Family):
    """CONV_2D, DEPTHWISE_CONV_2D, TRANSPOSE_CONV or FULLY_CONNECTED.

    FULLY_CONNECTED takes patches for some convolutions, and gives blocks for some transposed ones.
    """

    layers: tuple[str, ...] = ("IntegerMac",)
    litert: tuple[Litert, ...] = (
        Litert("CONV_2D", (3,), schema.Conv2DOptions, _GEOMETRY),
        Litert("DEPTHWISE_CONV_2D", (3,), schema.DepthwiseConv2DOptions, _DEPTHWISE),
        Litert("FULLY_CONNECTED", (3,), schema.FullyConnectedOptions),
        Litert("TRANSPOSE_CONV", (4,), schema.TransposeConvOptions, _GEOMETRY[:3], source=2),
    )

    def write(self, file: FileWriter, node: Any) -> None:
        """A dense layer in a container without FULLY_CONNECTED is a CONV_2D between RESHAPEs."""
        layer = node.operation
        (source,) = file.read(node)
        result = batch_one(node.output)
        form = file.target.mac_form(
            layer.kind, layer.kernel_shape, layer.strides, source.shape[-1], layer.weight_bits
        )
        spread = layer.kind == "dense" and form.operator == "CONV_2D"
        if spread and len(result) != 4:
            width = math.prod(result[1:-1])
            source = reshaped(file, f"{node.name}/image", source, (1, 1, width, source.shape[-1]))
            result = (1, 1, width, result[-1])
        if form.blocks:
            result = (*source.shape[:3], math.prod(layer.kernel_shape[:3]))
        activation = file.fused_activation(node)
        check_multiplier(node, np.asarray(layer.multiplier))
        if form.patches:
            source = patches(file, node.name, source, layer, result)
        if form.container != "INT8" and file.target.held.xnnpack:
            _check_reach(node)
        constants = _write_constants(file, node, form)
        target = file.tensor(node.name, result, layer.output_grid, activation)
        file.values[id(node.output)] = target
        if layer.layer:  # constants have no bit-width
            each, shared = math.prod(result), layer.channels
            if layer.kind == "transpose":
                each, shared = math.prod(source.shape), source.shape[-1]
            macs = each * math.prod(layer.kernel_shape) // shared
            file.declared["bops"] += macs * layer.input_grid.bits * layer.weight_bits
        op, options, version = _mac_operator(node, form, activation)
        inputs = [source.index, *constants]
        if form.operator == "TRANSPOSE_CONV":
            inputs = [file.vector(f"{node.name}/size", list(result)), constants[0], *inputs[::2]]
        file.graph.operator(op, inputs, [target.index], options, version)
        if form.blocks:
            shape = batch_one(node.output)
            file.values[id(node.output)] = laid_out(file, node.name + BLOCKS, target, shape)
            return
        if result != batch_one(node.output):
            flat = reshaped(file, f"{node.name}/flat", target, batch_one(node.output))
            file.values[id(node.output)] = flat

    def check(self, call: Call) -> None:
        if call.operator.op == "TRANSPOSE_CONV":
            size, shape = call.inputs[0].data, call.output.shape
            if size is None or not np.array_equal(size, shape):
                call.fail("size", shape, size)

    def check_declared(self, call: Call, entry: dict[str, Any], target: Target) -> None:
        """Holds weights and bias to what the file declares of them.

        Args:
          call: the operator.
          entry: what is declared of its layer.
          target: what the file was written for.

        Raises:
          VerificationError: names the layer, what was declared and what was found.
        """
        source, weights, bias = _operands(call)
        _check_weights(call, entry, target)
        if bias.type != "INT32" or bias.data is None or bias.shape != weights.scales.shape:
            call.fail("bias", f"{weights.scales.size} INT32", f"{bias.shape} {bias.type}")
        elif checksum(bias.data) != entry["bias"]:
            call.fail("bias", f"checksum {entry['bias']}", "other integers")
        if not np.array_equal(bias.scales, source.scales * weights.scales):
            call.fail("bias scale", "input scale x weight scales", bias.scales[:3])
        if np.any(bias.zero_points != 0):
            call.fail("bias zero-points", 0, bias.zero_points[:3])

    def macs(self, call: Call) -> int:
        """Multiply-accumulates: each output value takes as many as its channel has weights."""
        source, weights, _ = _operands(call)
        shape = weights.shape
        if call.operator.op == "TRANSPOSE_CONV":  # each input value as many as its channel
            return math.prod(source.shape) * math.prod(shape[:3])
        channels = shape[_CHANNEL_AXIS[call.operator.op]]
        return math.prod(call.output.shape) * math.prod(shape) // channels

    def edge_tpu_refusal(self, call: Call) -> str:
        weights, source = call.inputs[1], call.inputs[2 * (call.operator.op == "TRANSPOSE_CONV")]
        if weights.data is None:
            return "its weights are no constant"
        if call.operator.op == "FULLY_CONNECTED":
            if weights.scales.size > 1:
                return f"has a scale for each channel, newer than the compiler: {_CONTAINER}"
            if sum(size > 1 for size in call.output.shape) > 1:
                return f"its output has more than one dimension: {_CONTAINER}"
        if call.operator.op == "CONV_2D" and weights.shape[-1] != source.shape[-1]:
            return "grouped, which is not on Coral's list: use a depthwise or a full one"
        return ""


def _operands(call: Call) -> tuple[FileTensor, FileTensor, FileTensor]:
    """What an operator reads: activations, weights and bias."""
    if call.operator.op == "TRANSPOSE_CONV":
        _, weights, source, bias = call.inputs
    else:
        source, weights, bias = call.inputs
    return source, weights, bias


def _write_constants(file: FileWriter, node: Any, form: MacForm) -> list[int]:
    """Weights and bias, declared."""
    layer = node.operation
    kernel, scale = np.asarray(layer.kernel), np.asarray(layer.weight_scale)
    bias = np.asarray(layer.bias)
    if form.blocks:  # a row for each pixel of a block
        pixels = math.prod(kernel.shape[:2])
        scale, bias = np.tile(scale, pixels), np.tile(bias, pixels)
    data, dimension = _layout(kernel, layer.kind, form.operator == "FULLY_CONNECTED")
    name, held = f"{node.name}/weights", getattr(TensorType, form.container)
    weights = file.graph.tensor(name, data.shape, held, scale, 0, data, dimension)
    bias_scale = np.float32(layer.input_grid.scale) * scale
    biases = file.graph.tensor(
        f"{node.name}/bias", bias.shape, TensorType.INT32, bias_scale, 0, bias
    )
    file.declared["layers"][node.name] = {
        "layer": layer.layer or "",  # constants have no trained layer
        "activation_bits": layer.input_grid.bits,
        "weight_bits": layer.weight_bits,
        "container": form.container,
        "weights": checksum(data.astype(np.int8)),
        "weight_scales": checksum(scale),
        "bias": checksum(bias.astype(np.int32)),
    }
    return [weights, biases]


def _layout(kernel: np.ndarray, kind: str, matrix: bool) -> tuple[np.ndarray, int]:
    """A kernel as LiteRT's operator has it, and the axis of its output channels."""
    if kind == "depthwise":
        return kernel.reshape(1, *kernel.shape[:2], -1), 3
    if kind == "transpose":
        rows = kernel.reshape(-1, kernel.shape[-1])  # of (row, column, channel) of a block
        return rows if matrix else kernel.transpose(2, 0, 1, 3), 0
    if matrix:
        return kernel.reshape(-1, kernel.shape[-1]).T, 0
    return kernel.reshape(*(1, 1)[: 4 - kernel.ndim], *kernel.shape).transpose(3, 0, 1, 2), 0


def _mac_operator(node: Any, form: MacForm, activation: str) -> tuple[int, Any, int]:
    """Operator, options and the lowest version that has the types."""
    layer = node.operation
    op, version = getattr(Op, form.operator), 3 if form.container == "INT8" else 6
    if form.operator == "FULLY_CONNECTED":
        version, options = 12, schema.FullyConnectedOptionsT()
        options.keepNumDims = True
    elif form.operator == "TRANSPOSE_CONV":
        version, options = 3 if activation == "NONE" else 4, schema.TransposeConvOptionsT()
    elif form.operator == "CONV_2D":
        options = schema.Conv2DOptionsT()
    else:
        options = schema.DepthwiseConv2DOptionsT()
        options.depthMultiplier = layer.kernel_shape[-1]
    if form.operator != "FULLY_CONNECTED":
        options.padding = PADDING[_padding(layer)]
        options.strideH, options.strideW = layer.strides
    if form.operator in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        options.dilationHFactor, options.dilationWFactor = layer.dilation_rate
    options.fusedActivationFunction = getattr(Fused, activation)
    return op, options, version


def _padding(layer: Any) -> str:
    """A layer's padding: XNNPACK takes no "same" where the kernel is below the stride.

    Nothing is cut there.
    """
    sizes = zip(layer.kernel_shape, layer.strides, strict=False)
    uncut = layer.kind == "transpose" and all(size <= stride for size, stride in sizes)
    return "valid" if uncut else layer.padding


def _check_reach(node: Any) -> None:
    """Raises unless the largest sum of weights of few bits fits XNNPACK's kernels for ARM."""
    largest = node.operation.largest_sum()
    if largest >= _LARGEST_SMALL_SUM:
        raise ValueError(
            f"Layer {node.name!r}: sums may reach {largest:,}, and weights of few bits "
            f"take less than {_LARGEST_SMALL_SUM:,} on ARM: give it more than 4 bits."
        )


def _check_weights(call: Call, entry: dict[str, Any], target: Target) -> None:
    op, (_, weights, _), weight_bits = call.operator.op, _operands(call), entry["weight_bits"]
    if weights.type != entry["container"]:
        call.fail("container", entry["container"], weights.type)
    if weights.data is None:
        call.fail("weights", "a constant", "none")
    if not 2 <= weight_bits <= 8:
        call.fail("weight bits", weight_bits, "no such bit-width")
    high = 2 ** (weight_bits - 1) - 1
    largest = int(np.abs(weights.data.astype(np.int32)).max(initial=0))
    if largest > high:
        call.fail("weight range", f"+-{high} ({weight_bits} bits)", largest)
    if checksum(weights.data) != entry["weights"]:
        call.fail("weights", f"checksum {entry['weights']}", "other integers")
    if len(weights.shape) != _WEIGHT_RANK[op]:
        call.fail("weight shape", f"{_WEIGHT_RANK[op]} dimensions", weights.shape)
    channels = (_CHANNEL_AXIS[op], weights.shape[_CHANNEL_AXIS[op]])
    if (weights.quantized_dimension, weights.scales.size) != channels:
        found = (weights.quantized_dimension, weights.scales.size)
        call.fail("axis and number of weight scales", channels, found)
    if np.any(weights.zero_points != 0):
        call.fail("weight zero-points", 0, weights.zero_points[:3])
    if checksum(weights.scales) != entry["weight_scales"]:
        call.fail("weight scales", f"checksum {entry['weight_scales']}", weights.scales[:3])
    if op == "FULLY_CONNECTED" and not target.takes_matrix():
        call.fail(f"operator of target {target.name!r}", "CONV_2D", op)
    rule = target.held.weight_type(op, weight_bits, weights.shape[-1])
    if weights.type != rule:
        call.fail(f"container of {target.container!r}", rule, weights.type)

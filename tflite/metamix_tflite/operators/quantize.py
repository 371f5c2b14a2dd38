"""Where floats and bytes become levels, and levels floats: a file's inputs and outputs."""

from __future__ import annotations

from typing import Any

from metamix_tflite.encoding import Op, TensorType
from metamix_tflite.operators.base import (
    Call,
    Family,
    FileWriter,
    Litert,
    WrittenTensor,
    require_unclipped,
)


class Quantize(Family):
    """QUANTIZE of an input of floats or bytes; with io="int8" the input itself."""

    layers: tuple[str, ...] = ("QuantizeInput",)
    litert: tuple[Litert, ...] = (Litert("QUANTIZE", (1,), gpu=False),)

    def write(self, file: FileWriter, node: Any) -> None:
        layer, (source,) = node.operation, file.read(node)
        require_unclipped(node)
        target = file.output(node, layer.output_grid)
        name = node.inputs[0].name
        if file.io == "int8" and name in file.inputs:
            raise ValueError(f"Input {name!r} is quantized twice, which io='int8' cannot hold.")
        if file.io == "int8":
            file.inputs[name] = target
        else:
            file.graph.operator(Op.QUANTIZE, [source.index], [target])

    def check(self, call: Call) -> None:
        """An input of bytes holds the levels of the INT8 tensor behind it, 128 above its codes."""
        (source,), target = call.inputs, call.output
        if source.type not in ("FLOAT32", "UINT8"):
            call.fail("type of its input", "FLOAT32 or UINT8", source.type)
        if source.type == "UINT8":
            expected = target.scales.tolist(), (target.zero_points + 128).tolist()
            found = source.scales.tolist(), source.zero_points.tolist()
            if found != expected:
                call.fail("scale and zero-point of its input", expected, found)


class Dequantize(Family):
    """DEQUANTIZE of an output; with io="int8" the output itself."""

    layers: tuple[str, ...] = ("Dequantize",)
    litert: tuple[Litert, ...] = (Litert("DEQUANTIZE", (1,), gpu=False, edge_tpu=False),)

    def write(self, file: FileWriter, node: Any) -> None:
        (source,) = file.read(node)
        if file.io == "int8":
            file.values[id(node.output)] = source
            return
        index = file.graph.tensor(node.name, source.shape, TensorType.FLOAT32)
        file.values[id(node.output)] = WrittenTensor(index, source.shape, None)
        file.graph.operator(Op.DEQUANTIZE, [source.index], [index], version=2)

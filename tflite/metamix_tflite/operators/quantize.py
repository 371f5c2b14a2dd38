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
    """QUANTIZE of an input of floats or bytes; with io="int8" the input itself.

    With io="uint8" also of an output: to bytes, 128 above its codes.
    """

    layers: tuple[str, ...] = ("QuantizeInput",)
    litert: tuple[Litert, ...] = (Litert("QUANTIZE", (1,), gpu=False),)

    def write(self, file: FileWriter, node: Any) -> None:
        layer, (source,) = node.operation, file.read(node)
        require_unclipped(node)
        target = file.output(node, layer.output_grid)
        name, io = node.inputs[0].name, file.target.io
        if source.index >= 0:
            file.graph.operator(Op.QUANTIZE, [source.index], [target])
            return
        if name in file.inputs:
            raise ValueError(f"Input {name!r} is quantized twice, which io={io!r} cannot hold.")
        if io == "int8":
            file.inputs[name] = target
            return
        file.inputs[name] = _bytes(file, name, source.shape, layer.output_grid)
        file.graph.operator(Op.QUANTIZE, [file.inputs[name]], [target])

    def check(self, call: Call) -> None:
        """Bytes hold the levels of the INT8 tensor behind or before them, 128 above its codes."""
        (source,), target = call.inputs, call.output
        types = source.type, target.type
        if types not in (("FLOAT32", "INT8"), ("UINT8", "INT8"), ("INT8", "UINT8")):
            expected = "FLOAT32 or UINT8 to INT8, or INT8 to UINT8"
            call.fail("types of its input and output", expected, " to ".join(types))
        if "UINT8" in types:
            codes, end = (target, source) if source.type == "UINT8" else (source, target)
            where = "input" if end is source else "output"
            expected = codes.scales.tolist(), (codes.zero_points + 128).tolist()
            found = end.scales.tolist(), end.zero_points.tolist()
            if found != expected:
                call.fail(f"scale and zero-point of its {where}", expected, found)


def _bytes(file: FileWriter, name: str, shape: tuple[int, ...], grid: Any) -> int:
    """Index of a tensor of bytes, 128 above the codes of a grid."""
    return file.graph.tensor(name, shape, TensorType.UINT8, grid.scale, grid.zero_point + 128)


class Dequantize(Family):
    """DEQUANTIZE of an output; of io="int8" the output itself, of io="uint8" its QUANTIZE."""

    layers: tuple[str, ...] = ("Dequantize",)
    litert: tuple[Litert, ...] = (Litert("DEQUANTIZE", (1,), gpu=False, edge_tpu=False),)

    def write(self, file: FileWriter, node: Any) -> None:
        (source,) = file.read(node)
        if file.target.io == "int8":
            file.values[id(node.output)] = source
            return
        if file.target.io == "uint8":
            index = _bytes(file, node.name, source.shape, source.grid)
            file.values[id(node.output)] = WrittenTensor(index, source.shape, None)
            file.graph.operator(Op.QUANTIZE, [source.index], [index])
            return
        index = file.graph.tensor(node.name, source.shape, TensorType.FLOAT32)
        file.values[id(node.output)] = WrittenTensor(index, source.shape, None)
        file.graph.operator(Op.DEQUANTIZE, [source.index], [index], version=2)

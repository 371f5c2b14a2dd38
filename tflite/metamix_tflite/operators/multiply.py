"""Products of two tensors, and of a tensor and a constant, which rescales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from metamix_tflite.encoding import Op, TensorType
from metamix_tflite.operators.add import write_combination
from metamix_tflite.operators.base import (
    Call,
    Family,
    FileWriter,
    LevelRange,
    Litert,
    check_multiplier,
    requantized,
    saturation,
)

_LEAST = 2.0**-16  # XNNPACK leaves products of smaller scale ratios to others


class Multiply(Family):
    """MUL of two tensors, and MUL by a constant: 1 of another scale, or one for each pixel."""

    layers: tuple[str, ...] = ("IntegerMultiply", "Rescale", "IntegerFactors")
    litert: tuple[Litert, ...] = (Litert("MUL", (2,), schema.MulOptions),)

    def write(self, file: FileWriter, node: Any) -> None:
        layer, inputs = node.operation, [t.index for t in file.read(node)]
        if hasattr(layer, "factors"):
            product = np.float32(layer.input_grid.scale) * layer.scale
            inputs.append(_factors(file, node))
        elif len(inputs) == 1:  # Rescale
            product = np.float32(layer.input_grid.scale) * layer.factor
            inputs.append(_one(file, node))
        else:
            product = np.prod([np.float32(grid.scale) for grid in layer.input_grids])
        check_multiplier(node, product / np.float32(layer.output_grid.scale), _LEAST)
        write_combination(file, node, Op.MUL, schema.MulOptionsT(), inputs)

    def levels(self, call: Call, ranges: Mapping[int, LevelRange]) -> LevelRange:
        found, full = super().levels(call, ranges), saturation(call.output)
        if call.operator.activation == "NONE" and full.low < 0 and full.low != -128:
            return _by_constant(call, ranges) or found
        return found

    def computed(self, call: Call, levels: Sequence[np.ndarray]) -> np.ndarray:
        first, second, output = (
            np.float32(tensor.scales[0]) for tensor in (*call.inputs, call.output)
        )
        return requantized(call, levels[0] * levels[1], first * second / output)


def _one(file: FileWriter, node: Any) -> int:
    name, factor = f"{node.name}/one", float(node.operation.factor)
    return file.graph.tensor(name, (1,), TensorType.INT8, factor, 0, np.ones(1, np.int8))


def _factors(file: FileWriter, node: Any) -> int:
    data, scale = node.operation.factors[None, :, :, None], float(node.operation.scale)
    name = f"{node.name}/factors"
    return file.graph.tensor(name, data.shape, TensorType.INT8, scale, 0, data)


def _by_constant(call: Call, ranges: Mapping[int, LevelRange]) -> LevelRange | None:
    """Of a tensor by a positive constant: the product of its lower end."""
    index, target = call.operator.inputs[0], call.output
    source, factor = call.inputs
    if index not in ranges or factor.data is None or factor.data.size != 1:
        return None
    scale = source.scales[0] * factor.scales[0] / target.scales[0]
    low = int(np.rint(np.float32(ranges[index].low * factor.data.item()) * scale))
    full = saturation(target)
    return LevelRange(max(low, full.low), full.high, clipped=False)

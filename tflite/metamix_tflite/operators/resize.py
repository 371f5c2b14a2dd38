"""Enlarging and reducing images: by repeating or leaving out pixels, or bilinear."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from metamix_tflite.encoding import Op
from metamix_tflite.operators.base import Call, FileWriter, Litert, WrittenTensor, batch_one
from metamix_tflite.operators.concatenate import chain, joined
from metamix_tflite.operators.data_movement import DataMovement, reshaped, sliced

_WEIGHT_BITS = 11  # XNNPACK's


class Bilinear(DataMovement):
    """RESIZE_BILINEAR with half-pixel centers, from one scale to the same."""

    layers: tuple[str, ...] = ("IntegerResize",)
    geometry = ("alignCorners", "halfPixelCenters")
    litert: tuple[Litert, ...] = (
        Litert("RESIZE_BILINEAR", (2,), geometry=geometry, fixed_point=False),
    )
    constants: tuple[int, ...] = (2,)

    def write(self, file: FileWriter, node: Any) -> None:
        (source,), options = file.read(node), schema.ResizeBilinearOptionsT()
        options.halfPixelCenters = True
        size = file.vector(f"{node.name}/size", list(node.operation.size))
        target = file.output(node, source.grid)
        inputs = [source.index, size]
        file.graph.operator(Op.RESIZE_BILINEAR, inputs, [target], options, version=3)

    def computed(self, call: Call, levels: Sequence[np.ndarray]) -> np.ndarray:
        x = levels[0]
        for axis in (2, 1):
            size, count = x.shape[axis], call.output.shape[axis]
            ratio = np.float32(size) / np.float32(count)
            places = np.arange(count, dtype=np.float32) * ratio
            places += np.float32(0.5) * ratio - np.float32(0.5)
            places = np.clip(places, 0, size - 1)
            low = places.astype(np.int64)
            weights = np.rint((places - low.astype(np.float32)) * 2.0**_WEIGHT_BITS)
            weights = weights.astype(np.int64).reshape(-1, *[1] * (3 - axis))
            first, second = (x.take(i, axis) for i in (low, np.minimum(low + 1, size - 1)))
            x = (first << _WEIGHT_BITS) + (second - first) * weights
        return (x + (1 << (2 * _WEIGHT_BITS - 1))) >> (2 * _WEIGHT_BITS)


class Nearest(DataMovement):
    """CONCATENATION of copies, or STRIDED_SLICE, between RESHAPEs: pixels repeated or left out.

    XNNPACK leaves RESIZE_NEAREST_NEIGHBOR and TILE to others.
    """

    layers: tuple[str, ...] = ("UpSampling2D", "Resizing", "Resize")

    def write(self, file: FileWriter, node: Any) -> None:
        (x,), shape = file.read(node), batch_one(node.output)
        name, (height, width, channels) = node.name, x.shape[1:]
        columns, rows = _factor(width, shape[2]), _factor(height, shape[1])
        if columns > 1:
            x = _copies(file, f"{name}/columns", x, columns)
        if columns < -1:
            x = reshaped(file, f"{name}/strides", x, (1, height, shape[2], -columns * channels))
            place, part = -columns // 2 * channels, (1, height, shape[2], channels)
            x = sliced(file, f"{name}/columns", x, (0, 0, place), part)
        width = shape[2] * channels
        if rows > 1:
            x = reshaped(file, f"{name}/rows", x, (1, height, 1, width))
            x = _copies(file, f"{name}/repeated", x, rows)
        if rows < -1:
            x = reshaped(file, f"{name}/rows", x, (1, shape[1], -rows, width))
            place, part = -rows // 2, (1, shape[1], 1, width)
            x = sliced(file, f"{name}/kept", x, (0, place, 0), part)
        file.values[id(node.output)] = reshaped(file, name, x, shape)

    def outline(self, node: Any) -> list[tuple[int, tuple[int, ...]]]:
        found: list[tuple[int, tuple[int, ...]]] = []
        reshape, cut = (1, (4,)), (1, (4, 4, 4))
        (_, *before, _), (_, *after, _) = node.inputs[0].shape, node.output.shape
        rows, columns = map(_factor, before, after)
        found += [(inputs, ()) for inputs in chain(columns)] if columns > 1 else []
        found += [reshape, cut] if columns < -1 else []
        found += [reshape, *((inputs, ()) for inputs in chain(rows))] if rows > 1 else []
        found += [reshape, cut] if rows < -1 else []
        return [*found, reshape]


def _factor(before: int, after: int) -> int:
    """How often each value of an axis is repeated; negative: one of so many is kept."""
    return after // before if after >= before else -(before // after)


def _copies(file: FileWriter, name: str, source: WrittenTensor, count: int) -> WrittenTensor:
    """A tensor's channels `count` times."""
    return joined(file, name, [source] * count)

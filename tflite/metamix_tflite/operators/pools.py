"""Largest values of windows."""

from __future__ import annotations

from typing import Any

from ai_edge_litert import schema_py_generated as schema

from metamix_tflite.containers import xnnpack_takes_pool
from metamix_tflite.encoding import PADDING, Op
from metamix_tflite.operators.base import FileWriter, Litert, Outside, WrittenTensor, batch_one
from metamix_tflite.operators.data_movement import DataMovement, reshaped

_GEOMETRY = ("padding", "strideH", "strideW", "filterHeight", "filterWidth")


class MaxPool(DataMovement):
    """MAX_POOL_2D of windows."""

    layers: tuple[str, ...] = ("MaxPooling2D",)
    litert: tuple[Litert, ...] = (Litert("MAX_POOL_2D", (1,), schema.Pool2DOptions, _GEOMETRY),)

    def write(self, file: FileWriter, node: Any) -> None:
        layer, (source,) = node.operation, file.read(node)
        target = file.output(node, source.grid)
        if file.target.exact_kernels == "xnnpack" and not xnnpack_takes_pool(
            layer.pool_size, layer.strides
        ):
            sizes = f"window {tuple(layer.pool_size)} and strides {tuple(layer.strides)}"
            file.outside[node.name] = Outside(
                f"XNNPACK has no max pool of {sizes}", "Strides of at most the window"
            )
        _pool(file, source, target, layer.pool_size, layer.strides, layer.padding)


class GlobalMaxPool(DataMovement):
    """MAX_POOL_2D over all of height and width."""

    layers: tuple[str, ...] = ("GlobalMaxPooling2D",)

    def write(self, file: FileWriter, node: Any) -> None:
        (source,) = file.read(node)
        if node.operation.keepdims:
            target = file.output(node, source.grid)
            _pool(file, source, target, source.shape[1:3], (1, 1), "valid")
            return
        pooled = file.tensor(f"{node.name}/pooled", (1, 1, 1, source.shape[3]), source.grid)
        _pool(file, source, pooled.index, source.shape[1:3], (1, 1), "valid")
        flat = reshaped(file, node.name, pooled, batch_one(node.output))
        file.values[id(node.output)] = flat

    def outline(self, node: Any) -> list[tuple[int, tuple[int, ...]]]:
        return [(1, ())] if node.operation.keepdims else [(1, ()), (1, (4,))]


def _pool(
    file: FileWriter, source: WrittenTensor, target: int, size: Any, strides: Any, padding: str
) -> None:
    options = schema.Pool2DOptionsT()
    options.padding = PADDING[padding]
    options.filterHeight, options.filterWidth = size
    options.strideH, options.strideW = strides
    file.graph.operator(Op.MAX_POOL_2D, [source.index], [target], options, version=2)

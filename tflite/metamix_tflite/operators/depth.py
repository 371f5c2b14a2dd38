"""Blocks of pixels as channels, and channels as blocks of pixels."""

from __future__ import annotations

from typing import Any

from ai_edge_litert import schema_py_generated as schema

from metamix_tflite.encoding import Op
from metamix_tflite.operators.base import FileWriter, Litert, WrittenTensor, batch_one
from metamix_tflite.operators.data_movement import DataMovement


class DepthToSpace(DataMovement):
    """DEPTH_TO_SPACE."""

    layers: tuple[str, ...] = ("DepthToSpace",)
    litert: tuple[Litert, ...] = (
        Litert("DEPTH_TO_SPACE", (1,), geometry=("blockSize",), gpu=False, edge_tpu=False),
    )

    def write(self, file: FileWriter, node: Any) -> None:
        (source,), shape = file.read(node), batch_one(node.output)
        file.values[id(node.output)] = laid_out(file, node.name, source, shape)


class SpaceToDepth(DataMovement):
    """SPACE_TO_DEPTH."""

    layers: tuple[str, ...] = ("SpaceToDepth",)
    litert: tuple[Litert, ...] = (
        Litert("SPACE_TO_DEPTH", (1,), geometry=("blockSize",), gpu=False),
    )

    def write(self, file: FileWriter, node: Any) -> None:
        (source,), options = file.read(node), schema.SpaceToDepthOptionsT()
        options.blockSize = node.operation.block_size
        target = file.output(node, source.grid)
        file.graph.operator(Op.SPACE_TO_DEPTH, [source.index], [target], options)


def laid_out(
    file: FileWriter, name: str, source: WrittenTensor, shape: tuple[int, ...]
) -> WrittenTensor:
    """DEPTH_TO_SPACE of a tensor, to a shape."""
    options = schema.DepthToSpaceOptionsT()
    options.blockSize = shape[1] // source.shape[1]
    target = file.tensor(name, shape, source.grid)
    file.graph.operator(Op.DEPTH_TO_SPACE, [source.index], [target.index], options)
    return target

"""Blocks of pixels as channels, and channels as blocks of pixels."""

from __future__ import annotations

from typing import Any

from keras_metamix.graph.operators.base import DataMovementOperator


class DepthToSpace(DataMovementOperator):
    """`keras.ops.depth_to_space`."""

    raw: tuple[str, ...] = ("DepthToSpace",)

    def litert(self, operation: Any) -> str:
        return "DEPTH_TO_SPACE"


class SpaceToDepth(DataMovementOperator):
    """`keras.ops.space_to_depth`."""

    raw: tuple[str, ...] = ("SpaceToDepth",)

    def litert(self, operation: Any) -> str:
        return "SPACE_TO_DEPTH"

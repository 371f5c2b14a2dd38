"""Enlarging and reducing images: by repeating or leaving out pixels, or bilinear."""

from __future__ import annotations

from typing import Any

from keras import layers

from keras_metamix.graph.kinds import Kind
from keras_metamix.graph.operators.base import DataMovementOperator
from keras_metamix.layers.resize import GridResize, IntegerResize

_SPACE = slice(1, 3)


class Resize(DataMovementOperator):
    """`UpSampling2D`, `Resizing`, `keras.ops.image.resize`: nearest by whole factors, or bilinear.

    Of the nearest ones the codes move; the bilinear ones round to the grid of their input.
    """

    layers: tuple[type, ...] = (layers.UpSampling2D, layers.Resizing, GridResize)
    raw: tuple[str, ...] = ("Resize",)

    def kind(self, operation: Any, node: Any) -> Kind:
        kind = {"nearest": Kind.PASS, "bilinear": Kind.ROUND}.get(_method(operation), Kind.FLOAT)
        if node is None or kind is Kind.FLOAT:
            return kind
        if len(node.output.shape) != 4:
            return Kind.FLOAT
        sizes = node.inputs[0].shape[_SPACE], node.output.shape[_SPACE]
        if sizes[0] == sizes[1]:
            return Kind.PASS
        whole = all(a % b == 0 or b % a == 0 for a, b in zip(*sizes, strict=True))
        return kind if kind is Kind.ROUND or whole else Kind.FLOAT

    def litert(self, operation: Any) -> str:
        return "RESHAPE" if _method(operation) == "nearest" else "RESIZE_BILINEAR"

    def layer(self, node: Any) -> Any:
        size = node.output.shape[_SPACE]
        if size == node.inputs[0].shape[_SPACE]:
            return layers.Identity(name=node.call_name)
        if _method(node.operation) == "bilinear":
            return IntegerResize(size, name=node.call_name)
        return super().layer(node)


def _method(operation: Any) -> str:
    """The interpolation, "" where it is more than that."""
    if isinstance(operation, GridResize):
        return "bilinear"
    more = ("antialias", "crop_to_aspect_ratio", "pad_to_aspect_ratio")
    return "" if any(getattr(operation, name, False) for name in more) else operation.interpolation

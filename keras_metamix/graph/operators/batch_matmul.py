"""Matrix products of two tensors, for each image: attention without a softmax."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from keras_metamix.graph.group import Group
from keras_metamix.graph.operators.base import Operator
from keras_metamix.layers.grid import Grid
from keras_metamix.layers.integer import EXACT_FLOAT32, Combination


@keras.saving.register_keras_serializable("keras_metamix")
class IntegerBatchMatmul(Combination):
    """Matrix product of two tensors over their last two axes; the second one's zero-point is 0.

    Args:
      transposed: of each tensor, whether its last two axes change places before.
    """

    def __init__(
        self,
        input_grids: Sequence[Grid | dict[str, Any]],
        output_grid: Grid | dict[str, Any],
        transposed: Sequence[bool] = (False, False),
        **kwargs: Any,
    ):
        super().__init__(input_grids, output_grid, **kwargs)
        self.transposed = tuple(transposed)

    def call(self, tensors: Sequence[Any]) -> Any:
        depth = tensors[0].shape[-2 if self.transposed[0] else -1]
        largest = depth * math.prod(max(-grid.low, grid.high) for grid in self.input_grids)
        exact = "float32" if largest < EXACT_FLOAT32 else "float64"
        first, second = (
            ops.swapaxes(ops.cast(tensor, exact), -1, -2) if turned else ops.cast(tensor, exact)
            for tensor, turned in zip(tensors, self.transposed, strict=True)
        )
        scales = [np.float32(grid.scale) for grid in self.input_grids]
        multiplier = scales[0] * scales[1] / np.float32(self.output_grid.scale)
        return self.requantize(ops.matmul(first, second), multiplier)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"transposed": list(self.transposed)}


@dataclasses.dataclass(frozen=True)
class Product:
    """How a call is a product of matrices.

    Attributes:
      order: places of the first and of the second factor among the tensors.
      transposed: of each factor, whether its last two axes change places before.
    """

    order: tuple[int, int] = (0, 1)
    transposed: tuple[bool, bool] = (False, False)


def product_of(operation: Any, tensors: Sequence[Any]) -> Product | None:
    """The product that an operation computes of two tensors, None for another operation.

    Args:
      operation: a layer or a raw operation.
      tensors: what it reads.
    """
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if len(shapes) != 2 or {*map(len, shapes)} & {0, 1, 2} or shapes[0][:-2] != shapes[1][:-2]:
        return None
    name = type(operation).__name__
    if name == "Matmul":
        return Product()
    if name == "Einsum":
        return _of_subscripts(operation.subscripts, len(shapes[0]))
    if isinstance(operation, layers.Dot) and not operation.normalize and len(shapes[0]) == 3:
        axes = operation.axes
        first, second = (axis % 3 for axis in ((axes, axes) if isinstance(axes, int) else axes))
        return Product(transposed=(first == 1, second == 2))
    return None


def product_macs(node: Any) -> int:
    """Products of two activations that a call sums up for an image, 0 of any other call."""
    product = product_of(node.operation, node.inputs)
    if product is None:
        return 0
    first = node.inputs[product.order[0]].shape
    return math.prod(node.output.shape[1:]) * first[-2 if product.transposed[0] else -1]


def _of_subscripts(subscripts: str, rank: int) -> Product | None:
    """The product that an einsum is, of tensors whose first axes are equal."""
    read, arrow, result = subscripts.replace(" ", "").partition("->")
    unnamed = "".join(letter for letter in "ABCDEFGH" if letter not in subscripts)
    terms = [
        term.replace("...", unnamed[: rank - len(term.replace("...", ""))])
        for term in (*read.split(","), result)
    ]
    if not arrow or len(terms) != 3 or {*map(len, terms)} != {rank}:
        return None
    if len({term[:-2] for term in terms}) != 1 or any(len({*term}) < rank for term in terms):
        return None
    ends = [term[-2:] for term in terms]
    for order in ((0, 1), (1, 0)):
        first, second = (ends[place] for place in order)
        rows, columns = ends[2]
        summed = {*first} - {rows}
        if rows in first and columns in second and summed == {*second} - {columns}:
            return Product(order, (first[1] == rows, second[0] == columns))
    return None


class BatchMatmul(Operator):
    """`keras.ops.matmul`, `keras.ops.einsum` and `keras.layers.Dot` of two tensors.

    The second factor is quantized with zero-point 0: `Kind.SYMMETRIC` precedes it.
    """

    title = "matrix product"
    litert = "BATCH_MATMUL"
    arity: int | None = 2
    fuses = False
    layers: tuple[type, ...] = (layers.Dot,)
    raw: tuple[str, ...] = ("Matmul", "Einsum")

    def refusal(self, node: Any) -> str | None:
        return None if product_of(node.operation, node.inputs) is None else ""

    def group(self, node: Any, sources: Sequence[Group], plan: Any) -> Group:
        group = super().group(node, sources, plan)
        return group.clipped(0.0, math.inf) if group.sign == "unsigned" else group

    def integers(self, node: Any, inputs: Sequence[Any], grid: Any, clip: dict[str, Any]) -> Any:
        product: Any = product_of(node.operation, node.inputs)
        first, second = (inputs[place] for place in product.order)
        if second.grid.zero_point != 0:
            raise ValueError(
                f"Layer {node.name!r}: expected a signed 8-bit quantizer before its second factor, "
                f"found a grid of zero-point {second.grid.zero_point}."
            )
        layer = IntegerBatchMatmul(
            [first.grid, second.grid], grid, product.transposed, name=node.call_name, **clip
        )
        return layer([first.tensor, second.tensor])

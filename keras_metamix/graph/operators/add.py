"""Sums of two tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_metamix.graph.operators.base import Operator
from keras_metamix.layers.fixed_point import multiplied
from keras_metamix.layers.integer import Combination

_ADD_BITS = 20  # XNNPACK's vadd multiplies by integers of 21 bits


@keras.saving.register_keras_serializable("keras_metamix")
class IntegerAdd(Combination):
    """Sum of two tensors in XNNPACK's fixed point, which is not the rounded real sum at ties.

    Each scale ratio becomes an integer of 21 bits, the larger one's top bit set; the sum of
    products is shifted right with half added. In fixed point both inputs are shifted left by 20
    bits, brought to twice the larger scale, and added.
    """

    has_fixed_point = True
    sign = 1  # of the second tensor

    def call(self, tensors: Sequence[Any]) -> Any:
        if self.fixed_point:
            scales = [np.float64(np.float32(grid.scale)) for grid in self.input_grids]
            common, output = 2 * max(scales), np.float64(np.float32(self.output_grid.scale))
            shifted = (ops.cast(tensor, "int64") * 2**_ADD_BITS for tensor in tensors)
            parts = [multiplied(x, s / common) for x, s in zip(shifted, scales, strict=True)]
            total = parts[0] + self.sign * parts[1]
            return self.clipped(multiplied(total, common / (2**_ADD_BITS * output)))
        output = np.float32(self.output_grid.scale)
        ratios = [np.float32(g.scale) / output for g in self.input_grids]
        exponent = int(np.frexp(max(ratios))[1]) - 1
        shift = _ADD_BITS - exponent
        factors = [float(np.rint(np.ldexp(np.float64(r), shift))) for r in ratios]
        first, second = (ops.cast(t, "float64") * f for t, f in zip(tensors, factors, strict=True))
        total = first + self.sign * second
        shifted = ops.floor((total + 2.0 ** (shift - 1)) / 2.0**shift)
        return ops.cast(ops.clip(shifted, self.low, self.high), "float32")


class Add(Operator):
    """`keras.layers.Add` and `keras.ops.add`."""

    title = "sum"
    litert = "ADD"
    arity: int | None = 2
    placewise = True
    layers: tuple[type, ...] = (keras.layers.Add,)
    raw: tuple[str, ...] = ("Add",)

    def integers(self, node: Any, inputs: Sequence[Any], grid: Any, clip: dict[str, Any]) -> Any:
        grids, tensors = [v.grid for v in inputs], [v.tensor for v in inputs]
        return IntegerAdd(grids, grid, name=node.call_name, **clip)(tensors)

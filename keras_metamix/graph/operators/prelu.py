"""PReLU of a slope for each channel: `slope * x + (1 - slope) * relu(x)`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_metamix.graph.fold_mac import four_dimensional
from keras_metamix.graph.group import Group, Stage
from keras_metamix.graph.operators.add import IntegerAdd
from keras_metamix.graph.operators.base import Operator
from keras_metamix.layers.grid import Grid
from keras_metamix.layers.integer import IntegerMac
from keras_metamix.layers.on_grid import QuantizedPReLU, prelu_steps

_SMALLEST = 1e-6  # a scale of INT8 is above 0


class PRelu(Operator):
    """`keras.layers.PReLU` with shared_axes=[1, 2]: two 1x1 depthwise convolutions and a sum."""

    title = "PReLU"
    litert = "ADD"
    stage = Stage.CLIPS
    layers: tuple[type, ...] = (keras.layers.PReLU,)

    def refusal(self, node: Any) -> str:
        slopes = node.operation.alpha
        if int(np.prod(slopes.shape)) != slopes.shape[-1]:
            axes = list(range(1, len(node.output.shape) - 1))
            return f"no exact integer form with a slope for each pixel; use shared_axes={axes}"
        if len(node.output.shape) not in (2, 4):
            return "not exported yet over this number of axes; put it before the Reshape"
        if node.occurrence:
            return "not exported yet where it is called several times; use a PReLU for each call"
        if float(ops.max(slopes)) > 1:
            return "no exact integer form with slopes above 1; clip its alpha at 1"
        return ""

    def trained(self, node: Any) -> Any:
        return QuantizedPReLU

    def group(self, node: Any, sources: Sequence[Group], plan: Any) -> Group:
        return Group(node, self, self.stage)

    def finish(self, group: Group, grid: Grid, clip: dict[str, Any], fold: Any) -> Any:
        node: Any = group.head
        (source,) = group.inputs
        slopes = ops.convert_to_numpy(node.operation.alpha).reshape(-1).astype(np.float32)
        slopes = np.broadcast_to(slopes, node.output.shape[-1:])
        found = source.grid
        steps = prelu_steps(slopes, np.float32(found.step), found.low, found.high)
        linear, rectified = (float(ops.convert_to_numpy(step)) for step in steps)
        parts, grids = [], [Grid.of(linear, -128, 127), Grid.of(rectified, 0, 255)]
        for name, factors, target in zip(
            ("slope", "relu"), (slopes, 1 - slopes), grids, strict=True
        ):
            layer = _scaled(fold.names.new(f"{node.call_name}_{name}"), factors, found, target)
            parts.append(four_dimensional(layer, source.tensor, fold.names))
        return IntegerAdd(grids, grid, name=node.call_name, **clip)(parts)


def _scaled(name: str, factors: np.ndarray, source: Grid, target: Grid) -> IntegerMac:
    """A product with a factor for each channel, as a depthwise convolution with weights +-1."""
    layer = IntegerMac("depthwise", 8, (1, 1, factors.size, 1), source, target, name=name)
    kernel = np.sign(factors).reshape(layer.kernel_shape)
    scales = np.maximum(np.abs(factors), _SMALLEST)
    layer.set_integers(kernel, np.zeros(factors.size), scales)
    return layer

"""Layers of a folded network: the device's integer arithmetic, to the bit.

Tensors hold levels (integers, see `Grid`) as float32. Accumulators are exact: float32 where the
largest possible sum is below 2^24, float64 where not. Requantization is XNNPACK's: the int32
accumulator as float32, times a float32 multiplier, rounded half to even, clipped. Within
`in_fixed_point` it is that of LiteRT's reference kernels (`fixed_point.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from keras_metamix.layers.fixed_point import multiplied
from keras_metamix.layers.grid import Grid
from keras_metamix.ops.depthwise import depthwise_conv

EXACT_FLOAT32 = 2**24
_KINDS = (np.float32, np.float64)


class IntegerLayer(keras.layers.Layer):
    """A layer whose output lies on a grid.

    Args:
      output_grid: the grid.
      low, high: levels that the output is clipped to: the grid's, less what an activation cuts.

    Attributes:
      has_fixed_point: whether its arithmetic in fixed point is known.
      fixed_point: whether it computes so.
    """

    has_fixed_point = False
    fixed_point = False

    def __init__(
        self,
        output_grid: Grid | dict[str, Any],
        low: int | None = None,
        high: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.output_grid: Grid = as_grid(output_grid)
        self.low: int = self.output_grid.low if low is None else low
        self.high: int = self.output_grid.high if high is None else high

    def requantize(self, accumulator: Any, multiplier: Any, real: Any = None) -> Any:
        r"""The levels of an accumulator, in float32 or the same in fixed point.

        $$q = \mathrm{clip}(\mathrm{round}(A \cdot M), low, high)$$

        Args:
          accumulator: integers $A$.
          multiplier: $M$, float32.
          real: the multiplier in float64, for fixed point.
        """
        if self.fixed_point:
            return self.clipped(multiplied(accumulator, real))
        scaled = ops.cast(accumulator, "float32") * multiplier
        return ops.clip(ops.round(scaled), self.low, self.high)

    def clipped(self, levels: Any) -> Any:
        """Integer levels, clipped, as float32."""
        return ops.cast(ops.clip(levels, self.low, self.high), "float32")

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "output_grid": dataclasses.asdict(self.output_grid),
            "low": self.low,
            "high": self.high,
        }


@keras.saving.register_keras_serializable("keras_metamix")
class QuantizeInput(IntegerLayer):
    """Float to levels: `round(x * (1 / scale))` in float32; in fixed point `x / scale`, half up."""

    has_fixed_point = True

    def call(self, x: Any) -> Any:
        if self.fixed_point:
            quotient = ops.cast(x, "float32") / np.float32(self.output_grid.scale)
            away = ops.sign(quotient) * ops.floor(ops.abs(quotient) + 0.5)
            return ops.clip(away, self.low, self.high)
        return self.requantize(x, np.float32(1.0) / np.float32(self.output_grid.scale))


@keras.saving.register_keras_serializable("keras_metamix")
class Dequantize(keras.layers.Layer):
    """Levels to float: an output of the network.

    Args:
      input_grid: of the levels.
      output: the output's name.
    """

    def __init__(self, input_grid: Grid | dict[str, Any], output: str, **kwargs: Any):
        super().__init__(**kwargs)
        self.input_grid, self.output_name = as_grid(input_grid), output

    def call(self, x: Any) -> Any:
        return x * np.float32(self.input_grid.scale)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "input_grid": dataclasses.asdict(self.input_grid),
            "output": self.output_name,
        }


@keras.saving.register_keras_serializable("keras_metamix")
class IntegerMac(IntegerLayer):
    """A convolution of any kind or a dense layer with batch norm folded in.

    Args:
      kind: "conv", "depthwise", "transpose" or "dense".
      weight_bits: bit-width of the integers in the kernel.
      kernel_shape: as Keras has it.
      input_grid: of the input.
      strides, padding, dilation_rate: of the convolution.
      layer: name of the trained layer (one that is called twice folds into two); None for
        constants: batch norm on its own, average pooling.

    Variables: `kernel` int8, the trained integers (a channel whose folded scale is negative has
    them negated); `bias` int32; `weight_scale` float32 for each output channel; `multiplier`.
    """

    has_fixed_point = True

    def __init__(
        self,
        kind: Literal["conv", "depthwise", "transpose", "dense"],
        weight_bits: int,
        kernel_shape: Sequence[int],
        input_grid: Grid | dict[str, Any],
        output_grid: Grid | dict[str, Any],
        strides: Sequence[int] = (1, 1),
        padding: str = "valid",
        dilation_rate: Sequence[int] = (1, 1),
        accumulator: Literal["float32", "float64"] = "float64",
        layer: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(output_grid, **kwargs)
        self.kind, self.weight_bits = kind, weight_bits
        self.kernel_shape = tuple(kernel_shape)
        self.input_grid = as_grid(input_grid)
        self.strides, self.dilation_rate = tuple(strides), tuple(dilation_rate)
        self.padding, self.accumulator = padding, accumulator
        self.layer = layer
        self.channels = math.prod(self.kernel_shape[axis] for axis in self._channel_axes)

    def build(self, input_shape: Any) -> None:
        def variable(name: str, shape: tuple[int, ...], dtype: str) -> Any:
            return self.add_weight(shape, "zeros", dtype=dtype, trainable=False, name=name)

        self.kernel = variable("kernel", self.kernel_shape, "int8")
        self.bias = variable("bias", (self.channels,), "int32")
        self.weight_scale = variable("weight_scale", (self.channels,), "float32")
        self.multiplier = variable("multiplier", (self.channels,), "float32")

    @property
    def _channel_axes(self) -> tuple[int, ...]:
        """Axes of the kernel that together number the output channels."""
        return {"depthwise": (-2, -1), "transpose": (-2,)}.get(self.kind, (-1,))

    def set_integers(self, kernel: np.ndarray, bias: np.ndarray, weight_scale: np.ndarray) -> None:
        """Sets the variables and chooses an accumulator that holds every possible sum."""
        if not self.built:
            self.build(None)
        self.kernel.assign(kernel.astype(np.int8))
        self.bias.assign(bias.astype(np.int32))
        scale = weight_scale.astype(np.float32)
        self.weight_scale.assign(scale)
        product = np.float32(self.input_grid.scale) * scale
        self.multiplier.assign(product / np.float32(self.output_grid.scale))
        self.accumulator = "float32" if self.largest_sum() < EXACT_FLOAT32 else "float64"

    def largest_sum(self) -> int:
        """The largest magnitude that an accumulator can reach, its bias included."""
        kernel = np.abs(np.asarray(self.kernel).astype(np.int64))
        channels = {axis % kernel.ndim for axis in self._channel_axes}
        axes = tuple(axis for axis in range(kernel.ndim) if axis not in channels)
        levels = max(abs(self.input_grid.low), self.input_grid.high)
        bias = np.abs(np.asarray(self.bias).astype(np.int64))
        return int((kernel.sum(axis=axes).reshape(-1) * levels + bias).max())

    def call(self, x: Any) -> Any:
        x = ops.cast(x, self.accumulator)
        kernel = ops.cast(self.kernel, self.accumulator)
        if self.kind == "dense":
            sums = ops.matmul(x, kernel)
        elif self.kind == "transpose":
            sums = ops.conv_transpose(x, kernel, self.strides, self.padding)
        else:
            convolve = ops.conv if self.kind == "conv" else depthwise_conv
            sums = convolve(x, kernel, self.strides, self.padding, dilation_rate=self.dilation_rate)
        sums = sums + ops.cast(self.bias, self.accumulator)
        real = ops.cast(self.weight_scale, "float64") * _float64(self.input_grid.scale)
        return self.requantize(sums, self.multiplier, real / _float64(self.output_grid.scale))

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "kind": self.kind,
            "weight_bits": self.weight_bits,
            "kernel_shape": list(self.kernel_shape),
            "input_grid": dataclasses.asdict(self.input_grid),
            "strides": list(self.strides),
            "padding": self.padding,
            "dilation_rate": list(self.dilation_rate),
            "accumulator": self.accumulator,
            "layer": self.layer,
        }


@contextlib.contextmanager
def in_fixed_point(folded: keras.Model) -> Iterator[list[str]]:
    """A folded network computes as LiteRT's reference kernels within.

    Yields:
      The names of the layers whose arithmetic there is not known: they compute as ever.
    """
    layers = [layer for layer in folded.layers if isinstance(layer, IntegerLayer)]
    known = [layer for layer in layers if layer.has_fixed_point]
    try:
        for layer in known:
            layer.fixed_point = True
        yield [layer.name for layer in layers if not layer.has_fixed_point]
    finally:
        for layer in known:
            layer.fixed_point = False


def product_ratio(first: Any, second: Any, output: Any) -> tuple[Any, Any]:
    """The multiplier of a product of two levels by their scales, in float32 and in float64."""
    single, double = (kind(np.float32(first)) * kind(np.float32(second)) for kind in _KINDS)
    return single / np.float32(output), double / _float64(output)


def _float64(scale: float) -> np.float64:
    """A scale as the file holds it."""
    return np.float64(np.float32(scale))


class Combination(IntegerLayer):
    """An integer layer that reads several tensors, on `input_grids`."""

    def __init__(
        self,
        input_grids: Sequence[Grid | dict[str, Any]],
        output_grid: Grid | dict[str, Any],
        **kwargs: Any,
    ):
        super().__init__(output_grid, **kwargs)
        self.input_grids: tuple[Grid, ...] = tuple(as_grid(g) for g in input_grids)

    def get_config(self) -> dict[str, Any]:
        grids = [dataclasses.asdict(g) for g in self.input_grids]
        return super().get_config() | {"input_grids": grids}


@keras.saving.register_keras_serializable("keras_metamix")
class Rescale(IntegerLayer):
    """From one grid to another: on the device, a product with the constant 1 of scale `factor`."""

    has_fixed_point = True

    def __init__(
        self,
        input_grid: Grid | dict[str, Any],
        output_grid: Grid | dict[str, Any],
        **kwargs: Any,
    ):
        super().__init__(output_grid, **kwargs)
        self.input_grid = as_grid(input_grid)
        true_ratio = self.input_grid.step / self.output_grid.step
        scale_ratio = self.output_grid.scale / self.input_grid.scale
        self.factor = np.float32(true_ratio * scale_ratio)

    def call(self, x: Any) -> Any:
        scales = self.input_grid.scale, self.factor, self.output_grid.scale
        return self.requantize(x, *product_ratio(*scales))

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"input_grid": dataclasses.asdict(self.input_grid)}


def as_grid(grid: Grid | dict[str, Any]) -> Grid:
    """A grid, or the one that a config describes."""
    return grid if isinstance(grid, Grid) else Grid(**grid)

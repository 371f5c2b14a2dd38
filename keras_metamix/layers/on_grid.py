"""Layers that compute on the grid of their input, as the device does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_metamix.ops import straight_through

# XNNPACK's LEAKY_RELU multiplies by integers of so many units.
SLOPE_UNITS = 256


class OnGrid(keras.layers.Layer):
    """A layer of a quantized network whose integers depend on the grid of its input.

    Where the quantizer of its input acts, it computes the device's values, and gradients are those
    of what it computes without quantizers; else it is the float model's layer, to the bit.

    Args:
      input_quantizer: name of that quantizer.
    """

    def __init__(self, *args: Any, input_quantizer: str | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.input_quantizer = input_quantizer
        self._input_grid: Callable[[], Any] | None = None

    def connect(self, input_grid: Callable[[], Any]) -> None:
        """Takes what gives step, lowest and highest level of its input, None in float."""
        self._input_grid = input_grid

    def call(self, inputs: Any) -> Any:
        grid = None if self._input_grid is None else self._input_grid()
        if grid is None:
            return super().call(inputs)
        real = self.on_device(inputs)
        step, low, high = (ops.stop_gradient(part) for part in grid)
        levels = ops.round(ops.stop_gradient(inputs) / step)
        return straight_through(real, self.quantized(levels, step, low, high))

    def on_device(self, inputs: Any) -> Any:
        """What the device computes but for rounding; gradients are its."""
        return super().call(inputs)

    def quantized(self, levels: Any, step: Any, low: Any, high: Any) -> Any:
        """What the device computes.

        Args:
          levels: of the input.
          step, low, high: of its grid.
        """
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        return config | {"input_quantizer": self.input_quantizer}


def slope_integer(slope: float) -> int:
    """The integer of XNNPACK's LEAKY_RELU for a slope, in units of 1 / 256."""
    return int(np.rint(np.float32(SLOPE_UNITS) * np.float32(slope)))


def leaky_levels(levels: Any, slope: int) -> Any:
    """Levels behind a leaky ReLU on their own grid: half is added before the shift right."""
    below = ops.floor((levels * slope + SLOPE_UNITS // 2) / SLOPE_UNITS)
    return ops.where(levels < 0, below, levels)


@keras.saving.register_keras_serializable("keras_metamix")
class QuantizedLeakyReLU(OnGrid, keras.layers.LeakyReLU):
    """`keras.layers.LeakyReLU`; of quantized tensors on their own grid, its slope in 1 / 256."""

    def on_device(self, inputs: Any) -> Any:
        return ops.leaky_relu(inputs, slope_integer(self.negative_slope) / SLOPE_UNITS)

    def quantized(self, levels: Any, step: Any, low: Any, high: Any) -> Any:
        return leaky_levels(levels, slope_integer(self.negative_slope)) * step


def window_counts(shape: Any, size: Any, strides: Any) -> np.ndarray:
    """How many values each window of a pool with padding="same" averages, shape (height, width).

    Args:
      shape: of the pool's input, (batch, height, width, channels).
      size, strides: of the pool, (height, width).
    """
    rows, columns = (_inside(*axis) for axis in zip(shape[1:3], size, strides, strict=True))
    return rows[:, None] * columns


def _inside(length: int, size: int, stride: int) -> np.ndarray:
    count = -(-length // stride)
    begin = np.arange(count) * stride - max((count - 1) * stride + size - length, 0) // 2
    return np.minimum(begin + size, length) - np.maximum(begin, 0)


@keras.saving.register_keras_serializable("keras_metamix")
class QuantizedAveragePooling2D(OnGrid, keras.layers.AveragePooling2D):
    """`keras.layers.AveragePooling2D` over a border, which the device rounds twice."""

    def quantized(self, levels: Any, step: Any, low: Any, high: Any) -> Any:
        counts = window_counts(levels.shape, self.pool_size, self.strides)[None, :, :, None]
        sums = ops.round(keras.layers.AveragePooling2D.call(self, levels) * np.float32(counts))
        size = self.pool_size[0] * self.pool_size[1]
        return ops.round(sums * np.float32(1 / size)) * np.float32(size / counts) * step


# Of a slope, or of 1 less it: what scales of INT8 are made for at least.
_LEAST_SLOPE = 1 / 16


class AtMostOne(keras.constraints.Constraint):
    """Keeps slopes at 1 or below, behind a constraint of the user's own."""

    def __init__(self, before: Any = None):
        self.before = before

    def __call__(self, w: Any) -> Any:
        return ops.minimum(w if self.before is None else self.before(w), 1.0)


def prelu_steps(slopes: Any, step: Any, low: Any, high: Any) -> tuple[Any, Any]:
    r"""Steps of the two INT8 tensors whose sum a PReLU is.

    $$\mathrm{PReLU}(x) = a \, x + (1 - a) \, \mathrm{relu}(x)$$

    Args:
      slopes: $a$ of the channels.
      step, low, high: of the input's grid.
    """
    steepest = ops.maximum(ops.max(ops.abs(slopes)), _LEAST_SLOPE)
    excess = ops.maximum(ops.max(1.0 - slopes), _LEAST_SLOPE)
    largest = ops.maximum(ops.cast(high, "float32"), -ops.cast(low, "float32") - 1)
    return step * steepest * largest / 127.0, step * excess * high / 255.0


@keras.saving.register_keras_serializable("keras_metamix")
class QuantizedPReLU(OnGrid, keras.layers.PReLU):
    """`keras.layers.PReLU` of a slope for each channel, which the device adds up of two tensors."""

    def build(self, input_shape: Any) -> None:
        own, self.alpha_constraint = self.alpha_constraint, AtMostOne(self.alpha_constraint)
        super().build(input_shape)
        self.alpha_constraint = own  # that of the config

    def quantized(self, levels: Any, step: Any, low: Any, high: Any) -> Any:
        slopes = ops.convert_to_tensor(self.alpha)
        linear, rectified = prelu_steps(slopes, step, low, high)
        first = ops.clip(ops.round(levels * (step * slopes / linear)), -128, 127)
        second = ops.round(ops.relu(levels) * (step * (1.0 - slopes) / rectified))
        return first * linear + ops.clip(second, 0, 255) * rectified

"""Bilinear resizing on the grid of its input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_metamix.layers.mode import current_mode
from keras_metamix.ops import resize_levels, straight_through


@keras.saving.register_keras_serializable("keras_metamix")
class GridResize(keras.layers.Layer):
    """Bilinear resizing of an 8-bit tensor, whose result lies on the tensor's own grid.

    Where streams are quantized the forward pass is the device's integer arithmetic; the gradient is
    that of the interpolation in float.

    Args:
      size: height and width of the result.
      input_quantizer: name of the quantizer of its input; None leaves it in float.
      whole: whether the float model rounds the result, as Keras does for an input of bytes.

    Shapes: (batch, height, width, channels) in, (batch, *size, channels) out.
    """

    def __init__(
        self,
        size: Sequence[int],
        input_quantizer: str | None = None,
        whole: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.size = (int(size[0]), int(size[1]))
        self.input_quantizer, self.whole = input_quantizer, whole
        self._input_step: Callable[[], Any] | None = None

    def connect(self, input_step: Callable[[], Any]) -> None:
        """Takes what gives the step of its input."""
        self._input_step = input_step

    def call(self, x: Any) -> Any:
        resized = self._resize(x)
        mode, step = current_mode(), self._input_step
        off = mode.activations in ("off", "observe") or not mode.streams or mode.observer
        if step is None or off:
            return ops.round(resized) if self.whole else resized
        unit = ops.stop_gradient(step())
        levels = resize_levels(ops.stop_gradient(ops.round(x / unit)), self.size)
        return straight_through(resized, levels * unit)

    def _resize(self, x: Any) -> Any:
        x = ops.cast(x, self.compute_dtype)
        return ops.image.resize(x, self.size, "bilinear", data_format="channels_last")

    def compute_output_shape(self, input_shape: Any) -> Any:
        return (input_shape[0], *self.size, input_shape[-1])

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "size": list(self.size),
            "input_quantizer": self.input_quantizer,
            "whole": self.whole,
        }


@keras.saving.register_keras_serializable("keras_metamix")
class IntegerResize(keras.layers.Layer):
    """Bilinear resizing of levels, whatever their grid."""

    def __init__(self, size: Sequence[int], **kwargs: Any):
        super().__init__(**kwargs)
        self.size = (int(size[0]), int(size[1]))

    def call(self, x: Any) -> Any:
        return resize_levels(x, self.size)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return (input_shape[0], *self.size, input_shape[-1])

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"size": list(self.size)}

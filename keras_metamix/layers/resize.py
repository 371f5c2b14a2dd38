"""Bilinear resizing on the grid of its input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_metamix.layers.on_grid import OnGrid
from keras_metamix.ops import resize_levels


class BilinearResize(keras.layers.Layer):
    """Bilinear resizing in float.

    Args:
      size: height and width of the result.
      whole: whether the result is rounded, as Keras does for an input of bytes.

    Shapes: (batch, height, width, channels) in, (batch, *size, channels) out.
    """

    def __init__(self, size: Sequence[int], whole: bool = False, **kwargs: Any):
        super().__init__(**kwargs)
        self.size = (int(size[0]), int(size[1]))
        self.whole = whole

    def call(self, x: Any) -> Any:
        resized = self.interpolated(x)
        return ops.round(resized) if self.whole else resized

    def interpolated(self, x: Any) -> Any:
        """The result, not rounded."""
        x = ops.cast(x, self.compute_dtype)
        return ops.image.resize(x, self.size, "bilinear", data_format="channels_last")

    def compute_output_shape(self, input_shape: Any) -> Any:
        return (input_shape[0], *self.size, input_shape[-1])

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"size": list(self.size), "whole": self.whole}


@keras.saving.register_keras_serializable("keras_metamix")
class GridResize(OnGrid, BilinearResize):
    """Bilinear resizing of an 8-bit tensor, whose result lies on the tensor's own grid."""

    def on_device(self, inputs: Any) -> Any:
        return self.interpolated(inputs)

    def quantized(self, levels: Any, step: Any, low: Any, high: Any) -> Any:
        return resize_levels(levels, self.size) * step


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

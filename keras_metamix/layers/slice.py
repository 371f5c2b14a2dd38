"""A part of each sample: what every slice, split and crop is in the flat model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras


@keras.saving.register_keras_serializable("keras_metamix")
class Slice(keras.layers.Layer):
    """`x[:, b0 : b0 + s0, b1 : b1 + s1, ...]`.

    Args:
      begin: first place on each axis behind the batch.
      size: how many places, of as many axes.
    """

    def __init__(self, begin: Sequence[int], size: Sequence[int], **kwargs: Any):
        super().__init__(**kwargs)
        self.begin, self.size = tuple(begin), tuple(size)

    def call(self, x: Any) -> Any:
        pairs = zip(self.begin, self.size, strict=True)
        return x[(slice(None), *(slice(first, first + count) for first, count in pairs))]

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        return (input_shape[0], *self.size)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"begin": self.begin, "size": self.size}

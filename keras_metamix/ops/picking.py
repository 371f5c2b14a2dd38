"""One of several candidates, chosen by number."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops


def pick(values: Any, index: Any) -> Any:
    """`values[index]` along the first axis.

    `ops.take` counts negative numbers from the end, for which TensorFlow builds a dozen ops each
    time; a network picks some hundred times.

    Args:
      values: a tensor, variable or array; of an array, an integer picks an array.
      index: an integer of 0 or more, or a tensor of them.
    """
    if isinstance(index, int):
        if isinstance(values, np.ndarray):
            return np.asarray(values[index])
        if values.shape[0] == 1:
            return ops.squeeze(values, 0)
    if keras.backend.backend() != "tensorflow":
        return ops.take(values, index, axis=0)
    import tensorflow as tf

    return tf.gather(ops.convert_to_tensor(values), ops.convert_to_tensor(index))

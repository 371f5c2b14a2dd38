"""Scale and shift of the layers that multiply and add constants."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import layers

from keras_metamix.graph.topology import Node

Terms = tuple[np.ndarray, np.ndarray]


def affine_terms(node: Node) -> Terms | None:
    """The constants of `y = scale * x + offset`.

    Args:
      node: a call of Rescaling, Normalization, LayerScale, or of a raw sum, difference, product
        or quotient of a tensor and a constant.

    Returns:
      scale and offset, float64, each of shape () or (channels,); None when they differ within a
      channel.
    """
    operation, channels = node.operation, node.output.shape[-1]
    if isinstance(operation, layers.Rescaling):
        terms = operation.scale, operation.offset
    elif isinstance(operation, layers.Normalization):
        terms = _normalization(operation)
    elif isinstance(operation, layers.Layer):  # LayerScale
        terms = operation.gamma, 0.0
    else:
        terms = _raw(node)
    if terms is None:
        return None
    scale, offset = (_per_channel(term, channels) for term in terms)
    return None if scale is None or offset is None else (scale, offset)


def _normalization(layer: Any) -> tuple[Any, Any]:
    mean = np.asarray(keras.ops.convert_to_numpy(layer.mean), np.float64)
    variance = np.asarray(keras.ops.convert_to_numpy(layer.variance), np.float64)
    deviation = np.maximum(np.sqrt(variance), keras.backend.epsilon())
    return (deviation, mean) if layer.invert else (1 / deviation, -mean / deviation)


def _raw(node: Node) -> tuple[Any, Any] | None:
    args, kwargs = node.arguments
    first, second = [*args, *kwargs.values()][:2]
    name = type(node.operation).__name__
    tensor_first = keras.utils.is_keras_tensor(first)
    constant = second if tensor_first else first
    if isinstance(constant, keras.Variable):
        return None  # it may train, and is not part of any layer
    value = np.asarray(constant, np.float64)
    if name == "Add":
        return 1.0, value
    if name == "Multiply":
        return value, 0.0
    if name == "Subtract":
        return (1.0, -value) if tensor_first else (-1.0, value)
    return (1.0 / value, 0.0) if tensor_first else None


def _per_channel(value: Any, channels: int) -> np.ndarray | None:
    array = np.asarray(keras.ops.convert_to_numpy(value), np.float64)
    if array.size == 1:
        return array.reshape(())
    if array.size == channels and array.shape[-1] == channels:
        return array.reshape(-1)
    return None

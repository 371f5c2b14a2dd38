"""Layers that act in training alone, as dropout, noise and augmentation do: found by computing."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_metamix.graph.ownership import config_of, is_keras_own
from keras_metamix.keras_internals import takes_training

# What code of a user's raises on tensors that it was not written for.
CALL_ERRORS = (TypeError, ValueError, AttributeError, RuntimeError, NotImplementedError)
_MAGNITUDES = (1e-3, 1.0, 300.0, 1e6)
_SIZE = 16  # where the model leaves one open
_found: weakref.WeakKeyDictionary[Any, dict[tuple[int | None, ...], bool]] = (
    weakref.WeakKeyDictionary()
)


def acts_in_training_alone(layer: Any, inputs: Sequence[Any]) -> bool:
    """Whether a layer's result in evaluation is its input, unchanged.

    A layer without weights is asked with numbers, of either sign and of several magnitudes; a
    user's layer with weights has to return the very tensor that it is given.

    Args:
      layer: built or not; it stays as it is.
      inputs: the symbolic tensors of a call.
    """
    if len(inputs) != 1 or not isinstance(layer, keras.layers.Layer):
        return False
    (tensor,), module = inputs, type(layer).__module__
    if module.startswith("keras_metamix."):
        return False
    sizes = (_SIZE if size is None else size for size in tensor.shape[1:])
    tensor = keras.KerasTensor((tensor.shape[0], *sizes), tensor.dtype)
    known = _found.setdefault(layer, {})
    key = (*tensor.shape, tensor.dtype)
    if key not in known:
        known[key] = _returns_its_input(layer, tensor)
    return known[key]


def returns_what_it_is_given(layer: Any, inputs: Sequence[Any]) -> bool:
    """Whether the call of a user's layer returns, in evaluation, the very tensor of its input."""
    if is_keras_own(type(layer)) or len(inputs) != 1:
        return False
    flag = {"training": False} if takes_training(layer) else {}
    try:
        return layer.call(inputs[0], **flag) is inputs[0]
    except CALL_ERRORS:
        return False


def _returns_its_input(layer: Any, tensor: Any) -> bool:
    flag = {"training": False} if takes_training(layer) else {}
    fresh = keras.KerasTensor(tensor.shape, tensor.dtype)
    try:
        if layer.weights:
            return bool(flag) and returns_what_it_is_given(layer, [fresh])
        if tuple(layer.compute_output_spec(fresh, **flag).shape) != tuple(tensor.shape):
            return False
        values = _values(tensor)
        # A copy: the layer's own random numbers have to go on where they are.
        found = type(layer).from_config(config_of(layer))(values, **flag)
        return found.shape == values.shape and np.array_equal(np.asarray(found), values)
    except CALL_ERRORS:
        return False


def _values(tensor: Any) -> np.ndarray:
    """Numbers for a tensor, one sample for each magnitude."""
    count = tensor.shape[0] or len(_MAGNITUDES)
    scales = np.resize(_MAGNITUDES, (count, *[1] * (len(tensor.shape) - 1)))
    values = np.random.default_rng(0).normal(size=(count, *tensor.shape[1:])) * scales
    return values.astype(tensor.dtype)

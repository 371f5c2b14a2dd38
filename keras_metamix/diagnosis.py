"""Where NaN and Inf come from, once the loss is one."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np

from keras_metamix.batches import image_batches
from keras_metamix.keras_internals import calls_of
from keras_metamix.layers.activation_quantizer import ActivationQuantizer
from keras_metamix.layers.mac import QuantizedMac
from keras_metamix.layers.mode import quantization_mode
from keras_metamix.network_model import NetworkModel, network_of

LOOKED_AT = 50  # batches, for the layer that made a loss NaN
_REMEDIES = (
    "try a smaller learning rate, gradient clipping (global_clipnorm of the optimizer) or a larger "
    "batch, and look at the images of that step"
)


class NonFiniteError(ValueError):
    """A loss, a step size or an activation became NaN or Inf."""


def check_loss(
    model: Any, logs: Mapping[str, Any] | None, where: str, batches: Iterable[Any] = ()
) -> None:
    """Stops a training whose loss is NaN or Inf, with the name of the layer that it comes from.

    Args:
      model: after the step; a MetaMixModel and a BitMixerModel keep the weights from before it.
      logs: of the step, as Keras gives them to callbacks.
      where: epoch, step and phase, for the message.
      batches: inputs to look for the layer with.

    Raises:
      NonFiniteError: it is.
    """
    losses = [value for name, value in (logs or {}).items() if name in ("loss", "search_loss")]
    if not all(map(math.isfinite, losses)):
        cause = find_non_finite(model, batches)
        raise NonFiniteError(
            f"The loss or its gradient is NaN or Inf {where}: {cause}; {_REMEDIES}."
        )


class StopOnNonFinite(keras.callbacks.Callback):
    """`check_loss` after each step of a training that has no callback of ours to do it.

    Args:
      data: batches as `fit` takes them, to look for the layer with.
    """

    def __init__(self, data: Any = ()):
        super().__init__()
        self.data = data
        self._epoch = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        where = f"at step {batch + 1} of epoch {self._epoch + 1}"
        check_loss(self.model, logs, where, image_batches(self.data, LOOKED_AT))


def find_non_finite(model: Any, batches: Iterable[Any]) -> str:
    """The first layer whose weights, step sizes or outputs are not finite, in words.

    Args:
      model: a model whose layers are in network order, or one that has such a `network`.
      batches: inputs: all are looked at, and the first one is run.
    """
    network = network_of(model)
    for layer in network.layers:
        for variable in layer.trainable_variables:
            if count := _non_finite(variable):
                return (
                    f"{variable.path} holds {count} NaN or Inf of "
                    f"{math.prod(variable.shape)} values"
                )
        quantizer = layer.input_quantizer if isinstance(layer, QuantizedMac) else layer
        if isinstance(quantizer, ActivationQuantizer) and (count := _non_finite(quantizer.steps())):
            return f"layer {quantizer.name!r} has {count} step sizes that are NaN or Inf"
    number, first = 0, None
    for number, images in enumerate(batches, start=1):
        for array in keras.tree.flatten(images):
            if count := _non_finite(array):
                return f"the images hold {count} NaN or Inf, in batch {number} of the training data"
        first = images if first is None else first
    if first is not None and (found := _in_activations(model, network, first)):
        return f"{found}, on the first batch of the training data"
    return (
        f"weights and step sizes are finite, and so are the images of the first {number} training "
        "batches and all activations on the first"
    )


def _in_activations(model: Any, network: keras.Model, images: Any) -> str:
    """In training, where batch norm takes the batch's statistics: the moving ones may be NaN."""
    layers = [layer for layer in network.layers if calls_of(layer)]
    outputs = [keras.tree.flatten(calls_of(layer)[0].output_tensors) for layer in layers]
    every = keras.Model(network.input, outputs)
    inside = contextlib.nullcontext()
    if isinstance(model, NetworkModel):
        inside = quantization_mode(
            dataclasses.replace(model.evaluation_mode(), statistics="frozen")
        )
    with inside:
        found = every(images, training=True)
    for layer, tensors in zip(layers, found, strict=True):
        if count := sum(_non_finite(tensor) for tensor in tensors):
            return f"layer {layer.name!r} puts out {count} NaN or Inf"
    return ""


def _non_finite(values: Any) -> int:
    array = keras.ops.convert_to_numpy(values)
    if not np.issubdtype(array.dtype, np.floating):
        return 0
    return int(np.sum(~np.isfinite(array)))

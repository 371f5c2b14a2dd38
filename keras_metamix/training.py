"""What the methods' models and callbacks do alike around Keras' `compile` and `fit`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_metamix.assignment import SearchSpace
from keras_metamix.calibration import calibrate, check_finite, first_batches, image_batches
from keras_metamix.checks import one_of, require_fields
from keras_metamix.layers.mode import inside_mode
from keras_metamix.training_data import check_training_data


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """What `fit` is training on; as an attribute of a model, TensorFlow would wrap dicts in it."""

    x: Any
    batch_size: int | None


class Progress:
    """Which of several phases a model is in: a variable, so that weights and checkpoints hold it.

    Args:
      model: gets the variable.
      name: "phase" or "stage".
      phases: their names.
      start: the one to begin with.

    Raises:
      ValueError: `start` is none of them.
    """

    def __init__(self, model: keras.Model, name: str, phases: Sequence[str], start: str):
        self._phases, self._known = tuple(phases), one_of(name, start, phases)
        self._index = model.add_weight(
            (),
            keras.initializers.Constant(self._phases.index(start)),
            dtype="int32",
            trainable=False,
            name=name,
        )

    def read(self) -> Any:
        """The phase's name, also while a function is traced."""
        found = present_value(self._index)
        if found is not None:
            self._known = self._phases[found]
        return self._known

    def write(self, phase: str) -> None:
        """Moves to a phase."""
        self._index.assign(self._phases.index(phase))
        self._known = phase


def present_value(variable: Any) -> int | None:
    """What an integer variable holds, also while a function is traced; None in a replica's."""
    if not tf.executing_eagerly() and tf.distribute.has_strategy():
        return None
    with tf.init_scope():
        return int(variable.numpy())


def build_optimizer(optimizer: Any, variables: list[Any]) -> None:
    """Builds an optimizer so that step sizes take no weight decay, nor what a user excluded."""
    if optimizer is None or optimizer.built:
        return
    # Keras replaces what was excluded before at each call: it is asked what that was.
    excluded = [v for v in variables if v.name == "log_step" or not optimizer._use_weight_decay(v)]
    optimizer.exclude_from_weight_decay(var_list=excluded)
    optimizer.build(variables)


def begin_fit(model: Any, x: Any, y: Any, batch_size: int | None) -> None:
    """Readies a model for `fit`: step sizes from the first batch, if nobody has set them."""
    if inside_mode():
        raise RuntimeError("fit: expected to train outside of quantizers_off, found it inside.")
    check_training_data(model, x, y)
    if all(isinstance(array, np.ndarray) for array in keras.tree.flatten(x)):
        check_finite(x, "training images")
    if not model.calibrated:
        for images in image_batches(x, 1, batch_size):
            calibrate(model, images)
    build_metrics(model, x, y, batch_size)
    model.training_data = TrainingData(x, batch_size)


def build_metrics(model: Any, x: Any, y: Any = None, batch_size: int | None = None) -> None:
    """Makes the metrics' variables now: made in the first step, they cost a second trace."""
    if model._compile_metrics is None or model._compile_metrics.built:
        return
    data = x if y is None else (x, y)
    with model.distribute_strategy.scope():
        for batch in first_batches(data, 1, batch_size):
            model._symbolic_build(data_batch=batch)


def training_batches(
    model: Any, data: Any, count: int, batch_size: int | None = None
) -> Iterator[Any]:
    """Inputs of up to `count` batches of `data`, or, of None, of what `fit` is training on."""
    if data is not None:
        return image_batches(data, count, batch_size)
    if model.training_data is None:
        raise RuntimeError("training_batches: only inside fit.")
    return image_batches(model.training_data.x, count, model.training_data.batch_size)


def descend(optimizer: Any, gradients: Any, variables: Any, loss: Any) -> Any:
    """Applies gradients, or zeros where the loss or one of them is NaN or Inf.

    So the weights stay those that gave them, and `diagnosis` can find the layer. The loss alone
    does not show: a quantizer clips NaN to an end of its grid.

    Returns:
      The loss; NaN where nothing was applied.
    """
    pairs = [(g, v) for g, v in zip(gradients, variables, strict=True) if g is not None]
    if not pairs:  # all of it is frozen
        return loss
    # A sum is NaN or Inf where a summand is, and takes one pass.
    sums = [tf.reduce_sum(gradient) for gradient, _ in pairs]
    finite = tf.math.is_finite(tf.add_n([tf.cast(loss, "float32"), *sums]))
    optimizer.apply_gradients(
        (tf.where(finite, gradient, tf.zeros_like(gradient)), variable)
        for gradient, variable in pairs
    )
    return tf.where(finite, loss, math.nan)


def track_loss(model: Any, loss: Any, x: Any) -> None:
    """Adds a replica's loss to the mean that Keras shows."""
    replicas = model.distribute_strategy.num_replicas_in_sync
    count = tf.shape(keras.tree.flatten(x)[0])[0]
    model._loss_tracker.update_state(loss * replicas, sample_weight=count)


def arguments_from_config(
    name: str, config: dict[str, Any], custom_objects: Any, required: Sequence[str]
) -> dict[str, Any]:
    """A model's config with its network and its search space made.

    Args:
      name: the class's, for messages.
      config, custom_objects: as Keras' `from_config` takes them.
      required: fields that may not be missing.

    Raises:
      ValueError: a field is missing.
    """
    config = require_fields(name, config, required)
    network = keras.saving.deserialize_keras_object(
        config["network"], custom_objects=custom_objects
    )
    space = config["space"] and SearchSpace.from_dict(config["space"])
    return {**config, "network": network, "space": space}

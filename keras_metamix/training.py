"""What the methods' models and callbacks do alike around Keras' `compile` and `fit`."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_metamix.assignment import SearchSpace
from keras_metamix.batches import (
    Replay,
    first_batches,
    image_batches,
    informative,
    is_arrays,
    is_data_set,
)
from keras_metamix.calibration import (
    ENOUGH,
    SEARCHED,
    calibrate_batches,
    check_finite,
    check_shapes,
)
from keras_metamix.checks import one_of, require_fields
from keras_metamix.keras_internals import (
    averages_of,
    build_from_batch,
    has_unbuilt_metrics,
    takes_weight_decay,
    track_mean_loss,
)
from keras_metamix.layers.mode import inside_mode
from keras_metamix.training_data import check_training_data


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """What `fit` is training on; as an attribute of a model, TensorFlow would wrap dicts in it."""

    x: Any
    batch_size: int | None


class Progress:
    """Which of several phases a model is in, and how many epochs a callback has counted.

    They are variables, so that weights and checkpoints hold them.

    Args:
      model: gets the variable.
      name: "phase" or "stage".
      phases: their names.
      start: the one to begin with.

    Raises:
      ValueError: `start` is none of them.
    """

    def __init__(self, model: Any, name: str, phases: Sequence[str], start: str):
        self._phases, self._known = tuple(phases), one_of(name, start, phases)
        self._index = model.add_weight(
            (),
            keras.initializers.Constant(self._phases.index(start)),
            dtype="int32",
            trainable=False,
            name=name,
        )
        self._epochs = model.add_weight(
            (), "zeros", dtype="int32", trainable=False, name=f"{name}_epochs"
        )
        # tf.train.Checkpoint finds a model's variables by its attributes alone.
        model.progress_index, model.progress_epochs = self._index, self._epochs

    @property
    def phases(self) -> tuple[str, ...]:
        """Their names, in order."""
        return self._phases

    @property
    def epochs(self) -> int:
        """How many epochs were trained, in this `fit` and in those before it."""
        return int(self._epochs.numpy())

    def end_epoch(self, number: int) -> None:
        """Counts an epoch, by the number that it had."""
        self._epochs.assign(number + 1)

    def read(self) -> Any:
        """The phase's name; in a replica's thread, the one that was read or written last."""
        if tf.executing_eagerly() or not tf.distribute.has_strategy():
            with tf.init_scope():  # also while a function is traced
                self._known = self._phases[int(self._index.numpy())]
        return self._known

    def write(self, phase: str) -> None:
        """Moves to a phase."""
        self._index.assign(self._phases.index(phase))
        self._known = phase


def build_optimizer(optimizer: Any, variables: list[Any]) -> None:
    """Builds an optimizer so that step sizes take no weight decay, nor what a user excluded."""
    if optimizer is None or optimizer.built:
        return
    # Keras replaces what was excluded before at each call: it is asked what that was.
    excluded = [
        v for v in variables if v.name == "log_step" or not takes_weight_decay(optimizer, v)
    ]
    optimizer.exclude_from_weight_decay(var_list=excluded)
    optimizer.build(variables)


def begin_fit(model: Any, x: Any, y: Any, batch_size: int | None, held_out: float = 0.0) -> None:
    """Readies a model for `fit`: step sizes from the first images, if nobody has set them.

    Args:
      model: compiled.
      x, y, batch_size: as `fit` takes them.
      held_out: share of arrays, at their ends, that `fit` validates on.
    """
    if inside_mode():
        raise RuntimeError("fit: expected to train outside of quantizers_off, found it inside.")
    check_training_data(model, x, y)
    if all(isinstance(array, np.ndarray) for array in keras.tree.flatten(x)):
        check_finite(x, "training images")
    if held_out and is_arrays(x):
        x = keras.tree.map_structure(lambda a: a[: math.floor(len(a) * (1 - held_out))], x)
    if not model.calibrated:
        batches = image_batches(x, SEARCHED, batch_size)
        calibrate_batches(model, informative(batches), "lsq", ENOUGH)
    build_metrics(model, x, y, batch_size)
    model.training_data = TrainingData(x, batch_size)


def build_metrics(model: Any, x: Any, y: Any = None, batch_size: int | None = None) -> None:
    """Makes the metrics' variables now: made in the first step, they cost a second trace."""
    if not has_unbuilt_metrics(model):
        return
    data = x if y is None else (x, y)
    with model.distribute_strategy.scope():
        for batch in first_batches(data, 1, batch_size):
            build_from_batch(model, tuple(batch) if isinstance(batch, list) else batch)


class Watch(keras.callbacks.Callback):
    """Keeps a model consistent whatever other callbacks restore, and notes what they undid.

    It is the last of all callbacks.

    Attributes:
      others: the other callbacks of this fit.
      notes: what to warn of when `fit` has ended.
    """

    def __init__(self):
        super().__init__()
        self._began: dict[str, int] = {}  # phase -> its first epoch in this fit
        self._before = 0
        self.others: list[Any] = []
        self.notes: list[str] = []

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        progress = self._progress
        self._began, self._before = {}, progress.epochs if progress else 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        model: Any = self.model
        if progress := self._progress:
            if not self._began and progress.read() != progress.phases[-1]:
                self._warn_of_best_only(progress)
            self._began.setdefault(progress.read(), epoch)
        model.make_train_function()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        model: Any = self.model
        progress = self._progress
        if progress is None or not self._began:
            return
        now, reached = progress.read(), [p for p in progress.phases if p in self._began][-1]
        if progress.phases.index(now) < progress.phases.index(reached):
            self.notes.append(
                f"fit: a callback restored weights of phase {now!r}, from before {reached!r} "
                f"began: give it start_from_epoch={self._began[reached]} "
                "(EarlyStopping), or let it compare epochs of that phase alone."
            )
        elif model.stop_training and now != progress.phases[-1] and progress.epochs > self._before:
            self.notes.append(
                f"fit: a callback stopped it in phase {now!r}, before {progress.phases[-1]!r} "
                "began: give it start_from_epoch (EarlyStopping), or call fit again to go on."
            )

    def _warn_of_best_only(self, progress: Progress) -> None:
        """Of a file that may keep an epoch before the last phase; what is restored shows later."""
        for callback in self.others:
            if isinstance(callback, keras.callbacks.ModelCheckpoint) and callback.save_best_only:
                last = progress.phases[-1]
                warnings.warn(
                    f"fit: ModelCheckpoint({str(callback.filepath)!r}, save_best_only=True) "
                    "compares epochs of all phases, and may keep a model of one before "
                    f"{last!r}, which is not finished. End a fit with the epoch before {last!r}, "
                    "and give ModelCheckpoint to a second fit, with the same other callbacks.",
                    stacklevel=3,
                )

    @property
    def _progress(self) -> Progress | None:
        model: Any = self.model
        return model.progress


def watched(model: Any, callbacks: Any, watch: Watch) -> Any:
    """The callbacks of a model's `fit`, and a Watch behind them."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        watch.set_model(model)
        others = [c for c in callbacks.callbacks if not isinstance(c, Watch)]
        callbacks.callbacks = [*others, watch]  # of an earlier fit there may be one
        watch.others = others
        return callbacks
    watch.others = keras.tree.flatten(callbacks if callbacks is not None else [])
    return [*watch.others, watch]


def epoch_steps(model: Any, params: Any, counted: int | None) -> int:
    """How many steps an epoch has, as a callback knows them.

    Args:
      model: within its `fit`.
      params: of the callback; Keras leaves "steps" out where the data do not tell.
      counted: steps of an epoch before this one.

    Raises:
      ValueError: nobody knows, and counting would use up the data.
    """
    steps = (params or {}).get("steps") or counted
    data: Any = model.training_data.x if model.training_data else None
    if not steps and isinstance(data, tf.data.Dataset):
        steps = sum(1 for _ in data) if data.cardinality() != tf.data.INFINITE_CARDINALITY else 0
    if not steps:
        raise ValueError(
            "fit: the first epoch needs to know its number of steps, which these training data do "
            "not tell: pass fit(steps_per_epoch=...)."
        )
    return steps


def restart_averages(model: Any) -> None:
    """Lets an optimizer's averages (`use_ema`) begin anew, with the present values.

    What was averaged before a phase is no part of the network as it is quantized from then on.
    """
    optimizer = getattr(model, "optimizer", None)  # none before `compile`
    if optimizer is None or not optimizer.built or not optimizer.use_ema:
        return
    for variable, average in averages_of(optimizer):
        average.assign(variable)


def training_batches(
    model: Any, data: Any, count: int, batch_size: int | None = None
) -> Iterator[Any]:
    """Inputs of up to `count` batches of `data`, or, of None, of what `fit` is training on.

    Args:
      model: with a `network`.
      data: what `fit` takes as `x`, or arrays `(images, labels)`.
      count: at most so many.
      batch_size: of arrays; default 32.

    Raises:
      TypeError: data that cannot be read twice.
    """
    if data is not None:
        return input_batches(model.network, data, count, batch_size)
    if model.training_data is None:
        raise RuntimeError("training_batches: only inside fit.")
    return image_batches(model.training_data.x, count, model.training_data.batch_size)


def check_statistics_data(model: Any, data: Any) -> None:
    """Checks the first batch of a callback's `statistics_data`, which is read epochs later.

    That of a data set is not read: it may draw from a random generator that training needs.

    Args:
      model: with a `network`.
      data: as `training_batches` takes them; None is fine.

    Raises:
      TypeError, ValueError: something else, or none; NaN or Inf; images of another shape.
    """
    repeats = isinstance(data, (Replay, keras.utils.PyDataset))
    if data is None or (is_data_set(data) and not repeats):
        return
    try:
        batch = next(iter(training_batches(model, data, 1)), None)
        if batch is None:
            raise ValueError("expected at least one batch, found none.")
        check_finite(batch, "images")
        check_shapes(batch, model.network)
    except (TypeError, ValueError) as error:
        raise type(error)(f"statistics_data: {error}") from error


def input_batches(
    network: keras.Model, data: Any, count: int, batch_size: int | None = None
) -> Iterator[Any]:
    """Inputs of up to `count` batches of `data`, as `training_batches` takes them.

    Of arrays `(images, labels)` the labels are left out, unless the network has as many inputs.
    """
    pair = isinstance(data, tuple) and is_arrays(data)
    labelled = pair and len(keras.tree.flatten(data)) != len(network.inputs)
    return image_batches(data[0] if labelled else data, count, batch_size)


def descend(optimizer: Any, gradients: Any, variables: Any, loss: Any) -> Any:
    """Applies gradients, or zeros where the loss or one of them is NaN or Inf.

    So the weights stay those that gave them, and `diagnosis` can find the layer. The loss alone
    does not show: a quantizer clips NaN to an end of its grid. Of several replicas, whose gradients
    are added, one is enough.

    Returns:
      The loss; NaN where nothing was applied.
    """
    pairs = [(g, v) for g, v in zip(gradients, variables, strict=True) if g is not None]
    if not pairs:  # all of it is frozen
        return loss
    # A sum is NaN or Inf where a summand is, and takes one pass.
    sums = [tf.reduce_sum(gradient) for gradient, _ in pairs]
    total = tf.add_n([tf.cast(loss, "float32"), *sums])
    context = tf.distribute.get_replica_context()
    if context is not None and context.num_replicas_in_sync > 1:
        total = context.all_reduce(tf.distribute.ReduceOp.SUM, total)
    finite = tf.math.is_finite(total)
    optimizer.apply_gradients(
        (tf.where(finite, gradient, tf.zeros_like(gradient)), variable)
        for gradient, variable in pairs
    )
    return tf.where(finite, loss, math.nan)


def track_loss(model: Any, loss: Any, x: Any) -> None:
    """Adds a replica's loss to the mean that Keras shows."""
    replicas = model.distribute_strategy.num_replicas_in_sync
    count = tf.shape(keras.tree.flatten(x)[0])[0]
    track_mean_loss(model, loss * replicas, count)


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

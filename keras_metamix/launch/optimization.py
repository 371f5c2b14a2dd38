"""Loss, optimizers and teacher of an experiment's trainings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras

from keras_metamix.launch.config import Experiment, MetaMix
from keras_metamix.launch.datasets import task_of
from keras_metamix.metamix.model import MetaMixModel
from keras_metamix.metamix.schedule import SelectionThenCosine
from keras_metamix.network_model import network_of

_FLOOR = 0.01  # where the cosine ends, as a share of the rate that it begins with


def compile_model(
    model: keras.Model, config: Experiment, rate: Any, ema: float = 0.0, **settings: Any
) -> None:
    """Readies a model for training by `config.train`.

    As in the paper, biases, batch norm and step sizes do not decay.

    Args:
      model: in the phase that it begins with.
      config: as `complete` gives it.
      rate: a learning rate, or its schedule.
      ema: momentum of the average of weights; 0: none.
      settings: what else the model's `compile` takes.
    """
    optimizer = make_optimizer(config, rate)
    if ema:
        optimizer.use_ema, optimizer.ema_momentum = True, ema
    others = [v for v in model.trainable_variables if v.name != "kernel"]
    optimizer.exclude_from_weight_decay(var_list=others)
    classes, smoothing = network_of(model).output_shape[-1], config.train.label_smoothing
    model.compile(optimizer, **task_of(config).compiled(keras, classes, smoothing), **settings)


def compile_quantized(
    model: MetaMixModel,
    config: MetaMix,
    epoch_steps: int,
    selection_epochs: int,
    teacher: keras.Model | None = None,
) -> None:
    """`compile_model` of a MetaMixModel, by the rates of MetaMix' phases.

    Args:
      epoch_steps: batches of an epoch.
      selection_epochs: epochs of bit-meta and bit-search.
      teacher: what `load_teacher` gives.
      model, config: see `compile_model`.
    """
    train, search_rate = config.train, config.search.learning_rate
    steps, selection = train.epochs * epoch_steps, train.selection_learning_rate
    rate = cosine(train.learning_rate, steps)
    if selection is not None:
        chosen = selection_epochs * epoch_steps
        rate = SelectionThenCosine(selection, chosen, train.learning_rate, steps, _FLOOR)
    search = None  # MetaMixModel's own, whose learning rate MetaMixCallback sets
    if search_rate is not None:
        search = keras.optimizers.Adam(search_rate, beta_1=0.5, beta_2=0.999, weight_decay=1e-3)
    compile_model(
        model,
        config,
        rate,
        train.ema,
        search_optimizer=search,
        teacher=teacher,
        distillation=train.distillation,
    )


def cosine(rate: float, steps: int) -> Any:
    """A learning rate that falls from `rate` within `steps`."""
    return keras.optimizers.schedules.CosineDecay(rate, max(steps, 1), alpha=_FLOOR)


def load_teacher(config: MetaMix, float_model: keras.Model) -> keras.Model | None:
    """The network that `config.train.teacher` names, or None.

    It sees the pixels that the student sees: a teacher that wants others needs them rescaled by
    its own first layers.

    Raises:
      FileNotFoundError, ValueError: no such file, or none that Keras can load.
    """
    if config.train.teacher in ("", "float"):
        return float_model if config.train.teacher else None
    file = Path(config.train.teacher)
    if not file.is_file():
        raise FileNotFoundError(
            f"config.train.teacher: expected a .keras file, or 'float', found no {str(file)!r}."
        )
    return keras.saving.load_model(file, compile=False)


def make_optimizer(config: Experiment, rate: Any) -> Any:
    """The optimizer that `config.train` describes.

    Raises:
      ValueError: Keras has none of that name.
    """
    settings = {
        "learning_rate": rate,
        "weight_decay": config.train.weight_decay,
        "global_clipnorm": config.train.clip_norm or None,
    }
    return type(keras.optimizers.get(config.train.optimizer))(**settings)

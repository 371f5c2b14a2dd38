"""Loss, optimizers and teacher of an experiment's trainings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras

from keras_metamix.bitmixer.model import BitMixerModel
from keras_metamix.launch.config import BitMixer, Experiment, MetaMix
from keras_metamix.metamix.model import MetaMixModel
from keras_metamix.metamix.schedule import SelectionThenCosine

_FLOOR = 0.01  # where the cosine ends, as a share of the rate that it begins with


def compile_float(model: keras.Model, config: Experiment, steps: int) -> None:
    """Readies a float model for `steps` of training, a cosine from `config.float.learning_rate`."""
    schedule = keras.optimizers.schedules.CosineDecay(
        config.float.learning_rate, max(steps, 1), alpha=_FLOOR
    )
    optimizer = make_optimizer(config, schedule)
    _decay_kernels_alone(optimizer, model)
    model.compile(optimizer, _loss(config), metrics=["accuracy"])


def compile_quantized(
    model: MetaMixModel,
    config: MetaMix,
    epoch_steps: int,
    selection_epochs: int,
    teacher: keras.Model | None = None,
) -> None:
    """Readies a MetaMixModel for `config.train`.

    Args:
      model: in the phase that it begins with.
      config: as `complete` gives it.
      epoch_steps: batches of an epoch.
      selection_epochs: epochs of bit-meta and bit-search.
      teacher: what `load_teacher` gives.
    """
    optimizer = make_optimizer(config, _schedule(config, epoch_steps, selection_epochs))
    if config.train.ema:
        optimizer.use_ema, optimizer.ema_momentum = True, config.train.ema
    _decay_kernels_alone(optimizer, model)
    model.compile(
        optimizer,
        _loss(config),
        metrics=["accuracy"],
        search_optimizer=_search_optimizer(config),
        teacher=teacher,
        distillation=config.train.distillation,
    )


def compile_mixer(
    model: BitMixerModel | MetaMixModel, config: BitMixer, steps: int, **settings: Any
) -> None:
    """Readies a model for `steps` of training by a Bit-Mixer config: a cosine from its rate."""
    schedule = keras.optimizers.schedules.CosineDecay(
        config.train.learning_rate, max(steps, 1), alpha=_FLOOR
    )
    optimizer = make_optimizer(config, schedule)
    _decay_kernels_alone(optimizer, model)
    model.compile(optimizer, _loss(config), metrics=["accuracy"], **settings)


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


def _schedule(config: MetaMix, epoch_steps: int, selection_epochs: int) -> Any:
    train, steps = config.train, config.train.epochs * epoch_steps
    if train.selection_learning_rate is None:
        return keras.optimizers.schedules.CosineDecay(train.learning_rate, steps, alpha=_FLOOR)
    return SelectionThenCosine(
        train.selection_learning_rate,
        selection_epochs * epoch_steps,
        train.learning_rate,
        steps,
        _FLOOR,
    )


def _search_optimizer(config: MetaMix) -> Any:
    """None: MetaMixModel's own, whose learning rate MetaMixCallback sets."""
    if config.search.learning_rate is None:
        return None
    return keras.optimizers.Adam(
        config.search.learning_rate, beta_1=0.5, beta_2=0.999, weight_decay=1e-3
    )


def _decay_kernels_alone(optimizer: Any, model: keras.Model) -> None:
    """As the paper does: no decay of biases, batch norm and step sizes."""
    others = [v for v in model.trainable_variables if v.name != "kernel"]
    optimizer.exclude_from_weight_decay(var_list=others)


def _loss(config: Experiment) -> Any:
    if config.train.label_smoothing:  # the labels are one-hot then, see `load_data`
        return keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=config.train.label_smoothing
        )
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)

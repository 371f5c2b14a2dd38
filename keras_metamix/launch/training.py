"""The trainings of an experiment: float, MetaMix, uniform, Bit-Mixer."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import keras
from ml_collections import ConfigDict

from keras_metamix import zoo
from keras_metamix.assignment import SearchSpace
from keras_metamix.bitmixer.callback import BitMixerCallback
from keras_metamix.bitmixer.model import BitMixerModel
from keras_metamix.calibration import calibrate, image_batches
from keras_metamix.graph.layer_costs import bops, uniform_assignment
from keras_metamix.launch.averaging import AveragedWeights
from keras_metamix.launch.datasets import Data
from keras_metamix.launch.messages import EpochLines
from keras_metamix.launch.optimization import compile_float, compile_mixer, compile_quantized
from keras_metamix.metamix.callback import MetaMixCallback
from keras_metamix.metamix.model import MetaMixModel

UNIFORM_BITS = 4
_STATISTICS_BATCHES = 32  # re-estimate batch norm; an epoch's, where it has fewer


def search_space(config: ConfigDict) -> SearchSpace:
    """`config.space` as a SearchSpace."""
    fields = {k: list(v) if isinstance(v, tuple) else v for k, v in config.space.items()}
    return SearchSpace.from_dict(fields)


def float_network(config: ConfigDict, data: Data) -> keras.Model:
    """The network of `config.model`, with the weights that this or `config.float` names, if any.

    Raises:
      ValueError: an unknown name or argument, or weights of another network.
      OSError: no such file of weights, or they cannot be downloaded.
    """
    if config.model.name not in zoo.__all__:
        raise ValueError(
            f"config.model.name: expected one of {zoo.__all__}, found {config.model.name!r}."
        )
    make = getattr(zoo, config.model.name)
    arguments = {k: v for k, v in config.model.items() if k != "name"}
    known = sorted(inspect.signature(make).parameters.keys() - {"input_shape", "classes"})
    for name in arguments:
        if name not in known:
            raise ValueError(
                f"config.model.{name}: {config.model.name} has no such argument; expected some "
                f"of {known}."
            )
    model = make(data.test_images.shape[1:], data.classes, **arguments)
    file = config.float.get("weights", "")
    if file:
        if not Path(file).is_file():
            raise FileNotFoundError(f"config.float.weights: expected a file, found no {file!r}.")
        model.load_weights(file)
    return model


def target_bops(config: ConfigDict, model: keras.Model) -> float:
    """The budget: `config.search.target_bops`, or a share of what uniform 4-bit layers cost."""
    if config.search.target_bops is not None:
        return config.search.target_bops
    uniform = uniform_assignment(model, UNIFORM_BITS, UNIFORM_BITS, config.space.edge_bits)
    return config.search.target_ratio * bops(model, uniform)


def train_float(config: ConfigDict, model: keras.Model, data: Data) -> EpochLines:
    """Trains the float model."""
    lines = EpochLines("float")
    compile_float(model, config, config.float.epochs * data.steps)
    _fit(model, data, config.float.epochs, [lines])
    return lines


def train_metamix(
    config: ConfigDict,
    float_model: keras.Model,
    data: Data,
    teacher: keras.Model | None = None,
) -> tuple[MetaMixModel, MetaMixCallback, EpochLines]:
    """Searches and trains a MetaMixModel from a float model's weights."""
    model = MetaMixModel.from_float(float_model, search_space(config))
    target = target_bops(config, model)
    print(f"MetaMix: budget {target / 1e6:.2f} M BOPs")
    selection = config.search.meta_epochs + config.search.search_epochs
    compile_quantized(model, config, data.steps, selection, teacher)
    callback = MetaMixCallback(
        target_bops=target,
        meta_epochs=config.search.meta_epochs,
        search_epochs=config.search.search_epochs,
        cost=config.search.cost,
        cost_strength=config.search.cost_strength,
        statistics_batches=min(_STATISTICS_BATCHES, data.steps),
        verbose=0,
    )
    lines = EpochLines("MetaMix", target)
    _fit(model, data, config.train.epochs, [callback, *_averaging(config, data), lines])
    return model, callback, lines


def train_uniform(
    config: ConfigDict,
    float_model: keras.Model,
    data: Data,
    teacher: keras.Model | None = None,
) -> tuple[MetaMixModel, EpochLines]:
    """Trains the same network at 4 bits everywhere, from the same float weights."""
    model = _fixed(config, float_model, data, UNIFORM_BITS)
    compile_quantized(model, config, data.steps, 0, teacher)
    lines = EpochLines(f"uniform A{UNIFORM_BITS}W{UNIFORM_BITS}")
    _fit(model, data, config.train.epochs, [*_averaging(config, data), lines])
    return model, lines


def train_alone(
    config: ConfigDict, float_model: keras.Model, data: Data, bits: int, epochs: int
) -> MetaMixModel:
    """Trains the network of a Bit-Mixer config at one bit-width everywhere, for comparison."""
    model = _fixed(config, float_model, data, bits)
    compile_mixer(model, config, epochs * data.steps)
    _fit(model, data, epochs, [EpochLines(f"uniform A{bits}W{bits}")])
    return model


def _fixed(config: ConfigDict, float_model: keras.Model, data: Data, bits: int) -> MetaMixModel:
    """A MetaMixModel at one bit-width everywhere but at its ends, in weight training."""
    edge = config.space.edge_bits
    space = SearchSpace((bits,), bits, edge, config.space.stream_bits)
    model = MetaMixModel.from_float(float_model, space)
    for images in image_batches(data.train, 1):
        calibrate(model, images)
    model.set_bits(uniform_assignment(float_model, bits, bits, edge))
    return model


def train_mixer(
    config: ConfigDict, float_model: keras.Model, data: Data
) -> tuple[BitMixerModel, EpochLines]:
    """Trains a BitMixerModel through its stages, from a float model's weights."""
    mixer = config.mixer
    model = BitMixerModel.from_float(
        float_model, search_space(config), mixer.batch_norm, seed=config.seed
    )
    epochs = sum(mixer.stage_epochs)
    share = mixer.in_place_distillation
    compile_mixer(model, config, epochs * data.steps, in_place_distillation=share)
    batches = min(_STATISTICS_BATCHES, data.steps)
    callback = BitMixerCallback(tuple(mixer.stage_epochs), batches, verbose=0)
    lines = EpochLines(f"Bit-Mixer ({mixer.batch_norm})")
    _fit(model, data, epochs, [callback, lines])
    return model, lines


def _averaging(config: ConfigDict, data: Data) -> list[AveragedWeights]:
    batches = min(_STATISTICS_BATCHES, data.steps)
    return [AveragedWeights(batches)] if config.train.ema else []


def _fit(model: keras.Model, data: Data, epochs: int, callbacks: list[Any]) -> None:
    model.fit(
        data.train,
        epochs=epochs,
        steps_per_epoch=data.steps if data.endless else None,
        validation_data=data.validation,
        callbacks=callbacks,
        shuffle=False,  # the data set shuffles
        verbose=0,
    )

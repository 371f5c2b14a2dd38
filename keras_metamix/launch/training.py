"""The trainings of an experiment: float, MetaMix, uniform, Bit-Mixer."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from keras_metamix import zoo
from keras_metamix.assignment import SearchSpace
from keras_metamix.batches import image_batches
from keras_metamix.bitmixer.callback import BitMixerCallback
from keras_metamix.bitmixer.model import BitMixerModel
from keras_metamix.calibration import calibrate
from keras_metamix.diagnosis import StopOnNonFinite
from keras_metamix.graph.fast_float import fast_float
from keras_metamix.graph.layer_costs import uniform_assignment
from keras_metamix.launch.budget import search_budgets, uniform_bits, uniform_name
from keras_metamix.launch.config import BitMixer, Experiment, MetaMix
from keras_metamix.launch.datasets import Data
from keras_metamix.launch.distribution import local_copy
from keras_metamix.launch.messages import budget_text
from keras_metamix.launch.optimization import compile_model, compile_quantized, cosine
from keras_metamix.launch.session import Session
from keras_metamix.metamix.callback import MetaMixCallback
from keras_metamix.metamix.model import MetaMixModel
from keras_metamix.report.results import Epoch
from keras_metamix.statistics import BatchNormReestimation
from keras_metamix.workers import adapt_to_workers


def search_space(config: Experiment) -> SearchSpace:
    """`config.space` as a SearchSpace."""
    return SearchSpace(**dataclasses.asdict(config.space))


def float_network(config: Experiment, data: Data) -> keras.Model:
    """The network of `config.model`, with the weights that this or `config.float` names, if any.

    Raises:
      ValueError: an unknown name or argument, or weights of another network.
      OSError: no such file of weights, or they cannot be downloaded.
    """
    arguments = dict(config.model)
    kind = arguments.pop("name")
    if kind not in zoo.__all__:
        raise ValueError(f"config.model.name: expected one of {zoo.__all__}, found {kind!r}.")
    make = getattr(zoo, kind)
    known = sorted(inspect.signature(make).parameters.keys() - {"input_shape", "classes"})
    for name in arguments:
        if name not in known:
            raise ValueError(
                f"config.model.{name}: {kind} has no such argument; expected some of {known}."
            )
    model = make(data.test_images.shape[1:], data.classes, **arguments)
    file = config.float.weights
    if file:
        if not Path(file).is_file():
            raise FileNotFoundError(f"config.float.weights: expected a file, found no {file!r}.")
        model.load_weights(file)
    return model


def train_float(session: Session[Any], model: keras.Model) -> keras.Model:
    """Trains the float model, made in the scope of the session's strategy."""
    config = session.config
    epochs = config.float.epochs
    with session.strategy.scope():
        fast = fast_float(model)
        for one in (model, fast):
            compile_model(
                one, config, cosine(config.float.learning_rate, epochs * session.data.steps)
            )
    adapt_to_workers(fast)
    callbacks = [StopOnNonFinite(session.data.train)]
    trained = session.fit("float", fast, "float", [epochs], callbacks)[0]
    model.set_weights(trained.get_weights())
    return local_copy(model, session.strategy)


def train_metamix(
    session: Session[MetaMix], float_model: keras.Model, teacher: keras.Model | None = None
) -> tuple[MetaMixModel, list[Epoch], MetaMixCallback]:
    """Searches and trains a MetaMixModel from a float model's weights."""
    config, data = session.config, session.data
    meta, search = config.search.meta_epochs, config.search.search_epochs
    with session.scope():
        model = MetaMixModel.from_float(
            float_model, search_space(config), meta_weights=config.search.meta_weights
        )
        compile_quantized(model, config, data.steps, meta + search, teacher)
    budgets = search_budgets(config, session.table, float_model)
    callback = MetaMixCallback(
        budgets,
        meta_epochs=meta,
        search_epochs=search,
        cost_form=config.search.cost_form,
        cost_strength=config.search.strength,
        meta=config.search.meta,
        statistics_batches=session.statistics_batches,
        statistics_data=data.train,
        verbose=0,
    )
    phases = (meta, search, config.train.epochs - meta - search)
    session.say(f"MetaMix: budget {', '.join(budget_text(b, b.limit) for b in budgets)}")
    return *session.fit("metamix", model, "MetaMix", phases, [callback], budgets), callback


def train_uniform(
    session: Session[Any],
    float_model: keras.Model,
    bits: int,
    epochs: int,
    ready: Callable[[MetaMixModel], None],
) -> MetaMixModel:
    """Trains the network at one bit-width everywhere but at its edges, from the same float weights.

    Args:
      session, float_model: as of the method that it is compared with.
      bits: the bit-width; of weights alone, where the config has one of activations.
      epochs: of training.
      ready: compiles it.
    """
    config = session.config
    wanted = uniform_bits(config, bits)
    with session.scope():
        space = SearchSpace(stream_bits=config.space.stream_bits, **wanted)
        model = MetaMixModel.from_float(float_model, space)
        for images in image_batches(session.data.train, 1):
            calibrate(model, images)
        model.set_bits(uniform_assignment(float_model, **wanted))
        ready(model)
    train = session.data.train
    callbacks: list[Any] = [
        StopOnNonFinite(train),
        BatchNormReestimation(train, session.statistics_batches),
    ]
    title = uniform_name(config, bits)
    return session.fit("uniform", model, title, [epochs], callbacks)[0]


def train_mixer(
    session: Session[BitMixer], float_model: keras.Model
) -> tuple[BitMixerModel, list[Epoch]]:
    """Trains a BitMixerModel through its stages, from a float model's weights."""
    config, data = session.config, session.data
    mixer, stages = config.mixer, tuple(config.mixer.stage_epochs)
    with session.scope():
        model = BitMixerModel.from_float(
            float_model, search_space(config), mixer.batch_norm, seed=config.seed
        )
        rate = cosine(config.train.learning_rate, sum(stages) * data.steps)
        share = mixer.in_place_distillation
        compile_model(model, config, rate, in_place_distillation=share)
    callbacks: list[Any] = [
        BitMixerCallback(stages, session.statistics_batches, data.train, verbose=0)
    ]
    if model.optimizer.use_ema:
        callbacks.append(BatchNormReestimation(data.train, session.statistics_batches))
    title = f"Bit-Mixer ({mixer.batch_norm})"
    return session.fit("bitmixer", model, title, stages, callbacks)

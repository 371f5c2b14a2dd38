"""The three trainings of an experiment: float, MetaMix, uniform."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
from ml_collections import ConfigDict

from keras_metamix import zoo
from keras_metamix.assignment import SearchSpace
from keras_metamix.calibration import calibrate, image_batches
from keras_metamix.data import evaluation_dataset, load, normalize, training_dataset
from keras_metamix.graph.layer_costs import bops, uniform_assignment
from keras_metamix.launch.messages import EpochLines
from keras_metamix.metamix.callback import MetaMixCallback
from keras_metamix.metamix.model import MetaMixModel

UNIFORM_BITS = 4


@dataclasses.dataclass
class Data:
    """Batches to train and validate on, and the test images as the model takes them."""

    train: Any
    validation: Any
    steps: int
    test_images: np.ndarray
    test_labels: np.ndarray


def load_data(config: ConfigDict) -> Data:
    """The images that `config.data` names.

    Raises:
      ValueError, OSError: an unknown name, or a folder without the data; says what was expected.
    """
    (images, labels), (test_images, test_labels) = load(config.data.name, config.data.dir or None)
    batch_size = config.train.batch_size
    train = training_dataset(images, labels, batch_size, config.seed, augment=config.data.augment)
    validation = evaluation_dataset(test_images, test_labels, 250)
    test = np.asarray(normalize(test_images))
    return Data(train, validation, len(images) // batch_size, test, test_labels)


def search_space(config: ConfigDict) -> SearchSpace:
    """`config.space` as a SearchSpace."""
    fields = {k: list(v) if isinstance(v, tuple) else v for k, v in config.space.items()}
    return SearchSpace.from_dict(fields)


def float_network(config: ConfigDict, data: Data) -> keras.Model:
    """The network of `config.model`, untrained.

    Raises:
      ValueError: an unknown name.
    """
    if config.model.name not in zoo.__all__:
        raise ValueError(
            f"config.model.name: expected one of {zoo.__all__}, found {config.model.name!r}."
        )
    shape, classes = data.test_images.shape[1:], int(data.test_labels.max()) + 1
    arguments = {k: v for k, v in config.model.items() if k != "name"}
    return getattr(zoo, config.model.name)(shape, classes, **arguments)


def target_bops(config: ConfigDict, model: keras.Model) -> float:
    """The budget: `config.search.target_bops`, or a share of what uniform 4-bit layers cost."""
    if config.search.target_bops is not None:
        return config.search.target_bops
    uniform = uniform_assignment(model, UNIFORM_BITS, UNIFORM_BITS, config.space.edge_bits)
    return config.search.target_ratio * bops(model, uniform)


def train_float(config: ConfigDict, model: keras.Model, data: Data) -> EpochLines:
    """Trains the float model."""
    lines = EpochLines("float")
    _compile(model, config, config.float.learning_rate, config.float.epochs * data.steps)
    _fit(model, data, config.float.epochs, [lines])
    return lines


def train_metamix(
    config: ConfigDict, float_model: keras.Model, data: Data, target: float
) -> tuple[MetaMixModel, MetaMixCallback, EpochLines]:
    """Searches and trains a MetaMixModel from a float model's weights."""
    model = MetaMixModel.from_float(float_model, search_space(config))
    _compile(model, config, config.train.learning_rate, config.train.epochs * data.steps)
    callback = MetaMixCallback(
        target_bops=target,
        meta_epochs=config.search.meta_epochs,
        search_epochs=config.search.search_epochs,
        cost_strength=config.search.cost_strength,
        verbose=0,
    )
    lines = EpochLines("MetaMix", target)
    _fit(model, data, config.train.epochs, [callback, lines])
    return model, callback, lines


def train_uniform(
    config: ConfigDict, float_model: keras.Model, data: Data
) -> tuple[MetaMixModel, EpochLines]:
    """Trains the same network at 4 bits everywhere, from the same float weights."""
    edge = config.space.edge_bits
    space = SearchSpace((UNIFORM_BITS,), UNIFORM_BITS, edge, config.space.stream_bits)
    model = MetaMixModel.from_float(float_model, space)
    for images in image_batches(data.train, 1):
        calibrate(model, images)
    model.set_bits(uniform_assignment(float_model, UNIFORM_BITS, UNIFORM_BITS, edge))
    _compile(model, config, config.train.learning_rate, config.train.epochs * data.steps)
    lines = EpochLines(f"uniform A{UNIFORM_BITS}W{UNIFORM_BITS}")
    _fit(model, data, config.train.epochs, [lines])
    return model, lines


def _compile(model: keras.Model, config: ConfigDict, rate: float, steps: int) -> None:
    schedule = keras.optimizers.schedules.CosineDecay(rate, steps, alpha=0.01)
    optimizer = keras.optimizers.AdamW(
        schedule, weight_decay=config.train.weight_decay, global_clipnorm=10.0
    )
    # The paper decays convolution and dense kernels, nothing else.
    others = [v for v in model.trainable_variables if v.name != "kernel"]
    optimizer.exclude_from_weight_decay(var_list=others)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])


def _fit(model: keras.Model, data: Data, epochs: int, callbacks: list[Any]) -> None:
    model.fit(
        data.train,
        epochs=epochs,
        validation_data=data.validation,
        callbacks=callbacks,
        shuffle=False,  # the data set shuffles
        verbose=0,
    )

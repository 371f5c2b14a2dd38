"""The images that a config names, as batches to train on and arrays to test on."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from keras_metamix.data import (
    Augmentation,
    Form,
    evaluation_dataset,
    imagenet_evaluation,
    imagenet_sample,
    imagenet_training,
    load,
    normalize,
    open_imagenet,
    training_dataset,
)

_EVALUATION_BATCH = 250
IMAGENET = ("imagenet2012", imagenet_sample.NAME)


@dataclasses.dataclass
class Data:
    """Batches to train and validate on, and the test images as the model takes them.

    Attributes:
      training: gives batches from step `start_step` on, epoch after epoch without an end; of each
        batch a worker's `share`.
      validation: all of the images that no training sees.
      steps: batches of an epoch.
      test_images, test_labels: those that the files are run on.
      classes: how many there are.
      notes: what the report has to say of these images.
    """

    training: Callable[..., Any]
    validation: Any
    steps: int
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: int
    notes: tuple[str, ...] = ()

    @functools.cached_property
    def train(self) -> Any:
        """The batches from the first step on."""
        return self.training()


def load_data(config: ConfigDict) -> Data:
    """The images that `config.data` names.

    Raises:
      ValueError, OSError: an unknown name, or a folder without the data; says what was expected.
    """
    data = _imagenet(config) if config.data.name in IMAGENET else _fashion_mnist(config)
    if config.train.get("label_smoothing"):
        training, validation = data.training, data.validation

        def one_hot(batches: Any) -> Any:
            return batches.map(lambda x, y: (x, tf.one_hot(y, data.classes)))

        data.training = lambda *args, **kwargs: one_hot(training(*args, **kwargs))
        data.validation = one_hot(validation)
    return data


def _fashion_mnist(config: ConfigDict) -> Data:
    (images, labels), (test_images, test_labels) = load(config.data.name, config.data.dir or None)
    training = functools.partial(
        training_dataset,
        images,
        labels,
        config.train.batch_size,
        config.seed,
        augment=config.data.augment,
    )
    validation = evaluation_dataset(test_images, test_labels, _EVALUATION_BATCH)
    test = np.asarray(normalize(test_images))
    classes = int(test_labels.max()) + 1
    steps = len(images) // config.train.batch_size
    return Data(training, validation, steps, test, test_labels, classes)


def _imagenet(config: ConfigDict) -> Data:
    data, batch_size = config.data, config.train.batch_size
    if data.name == imagenet_sample.NAME:
        imagenet_sample.write_sample(data.dir, *data.sample)
    train, validation = open_imagenet(data.dir or None, data.index_dir or None, data.name)
    form = Form(data.image_size, data.pixels)
    augmentation = Augmentation(data.augment, data.randaugment, data.magnitude)
    tested = imagenet_evaluation(validation, _EVALUATION_BATCH, form, config.export.test_images)
    images, labels = zip(*tested.as_numpy_iterator(), strict=True)
    images, labels = np.concatenate(images), np.concatenate(labels)
    return Data(
        functools.partial(imagenet_training, train, batch_size, form, config.seed, augmentation),
        imagenet_evaluation(validation, _EVALUATION_BATCH, form),
        len(train) // batch_size,
        images,
        labels,
        train.classes,
        notes=(
            f"Accuracy and parity are of the first {len(labels):,} of {len(validation):,} "
            "validation images (config.export.test_images).",
        ),
    )

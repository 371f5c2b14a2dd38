"""The images that a config names, as batches to train on and arrays to test on."""

from __future__ import annotations

import dataclasses
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
      train: one epoch, or, with `endless`, epoch after epoch.
      validation: all of the images that no training sees.
      steps: batches of an epoch.
      test_images, test_labels: those that the files are run on.
      classes: how many there are.
      endless: whether `fit` has to be told the steps of an epoch.
      notes: what the report has to say of these images.
    """

    train: Any
    validation: Any
    steps: int
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: int
    endless: bool = False
    notes: tuple[str, ...] = ()


def load_data(config: ConfigDict) -> Data:
    """The images that `config.data` names.

    Raises:
      ValueError, OSError: an unknown name, or a folder without the data; says what was expected.
    """
    data = _imagenet(config) if config.data.name in IMAGENET else _fashion_mnist(config)
    if config.train.get("label_smoothing"):
        data.train, data.validation = (
            batches.map(lambda x, y: (x, tf.one_hot(y, data.classes)))
            for batches in (data.train, data.validation)
        )
    return data


def _fashion_mnist(config: ConfigDict) -> Data:
    (images, labels), (test_images, test_labels) = load(config.data.name, config.data.dir or None)
    batch_size = config.train.batch_size
    train = training_dataset(images, labels, batch_size, config.seed, augment=config.data.augment)
    validation = evaluation_dataset(test_images, test_labels, _EVALUATION_BATCH)
    test = np.asarray(normalize(test_images))
    classes = int(test_labels.max()) + 1
    return Data(train, validation, len(images) // batch_size, test, test_labels, classes)


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
        imagenet_training(train, batch_size, form, config.seed, augmentation),
        imagenet_evaluation(validation, _EVALUATION_BATCH, form),
        len(train) // batch_size,
        images,
        labels,
        train.classes,
        endless=True,
        notes=(
            f"Accuracy and parity are of the first {len(labels):,} of {len(validation):,} "
            "validation images (config.export.test_images).",
        ),
    )

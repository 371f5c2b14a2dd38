"""The images that a config names, as batches to train on and arrays to test on."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_metamix.checks import naming, one_of
from keras_metamix.data import (
    Augmentation,
    Form,
    evaluation_dataset,
    hold_out,
    imagenet_evaluation,
    imagenet_sample,
    imagenet_training,
    load,
    normalize,
    open_imagenet,
    scenes,
    training_dataset,
)
from keras_metamix.launch.config import Experiment
from keras_metamix.launch.tasks import CLASSIFICATION, SEGMENTATION, Task

_EVALUATION_BATCH = 250
_IMAGE_SIZE = 224  # pixels, of data sets that have images of any size


@dataclasses.dataclass
class Data:
    """Batches to train, validate and test on, and the test images as the model takes them.

    Attributes:
      training: gives batches from step `start_step` on, epoch after epoch without an end; of each
        batch a worker's `share`.
      validation: the images of the training set that `config.data.validation` holds out; None
        where it holds out none.
      test: all test images, for the networks that training ends with.
      counts: images of the three, by "training", "validation" and "test".
      steps: batches of an epoch.
      test_images, test_labels: the test images that the files are run on.
      classes: how many there are.
      class_names: theirs, where pictures show them.
      notes: what the report has to say of these images.
    """

    training: Callable[..., Any]
    validation: Any
    test: Any
    counts: dict[str, int]
    steps: int
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: int
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @functools.cached_property
    def train(self) -> Any:
        """The batches from the first step on."""
        return self.training()


def load_data(config: Experiment) -> Data:
    """The images that `config.data` names.

    Raises:
      ValueError, OSError: an unknown name, or a folder without the data; says what was expected.
    """
    data = _data_set(config).load(config)
    if config.train.label_smoothing:
        training = data.training

        def one_hot(batches: Any) -> Any:
            return batches.map(lambda x, y: (x, tf.one_hot(y, data.classes)))

        data.training = lambda *args, **kwargs: one_hot(training(*args, **kwargs))
        data.validation = None if data.validation is None else one_hot(data.validation)
        data.test = one_hot(data.test)
    data.notes = (_counted(data), *data.notes)
    return data


def _counted(data: Data) -> str:
    """How many images there were of each kind, and what each was for."""
    count = data.counts
    held = f"validated on {count['validation']:,} others of the training set"
    return (
        f"The networks were trained on {count['training']:,} images and "
        f"{held if count['validation'] else 'not validated'}; the {count['test']:,} test images "
        "measured what training ended with."
    )


def _hold_out(count: int, config: Experiment) -> tuple[np.ndarray, np.ndarray]:
    try:
        return hold_out(count, config.data.validation)
    except ValueError as error:
        raise ValueError(f"config.data.{error}") from error


def _fashion_mnist(config: Experiment) -> Data:
    (images, labels), (test_images, test_labels) = load(config.data.name, config.data.dir or None)
    if config.data.image_size:
        size = config.data.image_size
        images, test_images = _resized(images, size), _resized(test_images, size)
    trained, held = _hold_out(len(images), config)
    training = functools.partial(
        training_dataset,
        images[trained],
        labels[trained],
        config.train.batch_size,
        config.seed,
        augment=config.data.augment,
    )
    return Data(
        training,
        evaluation_dataset(images[held], labels[held], _EVALUATION_BATCH) if len(held) else None,
        evaluation_dataset(test_images, test_labels, _EVALUATION_BATCH),
        {"training": len(trained), "validation": len(held), "test": len(test_labels)},
        len(trained) // config.train.batch_size,
        np.asarray(normalize(test_images)),
        test_labels,
        int(test_labels.max()) + 1,
    )


def _resized(images: np.ndarray, size: int) -> np.ndarray:
    """uint8 images (N, H, W, C), bilinearly resized to `size` pixels of height and width."""
    found = np.empty((len(images), size, size, images.shape[3]), np.uint8)
    for first in range(0, len(images), _EVALUATION_BATCH):
        part = slice(first, first + _EVALUATION_BATCH)
        found[part] = np.rint(tf.image.resize(images[part], (size, size)))
    return found


def _imagenet(config: Experiment) -> Data:
    data, batch_size = config.data, config.train.batch_size
    if data.name == imagenet_sample.NAME:
        imagenet_sample.write_sample(data.dir, *data.sample)
    # Labels of ImageNet's own test images are not public: its validation split is the test set.
    whole, test = open_imagenet(data.dir or None, data.index_dir or None, data.name)
    train, held = (whole.pick(numbers) for numbers in _hold_out(len(whole), config))
    form = Form(data.image_size or _IMAGE_SIZE, data.pixels)
    augmentation = Augmentation(data.augment, data.randaugment, data.magnitude)
    tested = imagenet_evaluation(test, _EVALUATION_BATCH, form, config.export.test_images)
    images, labels = zip(*tested.as_numpy_iterator(), strict=True)
    images, labels = np.concatenate(images), np.concatenate(labels)
    origin = "The test images are ImageNet's validation images."
    if data.name == imagenet_sample.NAME:
        origin = "The project draws its images itself; none is ImageNet's."
    return Data(
        functools.partial(imagenet_training, train, batch_size, form, config.seed, augmentation),
        imagenet_evaluation(held, _EVALUATION_BATCH, form) if len(held) else None,
        imagenet_evaluation(test, _EVALUATION_BATCH, form),
        {"training": len(train), "validation": len(held), "test": len(test)},
        len(train) // batch_size,
        images,
        labels,
        train.classes,
        notes=(
            f"Accuracy and parity are of the first {len(labels):,} of {len(test):,} test images "
            f"(config.export.test_images). {origin}",
        ),
    )


def _scenes(config: Experiment) -> Data:
    """Scenes of three kinds of garments: those to train on, those held out, and the test images."""
    (garments, labels), test_garments = load("fashion_mnist_extract")
    data, (count, tested) = config.data, config.data.sample
    held = len(_hold_out(count, config)[1])
    sources = [(garments[part], labels[part]) for part in hold_out(len(garments), held / count)]
    counts = {"training": count - held, "validation": held, "test": tested}
    wanted = zip([*sources, test_garments], counts.values(), strict=True)
    with naming("config.data"):
        train, validation, test = (
            scenes.compose(*source, number, data.image_size or _IMAGE_SIZE, seed)
            for seed, (source, number) in enumerate(wanted)
        )
    classes = len(scenes.CLASSES)
    training = functools.partial(
        training_dataset,
        *train,
        config.train.batch_size,
        config.seed,
        augment=data.augment,
        num_classes=classes,
    )
    return Data(
        training,
        evaluation_dataset(*validation, _EVALUATION_BATCH, classes) if held else None,
        evaluation_dataset(*test, _EVALUATION_BATCH, classes),
        counts,
        counts["training"] // config.train.batch_size,
        np.asarray(normalize(test[0])),
        test[1],
        classes,
        scenes.CLASSES,
        notes=(
            "Each image is a scene of one to three garments of Fashion-MNIST on cloth. No garment "
            "of a test or validation image was trained on.",
        ),
    )


@dataclasses.dataclass(frozen=True)
class DataSet:
    """What `config.data.name` names.

    Attributes:
      task: what is trained for on it.
      load: gives its images as a config wants them.
    """

    task: Task
    load: Callable[[Experiment], Data]


DATA_SETS = {
    "fashion_mnist_extract": DataSet(CLASSIFICATION, _fashion_mnist),
    "fashion_mnist": DataSet(CLASSIFICATION, _fashion_mnist),
    scenes.NAME: DataSet(SEGMENTATION, _scenes),
    "imagenet2012": DataSet(CLASSIFICATION, _imagenet),
    imagenet_sample.NAME: DataSet(CLASSIFICATION, _imagenet),
}


def _data_set(config: Experiment) -> DataSet:
    return DATA_SETS[one_of("config.data.name", config.data.name, [*DATA_SETS])]


def task_of(config: Experiment) -> Task:
    """What an experiment trains for: its data set says it.

    Raises:
      ValueError: no such data set.
    """
    return _data_set(config).task

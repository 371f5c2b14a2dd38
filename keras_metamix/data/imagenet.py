"""ImageNet through TFDS: any batch of any epoch, given a seed and the number of the step.

Which image is at which place of which epoch, and how it is cropped and augmented there, are
functions of (seed, epoch, place) alone: no shuffle buffer, no generator with a state. A dataset
that starts at step k is therefore the rest of the one that starts at 0, and gets there at once,
without reading or decoding what lies before. For that each image is read by itself, from where
`record_index` says: keep the data on a disk that reads at random places fast.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_metamix.checks import require_number, require_whole
from keras_metamix.data.augmentation import rand_augment, random_flip
from keras_metamix.data.order import ALL, Share, in_order, ordered
from keras_metamix.data.record_index import RecordIndex, record_index

NAME = "imagenet2012"
ARCHIVES = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")
CENTRE = 0.875  # the share of an image's shorter side that evaluation looks at: 224 of 256 pixels
# Random crops: of 8 to 100 % of the area, 3:4 to 4:3 (Szegedy et al., CVPR 2015).
CROP_AREA, CROP_ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)
# Means and deviations of ImageNet's red, green and blue, pixels 0 to 255.
MEANS, DEVIATIONS = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
PIXELS = ("minus_one_to_one", "standardized")
_READERS = 16
_READ_AHEAD = 262144  # bytes; TFRecordDataset's own


@dataclasses.dataclass(frozen=True)
class Split:
    """One split: where its records are, and what they hold."""

    index: RecordIndex
    features: Any

    def __len__(self) -> int:
        return len(self.index)

    @property
    def classes(self) -> int:
        """How many classes the labels name."""
        return self.features["label"].num_classes

    def pick(self, numbers: np.ndarray) -> Split:
        """The images of the given numbers alone."""
        index = dataclasses.replace(
            self.index, shards=self.index.shards[numbers], offsets=self.index.offsets[numbers]
        )
        return dataclasses.replace(self, index=index)


@dataclasses.dataclass(frozen=True)
class Form:
    """What an image becomes.

    Attributes:
      size: height and width.
      pixels: "minus_one_to_one", which keras.applications' MobileNets take, or "standardized":
        less ImageNet's means, over its deviations, channel by channel.
    """

    size: int = 224
    pixels: str = "minus_one_to_one"

    def __post_init__(self) -> None:
        if self.pixels not in PIXELS:
            raise ValueError(f"pixels: expected one of {list(PIXELS)}, found {self.pixels!r}.")
        require_whole("size", self.size, 1)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What training does to an image.

    Attributes:
      crop_and_flip: a random crop and mirroring; without, training sees what evaluation does.
      randaugment: how many of RandAugment's operations, 0 for none.
      magnitude: their strength, 0 to 1.
    """

    crop_and_flip: bool = True
    randaugment: int = 0
    magnitude: float = 0.5

    def __post_init__(self) -> None:
        require_whole("randaugment", self.randaugment)
        require_number("magnitude", self.magnitude, 0, 1)


def open_imagenet(
    data_dir: str | os.PathLike[str] | None = None,
    index_dir: str | os.PathLike[str] | None = None,
    name: str = NAME,
) -> tuple[Split, Split]:
    """The training and the validation split of a data set of ImageNet's features.

    Args:
      data_dir: TFDS's data folder; None: $TFDS_DATA_DIR, or ~/tensorflow_datasets.
      index_dir: where the positions of the records are kept; None: beside the records. Of
        ImageNet they take 10 MB and, the first time, the reading of 1.3 million lengths.
      name: the data set's folder in `data_dir`.

    Raises:
      FileNotFoundError: it is not there; says what TFDS expects where.
      ValueError: it lacks a split, or is not made of TFRecords, or a file is cut short.
      PermissionError: the positions cannot be kept; names `index_dir`.
    """
    import tensorflow_datasets as tfds

    default = os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets"
    folder = _prepared_folder(Path(data_dir or default).expanduser(), name)
    builder = tfds.builder_from_directory(folder)
    file_format = builder.info.file_format
    if file_format != tfds.core.FileFormat.TFRECORD:
        found = file_format.value if file_format else "none"
        raise ValueError(f"{folder}: expected the file format 'tfrecord', found {found!r}.")
    train, validation = (
        _split(builder, split, Path(index_dir) if index_dir else folder)
        for split in ("train", "validation")
    )
    return train, validation


def _prepared_folder(data_dir: Path, name: str) -> Path:
    """The folder of the newest version that TFDS has prepared."""
    versions = [file.parent for file in (data_dir / name).glob("*/dataset_info.json")]
    if versions:
        return max(versions, key=lambda folder: [int(n) for n in folder.name.split(".")])
    manual = data_dir / "downloads" / "manual"
    missing = [archive for archive in ARCHIVES if not (manual / archive).is_file()]
    first = ""
    if missing:
        first = f"put {' and '.join(missing)} (from image-net.org, on registration) into {manual}, "
    raise FileNotFoundError(
        f"{data_dir / name}: expected {name} as TFDS prepares it, found "
        f"{'none' if (data_dir / name).is_dir() else 'no such folder'}: {first}"
        f"run `tfds build {NAME} --data_dir={data_dir}`, or name another data_dir."
    )


def _split(builder: Any, name: str, index_dir: Path) -> Split:
    if name not in builder.info.splits:
        found = sorted(builder.info.splits)
        raise ValueError(f"{builder.data_dir}: expected a split {name!r}, found {found}.")
    split = builder.info.splits[name]
    cache = index_dir / f"{builder.name}-{builder.version}-{name}.index.npz"
    index = record_index(split.filepaths, split.shard_lengths, cache)
    return Split(index, builder.info.features)


def imagenet_training(
    split: Split,
    batch_size: int,
    form: Form,
    seed: int,
    augmentation: Augmentation | None = None,
    start_step: int = 0,
    share: Share = ALL,
) -> tf.data.Dataset:
    """Batches for training, epoch after epoch without an end; give `fit` its `steps_per_epoch`.

    An epoch has `len(split) // batch_size` batches; the images that are over differ from epoch
    to epoch. Elements are `(images, labels)`: float32 (batch_size, size, size, 3) and int64
    (batch_size,).

    Args:
      split, form, augmentation: what is read and what becomes of it.
      batch_size: at most `len(split)`.
      seed: of order and augmentation. Equal arguments give equal batches on machines whose
        TensorFlow is equal.
      start_step: number of the first batch, counted from the first epoch's begin. What is before
        is not read.
      share: what of each batch is read, where several workers train.

    Raises:
      ValueError: `batch_size` or `start_step` out of range.
    """
    augmentation = augmentation or Augmentation()

    def load(seed: tf.Tensor, serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        jpeg, label = _parse(split, serialized)
        return _normalize(_augmented(jpeg, seed, form, augmentation), form), label

    places = ordered(len(split), batch_size, seed, start_step, share)
    records = _read(places.map(lambda record, seed: record), split.index)
    examples = tf.data.Dataset.zip(places.map(lambda record, seed: seed), records)
    batches = examples.map(load, num_parallel_calls=tf.data.AUTOTUNE)
    return in_order(batches.batch(share.batch_size(batch_size), drop_remainder=True))


def imagenet_evaluation(
    split: Split, batch_size: int, form: Form, count: int | None = None
) -> tf.data.Dataset:
    """The first `count` images (None: all), once, in the files' order.

    The middle of each image is cropped, 87.5 % of the shorter side, and resized. Elements are
    those of `imagenet_training`; the last batch may be smaller.
    """
    total = len(split) if count is None else min(count, len(split))

    def load(serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        jpeg, label = _parse(split, serialized)
        return _normalize(_crop(jpeg, _central_box(jpeg), form), form), label

    records = _read(tf.data.Dataset.range(total), split.index)
    # Keras warns of data that end, unless they say when.
    records = records.apply(tf.data.experimental.assert_cardinality(total))
    examples = records.map(load, num_parallel_calls=tf.data.AUTOTUNE)
    return in_order(examples.batch(batch_size))


def _read(numbers: tf.data.Dataset, index: RecordIndex) -> tf.data.Dataset:
    """The serialized records of the given numbers, in their order, several files at a time."""
    files, shards, offsets = map(tf.constant, (list(index.files), index.shards, index.offsets))

    def one(number: tf.Tensor) -> tf.data.Dataset:
        records = tf.raw_ops.TFRecordDatasetV2(
            filenames=[files[shards[number]]],
            compression_type="",
            buffer_size=_READ_AHEAD,
            byte_offsets=[offsets[number]],
        )
        spec = tf.TensorSpec([], tf.string)
        return tf.data.experimental.from_variant(records, spec).take(1)

    return numbers.interleave(
        one, cycle_length=_READERS, num_parallel_calls=_READERS, deterministic=True
    )


def _parse(split: Split, serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The JPEG, not decoded, and the label."""
    from tensorflow_datasets import decode

    example = split.features.deserialize_example(
        serialized, decoders={"image": decode.SkipDecoding()}
    )
    return example["image"], example["label"]


def _augmented(
    jpeg: tf.Tensor, seed: tf.Tensor, form: Form, augmentation: Augmentation
) -> tf.Tensor:
    """The augmented image, pixels 0 to 255."""
    crop, flip, other = tf.unstack(tf.random.experimental.stateless_split(seed, 3))
    if not augmentation.crop_and_flip:
        image = _crop(jpeg, _central_box(jpeg), form)
    else:
        image = random_flip(_crop(jpeg, _random_box(jpeg, crop), form), flip)
    if augmentation.randaugment:
        image = rand_augment(image, other, augmentation.randaugment, augmentation.magnitude)
    return image


def _random_box(jpeg: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.io.extract_jpeg_shape(jpeg),
        tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
        seed,
        min_object_covered=0.0,
        aspect_ratio_range=CROP_ASPECT,
        area_range=CROP_AREA,
    )
    return tf.concat([begin[:2], size[:2]], 0)


def _central_box(jpeg: tf.Tensor) -> tf.Tensor:
    shape = tf.io.extract_jpeg_shape(jpeg)[:2]
    side = tf.cast(tf.round(CENTRE * tf.cast(tf.reduce_min(shape), tf.float32)), tf.int32)
    return tf.concat([(shape - side) // 2, [side, side]], 0)


def _crop(jpeg: tf.Tensor, box: tf.Tensor, form: Form) -> tf.Tensor:
    """float32 (size, size, 3), pixels 0 to 255; `box` is (top, left, height, width).

    Only the blocks of the JPEG that the box touches are decoded.
    """
    pixels = tf.image.decode_and_crop_jpeg(jpeg, box, channels=3)
    return tf.ensure_shape(tf.image.resize(pixels, (form.size,) * 2), (form.size, form.size, 3))


def _normalize(image: tf.Tensor, form: Form) -> tf.Tensor:
    if form.pixels == "minus_one_to_one":
        return image / 127.5 - 1.0
    return (image - tf.constant(MEANS)) / tf.constant(DEVIATIONS)

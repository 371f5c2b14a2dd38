"""A small data set of ImageNet's form: JPEGs of many sizes with `imagenet2012`'s features.

Each class is a shape in a colour, somewhere on a noisy background, which a network learns in a few
steps. It shows that a recipe runs; accuracies on it mean nothing.
"""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np

NAME = "imagenet2012_sample"
VERSION = "2.0.0"
CLASSES = 1000  # as many labels as ImageNet has: networks get its head
DRAWN = 8  # of these occur
_COLOURS = ((230, 40, 40), (40, 200, 60), (50, 80, 230), (240, 220, 40))
_SIZES = (72, 129)  # height and width of an image, from and below
_SHARDS = 2  # of each split: more than one, as ImageNet has


def write_sample(data_dir: str | os.PathLike[str], train: int, validation: int) -> Path:
    """Writes the data set where TFDS keeps one, unless it is there.

    Args:
      data_dir: the folder that holds TFDS's data sets.
      train, validation: how many images of each split, a few hundred at most.

    Returns:
      `data_dir`/imagenet2012_sample/2.0.0.
    """
    import tensorflow_datasets as tfds

    folder = Path(data_dir) / NAME / VERSION
    if folder.is_dir():
        return folder
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(num_classes=CLASSES),
            "file_name": tfds.features.Text(),
        }
    )
    splits = {"train": _examples("train", train), "validation": _examples("val", validation)}
    quiet = io.StringIO()  # TFDS draws progress bars
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        tfds.dataset_builders.store_as_tfds_dataset(
            NAME,
            VERSION,
            features,
            splits,
            data_dir=data_dir,
            file_format="tfrecord",
            download_config=tfds.download.DownloadConfig(num_shards=_SHARDS),
        )
    return folder


def _examples(prefix: str, count: int) -> list[tuple[str, dict[str, Any]]]:
    """Keys and examples; the classes take turns."""
    generator = np.random.default_rng([len(prefix), count])
    examples = []
    for number in range(count):
        name, label = f"{prefix}_{number:05d}.JPEG", number % DRAWN
        image = draw(label, generator)
        examples.append((name, {"image": image, "label": label, "file_name": name}))
    return examples


def draw(label: int, generator: np.random.Generator) -> np.ndarray:
    """An image of a class: uint8 (H, W, 3), a disc or a cross of the class's colour."""
    height, width = generator.integers(*_SIZES, 2)
    image = generator.normal(110, 30, (height, width, 3))
    rows, columns = np.ogrid[:height, :width]
    radius = generator.uniform(0.25, 0.4) * min(height, width)
    y = np.abs(rows - generator.uniform(radius, height - radius))
    x = np.abs(columns - generator.uniform(radius, width - radius))
    if label < len(_COLOURS):
        inside = x**2 + y**2 < radius**2
    else:
        inside = (np.minimum(x, y) < radius / 3) & (np.maximum(x, y) < radius)
    image[inside] = _COLOURS[label % len(_COLOURS)]
    return np.clip(image, 0, 255).astype(np.uint8)

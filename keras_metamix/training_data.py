"""What `fit` is given, checked before it traces and calibrates anything."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_metamix.checks import shown


def check_training_data(model: Any, x: Any, y: Any) -> None:
    """Checks images and labels by what costs no pass over the images.

    Args:
      model: compiled, with a `network`.
      x, y: as `fit` takes them.

    Raises:
      TypeError: labels that are no numbers.
      ValueError: no images; not a label for each; labels that are NaN, or no class of the model.
    """
    if _batches(x) == 0:
        raise ValueError("fit: expected at least one batch of training data, found none.")
    if y is None:
        if isinstance(x, np.ndarray) and model.loss is not None:
            raise ValueError("fit: expected a label for each image, found none.")
        return
    images, labels = keras.tree.flatten(x), keras.tree.flatten(y)
    counts = [len(a) if getattr(a, "ndim", 0) else None for a in (*images, *labels)]
    if None not in counts and len(set(counts)) > 1:
        found = f"{counts[0]} and {counts[-1]}"
        raise ValueError(f"fit: expected as many labels as images, found {found}.")
    for array in labels:
        if isinstance(array, np.ndarray):
            _check_labels(array, _classes(model))


def _batches(x: Any) -> int | None:
    """How many a data set says that it has (negative or None: unknown), or images of an array."""
    if isinstance(x, keras.utils.PyDataset):
        return x.num_batches
    if callable(getattr(x, "cardinality", None)):  # a tf.data.Dataset, not a distributed one
        return int(x.cardinality())
    return len(x) if getattr(x, "ndim", 0) else None


def _classes(model: Any) -> int | None:
    """How many classes integer labels may name, None where the loss takes others."""
    loss = keras.losses.get(model.loss) if isinstance(model.loss, str) else model.loss
    sparse = (
        isinstance(loss, keras.losses.SparseCategoricalCrossentropy)
        or loss is keras.losses.sparse_categorical_crossentropy
    )
    if not sparse or getattr(loss, "ignore_class", None) is not None:
        return None
    return model.network.outputs[0].shape[-1]


def _check_labels(labels: np.ndarray, classes: int | None) -> None:
    if labels.dtype.kind not in "biuf":
        raise TypeError(f"labels: expected numbers, found {labels.dtype} {shown(labels[:1])}.")
    if labels.dtype.kind == "f" and not np.all(np.isfinite(labels)):
        count = np.sum(~np.isfinite(labels))
        raise ValueError(f"labels: expected finite ones, found {count} NaN or Inf.")
    if classes is not None and labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(
            f"labels: expected classes from 0 to {classes - 1}, those of the model's output, found "
            f"{labels.min()} to {labels.max()}."
        )

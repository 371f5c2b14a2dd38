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
    classes = _classes(model, y)
    for array in labels:
        if isinstance(array, np.ndarray):
            _check_labels(array, classes.get(id(array)))


def losses_by_output(model: Any) -> list[Any]:
    """The loss of each output of a compiled model, None where it has none or cannot be told."""
    count = len(model.network.outputs)
    if isinstance(model.loss, (dict, list, tuple)):
        return _by_output(model, model.loss) or [None] * count
    return [model.loss] * count


def _by_output(model: Any, values: Any) -> list[Any]:
    """What a structure of losses or labels holds for each output; empty where it is another."""
    names, outputs = model.output_names, model.network.output
    if isinstance(values, dict):
        if isinstance(outputs, dict) and len(outputs) == len(names):
            names = [
                n if n in values else key for n, key in zip(names, sorted(outputs), strict=True)
            ]
        return [values.get(name) for name in names]
    found = keras.tree.flatten(values)
    return found if len(found) == len(names) else []


def is_categorical(loss: Any) -> bool:
    """Whether a loss is a cross-entropy of classes, of integer labels or of others."""
    loss = keras.losses.get(loss) if isinstance(loss, str) else loss
    return _is_sparse(loss) or (
        isinstance(loss, keras.losses.CategoricalCrossentropy)
        or loss is keras.losses.categorical_crossentropy
    )


def _is_sparse(loss: Any) -> bool:
    return (
        isinstance(loss, keras.losses.SparseCategoricalCrossentropy)
        or loss is keras.losses.sparse_categorical_crossentropy
    )


def _batches(x: Any) -> int | None:
    """How many a data set says that it has (negative or None: unknown), or images of an array."""
    if isinstance(x, keras.utils.PyDataset):
        return x.num_batches
    if callable(getattr(x, "cardinality", None)):  # a tf.data.Dataset, not a distributed one
        return int(x.cardinality())
    return len(x) if getattr(x, "ndim", 0) else None


def _classes(model: Any, y: Any) -> dict[int, int | None]:
    """How many classes label arrays may name, by their identity; None where a loss takes others."""
    counts = map(_class_count, losses_by_output(model), model.network.outputs)
    return {id(a): count for a, count in zip(_by_output(model, y), counts, strict=False)}


def _class_count(loss: Any, output: Any) -> int | None:
    loss = keras.losses.get(loss) if isinstance(loss, str) else loss
    if not _is_sparse(loss) or getattr(loss, "ignore_class", None) is not None:
        return None
    return output.shape[-1]


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

"""What a network is trained for: its loss, its metrics, and the scores of a file's outputs.

An experiment's task follows from its data (`datasets.task_of`). All that trains, measures or
reports asks it: a network of another kind needs a `Task` here, and a data set that names it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Metric:
    """A number from 0 to 1 that says how good outputs are.

    Attributes:
      name: in tables and figures.
      key: in what Keras logs.
      of: its value, given how often each true class (row) was called each class (column).
      in_keras: what `compile` takes, given the Keras, the classes, and whether labels are one-hot.
    """

    name: str
    key: str
    of: Callable[[np.ndarray], float]
    in_keras: Callable[[Any, int, bool], Any]


@dataclasses.dataclass(frozen=True)
class Task:
    """A kind of network.

    Attributes:
      name: of the task.
      metrics: the first is the one that curves and head figures show.
      maps: whether each pixel has a label, and logits of its own.
      notes: what a report has to say of the metrics.
    """

    name: str
    metrics: tuple[Metric, ...]
    maps: bool = False
    notes: tuple[str, ...] = ()

    @property
    def metric(self) -> Metric:
        """The one that curves and head figures show."""
        return self.metrics[0]

    @property
    def names(self) -> list[str]:
        """The metrics' names."""
        return [metric.name for metric in self.metrics]

    def scores(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Each metric by its name.

        Args:
          logits: shape (*labels.shape, classes).
          labels: integers, one for each image or, of maps, for each pixel.
        """
        counts = confusion(logits, labels)
        return {metric.name: metric.of(counts) for metric in self.metrics}

    def compiled(self, kit: Any, classes: int, smoothing: float) -> dict[str, Any]:
        """Loss and metrics, for `compile`: cross-entropy, averaged over images and pixels.

        Args:
          kit: the Keras that compiles, `keras` or `tf_keras`.
          classes: how many there are.
          smoothing: of the labels, which are one-hot then.
        """
        loss = kit.losses.SparseCategoricalCrossentropy(from_logits=True)
        if smoothing:
            loss = kit.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing)
        metrics = [metric.in_keras(kit, classes, bool(smoothing)) for metric in self.metrics]
        return {"loss": loss, "metrics": metrics}


def confusion(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How often each true class (row) was called each class (column); int64 (classes, classes)."""
    classes = logits.shape[-1]
    pairs = labels.astype(np.int64).ravel() * classes + logits.argmax(-1).ravel()
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def share_right(counts: np.ndarray) -> float:
    """The share of images, or pixels, whose class is the true one."""
    return float(np.trace(counts) / counts.sum())


def mean_iou(counts: np.ndarray) -> float:
    """The mean of the classes' intersections over unions.

    Both are of all pixels together. A class that neither the truth nor the outputs have is no part
    of the mean (as in Keras' MeanIoU); one that only the outputs have counts as 0.
    """
    both = np.diag(counts)
    either = counts.sum(0) + counts.sum(1) - both
    occurs = either > 0
    return float(np.mean(both[occurs] / either[occurs]))


def _accuracy(*_: Any) -> str:
    return "accuracy"


def _mean_iou(kit: Any, classes: int, one_hot: bool) -> Any:
    settings = {"sparse_y_true": not one_hot, "sparse_y_pred": False}
    return kit.metrics.MeanIoU(classes, name="mean_iou", **settings)


ACCURACY = Metric("accuracy", "accuracy", share_right, _accuracy)
CLASSIFICATION = Task("classification", (ACCURACY,))
SEGMENTATION = Task(
    "segmentation",
    (
        Metric("mean IoU", "mean_iou", mean_iou, _mean_iou),
        Metric("pixel accuracy", "accuracy", share_right, _accuracy),
    ),
    maps=True,
    notes=(
        "The IoU of a class is the number of pixels of all test images to which both truth and "
        "file give it, divided by the number to which either does. Mean IoU averages the classes "
        "that occur.",
    ),
)

"""Knowledge distillation: a teacher's probabilities beside the labels.

Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015). MetaMix distils
its MobileNets from a bigger network and publishes neither the loss nor its weight; the form here,

    (1 - w) * task loss + w * KL(softmax(teacher) || softmax(student)),

at temperature 1 and with w = 0.5 by default, is ours.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import tensorflow as tf
from keras import ops

from keras_metamix.checks import require_number, shown

DEFAULT_WEIGHT = 0.5


class Taught(NamedTuple):
    """Labels, and what the teacher makes of the same images."""

    labels: Any
    logits: Any


def labels_of(y: Any) -> Any:
    """The labels of a batch, taught or not."""
    return y.labels if isinstance(y, Taught) else y


class Divergence(keras.losses.Loss):
    """`KL(softmax(teacher) || softmax(student))` of logits (batch, classes), averaged."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        teacher, student = ops.log_softmax(y_true), ops.log_softmax(y_pred)
        return ops.sum(ops.exp(teacher) * (teacher - student), axis=-1)


class Teacher:
    """A trained network and its share of the loss.

    No Keras object, so that a model that has one as an attribute neither saves nor trains the
    network in it.

    Args:
      network: gives logits; it runs in inference mode and gets no gradient.
      weight: w above, in (0, 1].
      student: the model that is taught.

    Raises:
      ValueError: shapes differ, there is more than one input or output, an output is softmax's,
        or `weight` is out of range.
    """

    def __init__(self, network: keras.Model, weight: float, student: keras.Model):
        require_number("distillation", weight, 0, 1, above=True)
        expected, found = _logit_shapes(student), _logit_shapes(network)
        if expected != found:
            raise ValueError(
                f"teacher {network.name!r}: expected the images and logits of {student.name!r}, "
                f"of shapes {expected}, found {found}."
            )
        self._network, self._weight, self._divergence = network, weight, Divergence()

    def teach(self, data: Any) -> tuple[Any, Taught, Any]:
        """A batch of `fit` with the teacher's logits beside its labels."""
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        logits = tf.stop_gradient(self._network(x, training=False))
        return x, Taught(y, logits), weight

    def loss(self, task: Any, y: Any, predictions: Any, sample_weight: Any = None) -> Any:
        """The task loss and the divergence of a taught batch, weighted; else the task loss."""
        if not isinstance(y, Taught):
            return task
        divergence = self._divergence(y.logits, predictions, sample_weight)
        return (1 - self._weight) * task + self._weight * divergence


def _logit_shapes(model: Any) -> tuple[tuple[int | None, ...], ...]:
    """Shapes of the image and of the logits of a model that has one of each."""
    graph = getattr(model, "network", model)  # a MetaMixModel's functional model
    if not isinstance(graph, keras.Model) or not getattr(graph, "inputs", None):
        raise TypeError(
            f"distillation: expected a Keras model that knows its inputs, found {shown(model)}."
        )
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise ValueError(
            f"distillation: expected {model.name!r} to have one input and one output, found "
            f"{len(graph.inputs)} and {len(graph.outputs)}."
        )
    for layer in graph.layers:
        activation = getattr(layer, "activation", None)
        if isinstance(layer, keras.layers.Softmax) or activation is keras.activations.softmax:
            raise ValueError(
                f"distillation: expected logits from {model.name!r}, found the softmax of "
                f"{layer.name!r}."
            )
    return tuple(graph.input_shape[1:]), tuple(graph.output_shape[1:])

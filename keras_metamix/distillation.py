r"""Knowledge distillation: a teacher's probabilities beside the labels.

Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015). MetaMix distils
its MobileNets from a bigger network and publishes neither the loss nor its weight; the form here,

$$L = (1 - w) \, L_{task} + w \, \mathrm{KL}(\mathrm{softmax}(t) \, \| \, \mathrm{softmax}(y))$$

with the logits $t$ of the teacher and $y$ of the student, at temperature 1 and with $w = 0.5$ by
default, is ours. Of several outputs those that classify are
taught, and their divergences are averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf
from keras import ops

from keras_metamix.checks import found_model, require_number, shown
from keras_metamix.network_model import network_of
from keras_metamix.training_data import is_categorical, losses_by_output

DEFAULT_WEIGHT = 0.5


class Taught(NamedTuple):
    """Labels, and what the teacher makes of the same images."""

    labels: Any
    logits: Any


def labels_of(y: Any) -> Any:
    """The labels of a batch, taught or not."""
    return y.labels if isinstance(y, Taught) else y


class Divergence(keras.losses.Loss):
    r"""The divergence of the student's class probabilities from the teacher's, of logits.

    For logits of shape (batch, classes), averaged over the batch:

    $$\mathrm{KL} = \sum_c p_c \, (\ln p_c - \ln q_c), \qquad p = \mathrm{softmax}(t), \quad q =
    \mathrm{softmax}(y)$$
    """

    def call(self, y_true: Any, y_pred: Any) -> Any:
        teacher, student = ops.log_softmax(y_true), ops.log_softmax(y_pred)
        return ops.sum(ops.exp(teacher) * (teacher - student), axis=-1)


def divergence(
    teacher: Any, student: Any, outputs: Sequence[int], sample_weight: Any = None
) -> Any:
    """The mean of `Divergence` over those outputs of two models that are logits.

    Args:
      teacher, student: outputs, in any structure.
      outputs: numbers of those to compare, of `taught_outputs`.
      sample_weight: one for all outputs, or one for each in a structure of them.
    """
    teacher, student = keras.tree.flatten(teacher), keras.tree.flatten(student)
    weights = [None] if sample_weight is None else keras.tree.flatten(sample_weight)
    if len(weights) != len(student):
        weights = weights[:1] * len(student)
    found = [Divergence()(teacher[i], student[i], weights[i]) for i in outputs]
    return sum(found) / len(found)


def taught_outputs(student: Any) -> list[int]:
    """Numbers of the outputs that a compiled model learns as logits.

    The only one; of several those whose loss is a categorical cross-entropy.

    Raises:
      ValueError: none of several has such a loss.
    """
    losses = losses_by_output(student)
    found = [i for i, loss in enumerate(losses) if len(losses) == 1 or is_categorical(loss)]
    if not found:
        raise ValueError(
            "distillation: expected a categorical cross-entropy as the loss of one of the outputs "
            f"{shown(student.output_names)} of {student.name!r}, found none."
        )
    return found


class Teacher:
    """A trained network and its share of the loss.

    No Keras object, so that a model that has one as an attribute neither saves nor trains the
    network in it.

    Args:
      network: gives logits; it runs in inference mode and gets no gradient.
      weight: w above, in (0, 1].
      student: the model that is taught, compiled.

    Raises:
      ValueError: shapes differ, an output is softmax's, or `weight` is out of range.
    """

    def __init__(self, network: keras.Model, weight: float, student: Any):
        require_number("distillation", weight, 0, 1, above=True)
        expected, found = _shapes(student), _shapes(network)
        if expected != found:
            raise ValueError(
                f"teacher {network.name!r}: expected the images and logits of {student.name!r}, "
                f"of shapes {expected}, found {found}."
            )
        self._network, self._weight = network, weight
        self._outputs = taught_outputs(student)

    def teach(self, data: Any) -> tuple[Any, Taught, Any]:
        """A batch of `fit` with the teacher's logits beside its labels."""
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        logits = self._network(x, training=False)
        return x, Taught(y, keras.tree.map_structure(tf.stop_gradient, logits)), weight

    def loss(self, task: Any, y: Any, predictions: Any, sample_weight: Any = None) -> Any:
        """The task loss and the divergence of a taught batch, weighted; else the task loss."""
        if not isinstance(y, Taught):
            return task
        distance = divergence(y.logits, predictions, self._outputs, sample_weight)
        return (1 - self._weight) * task + self._weight * distance


def _shapes(model: Any) -> tuple[tuple[int | None, ...], ...]:
    """Shapes of the images and of the logits of a model, without the batch."""
    graph = network_of(model)
    if not isinstance(graph, keras.Model) or not getattr(graph, "inputs", None):
        raise TypeError(
            "distillation: expected a Keras model that knows its inputs, found "
            f"{found_model(model)}."
        )
    for layer in graph.layers:
        activation = getattr(layer, "activation", None)
        if isinstance(layer, keras.layers.Softmax) or activation is keras.activations.softmax:
            raise ValueError(
                f"distillation: expected logits from {model.name!r}, found the softmax of "
                f"{layer.name!r}."
            )
    return tuple(tuple(tensor.shape[1:]) for tensor in (*graph.inputs, *graph.outputs))

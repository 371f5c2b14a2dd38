"""A float model that trains in less time."""

from __future__ import annotations

from typing import Any

import keras

from keras_metamix.graph.copying import copy_of
from keras_metamix.graph.topology import as_functional
from keras_metamix.layers.batch_norm import FoldableBatchNormalization


def fast_float(model: keras.Model) -> keras.Model:
    """A copy of a float model whose batch norms are one kernel each while it trains.

    Keras composes the batch norm of a training step of some twenty operations, each of which reads
    and writes the activation. The copy computes the same, but for the order of additions, with one
    kernel in each direction. It has the model's layers, names and weights, in their order, and is
    compiled, trained and evaluated as the model is. Then the model takes its weights:

        fast = fast_float(model)
        fast.compile("adam", loss)
        fast.fit(images, labels)
        model.set_weights(fast.get_weights())

    Args:
      model: a functional or Sequential model, with models inside it perhaps. A batch norm of
        another axis than the channels, with `renorm` or `synchronized`, or of a class of its own
        stays as it is.

    Raises:
      TypeError: another model: its `call` is not known.
      ValueError: a Sequential that does not know its input shape yet.
    """
    return keras.models.clone_model(as_functional(model), clone_function=_fast, recursive=True)


def _fast(layer: Any) -> Any:
    plain = type(layer) is keras.layers.BatchNormalization
    return copy_of(layer, layer.name, FoldableBatchNormalization if plain else None)

"""What Keras 3.15's `fit` lacks under `tf.distribute.MultiWorkerMirroredStrategy`."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from keras_metamix.keras_internals import replace_build
from keras_metamix.layers.parts import batch_norms


def adapt_to_workers(model: keras.Model) -> None:
    """Lets a model that was made in the scope of several workers be fitted and evaluated there.

    Of other models nothing changes. Keras builds a model from its first batch, which is no tensor
    there, and averages a step's metrics along an axis that they do not have: here the first batch
    of a worker's own replica is taken, and metrics get an axis.
    """
    strategy: Any = model.distribute_strategy
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return

    def locally(build: Any) -> Any:
        def build_locally(iterator: Any = None, data_batch: Any = None) -> None:
            if iterator is not None:
                _, _, batches = next(iter(iterator))
                data_batch = keras.tree.map_structure(
                    lambda value: strategy.experimental_local_results(value)[0], next(batches)
                )
            build(data_batch=data_batch)

        return build_locally

    def with_axis(step: Any) -> Any:
        def stepped(data: Any) -> Any:
            return keras.tree.map_structure(lambda v: tf.reshape(v, [1]), step(data))

        return stepped

    replace_build(model, locally)
    model.train_step, model.test_step = with_axis(model.train_step), with_axis(model.test_step)


def has_synchronized_norm(network: keras.Model) -> bool:
    """Whether a batch norm takes the statistics of all replicas together."""
    return any(norm.synchronized for norm in batch_norms(network))

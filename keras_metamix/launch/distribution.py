"""Which devices train an experiment, and which part of the batches each of them gets."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from keras_metamix.data import Share
from keras_metamix.launch.config import Experiment
from keras_metamix.launch.datasets import Data
from keras_metamix.network_model import optimizers_of


def make_strategy(config: Experiment) -> Any:
    """The tf.distribute strategy of `config.distribute`; "multi_worker" reads TF_CONFIG.

    Raises:
      ValueError: a batch size that the replicas cannot divide, no TPU.
    """
    name = config.distribute
    if name == "mirrored":
        found = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        strategy: Any = tf.distribute.MirroredStrategy([device.name for device in found])
    elif name == "multi_worker":
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    elif name == "tpu":
        try:
            tpu = tf.distribute.cluster_resolver.TPUClusterResolver.connect()
        except (ValueError, tf.errors.OpError) as error:
            expected = "config.distribute='tpu': expected a TPU, found none"
            raise ValueError(f"{expected}: {error}.") from error
        strategy = tf.distribute.TPUStrategy(tpu)
    else:
        strategy = tf.distribute.get_strategy()
    replicas = strategy.num_replicas_in_sync
    if config.train.batch_size % replicas:
        raise ValueError(
            f"config.train.batch_size={config.train.batch_size}: expected a multiple of the "
            f"{replicas} replicas of config.distribute={name!r}."
        )
    return strategy


def is_chief(strategy: Any) -> bool:
    """Whether this process writes the files: of several workers the first does."""
    resolver = strategy.cluster_resolver
    return not resolver or not resolver.task_type or resolver.task_id in (None, 0)


def has_workers(strategy: Any) -> bool:
    """Whether processes train together."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def distributed_training(strategy: Any, data: Data, start_step: int) -> Any:
    """The batches from a step on; a worker of several reads its own part of each and no more."""
    if not has_workers(strategy):
        return data.training(start_step=start_step)
    replicas = strategy.num_replicas_in_sync

    def read(context: Any) -> Any:
        local = replicas // context.num_input_pipelines
        share = Share(replicas, context.input_pipeline_id * local, local)
        return data.training(start_step=start_step, share=share)

    return strategy.distribute_datasets_from_function(read)


def synchronize_batch_norm(model: keras.Model) -> None:
    """Batch norm of the statistics of all replicas' images together, as one device has them."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = True


def local_copy(model: Any, strategy: Any) -> Any:
    """A trained model for this process alone; that of several workers needs them all to run."""
    if not has_workers(strategy):
        return model
    copy = type(model).from_config(model.get_config())
    copy.set_weights(model.get_weights())
    if model.compiled:
        copy.compile_from_config(model.get_compile_config())
        pairs = zip(optimizers_of(copy), optimizers_of(model), strict=True)
        for (ours, trained), (theirs, _) in pairs:
            if ours is not None and theirs is not None and theirs.built:
                ours.build(trained)
                for variable, value in zip(ours.variables, theirs.variables, strict=True):
                    variable.assign(keras.ops.convert_to_numpy(value))
    return copy

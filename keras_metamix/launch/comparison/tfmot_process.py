"""8-bit quantization-aware training by tfmot, in a process of its own; see `tfmot_qat`.

    python -m keras_metamix.launch.comparison.tfmot_process FOLDER

Importing tfmot turns the whole process to Keras 2. Reads FOLDER/job.json, writes qat.tflite and
outputs.npy there, the outputs of the training graph for the test images.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import keras
import keras_cv  # noqa: F401  of RandAugment: it has to find Keras 3, before the line below
import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from keras_metamix.launch.comparison.stock_converter import converted
from keras_metamix.launch.config import Experiment, complete
from keras_metamix.launch.datasets import Data, load_data, task_of

os.environ["TF_USE_LEGACY_KERAS"] = "1"

import tensorflow_model_optimization as tfmot
import tf_keras

from keras_metamix.launch.comparison.legacy_keras import legacy_copy


def main(folder: Path) -> None:
    """Trains and converts what the job says."""
    job = json.loads((folder / "job.json").read_text())
    config = complete(ConfigDict(job["config"]))
    data = load_data(config)
    float_model = legacy_copy(keras.saving.load_model(job["float_model"], compile=False))
    tf_keras.utils.set_random_seed(config.seed)
    model = tfmot.quantization.keras.quantize_model(float_model)
    _train(model, config, data, job["epochs"])
    np.save(folder / "outputs.npy", model.predict(data.test_images, batch_size=50, verbose=0))
    flat = converted(model, optimizations=[tf.lite.Optimize.DEFAULT])
    (folder / "qat.tflite").write_bytes(flat)


def _train(model: Any, config: Experiment, data: Data, epochs: int) -> None:
    """The config's optimizer, rate, cosine and loss, without weight decay."""
    train = config.train
    schedule = tf_keras.optimizers.schedules.CosineDecay(
        train.learning_rate, epochs * data.steps, alpha=0.01
    )
    optimizer = type(tf_keras.optimizers.get(train.optimizer))(
        learning_rate=schedule, global_clipnorm=train.clip_norm or None
    )
    task = task_of(config)
    model.compile(optimizer, **task.compiled(tf_keras, data.classes, train.label_smoothing))

    def say(epoch: int, logs: dict[str, float]) -> None:
        numbers = f"loss {logs['loss']:.4f}  {task.metric.name} {logs[task.metric.key]:.4f}"
        print(f"  tfmot QAT  epoch {epoch + 1}/{epochs}  {numbers}", flush=True)

    model.fit(
        data.train,
        steps_per_epoch=data.steps,
        epochs=epochs,
        verbose=0,
        callbacks=[tf_keras.callbacks.LambdaCallback(on_epoch_end=say)],
    )


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        sys.exit(f"tfmot: {' '.join(str(error).split())}")

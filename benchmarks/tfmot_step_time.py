"""The step of tfmot's 8-bit QAT beside legacy Keras' float step: a process of step_time.py.

    python benchmarks/tfmot_step_time.py FOLDER REPEATS

tfmot needs legacy Keras and turns the whole process to it. Reads FOLDER/float.keras, a network of
Keras 3, which is copied layer by layer, and FOLDER/batch.npz. Prints what the first steps took,
and then, for each line that comes, what a sample of each kind takes: each a line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_metamix.launch.comparison.legacy_keras import legacy_copy

os.environ["TF_USE_LEGACY_KERAS"] = "1"

import tensorflow_model_optimization as tfmot
import tf_keras


def main(folder: Path, repeats: int) -> None:
    """Times both steps in turn, whenever a line comes."""
    batch = np.load(folder / "batch.npz")
    images, labels = tf.constant(batch["images"]), tf.constant(batch["labels"])
    model = legacy_copy(keras.saving.load_model(folder / "float.keras", compile=False))
    networks = {
        "legacy_float": model,
        "tfmot": tfmot.quantization.keras.quantize_model(model),
    }
    runs = {name: _step(network, images, labels) for name, network in networks.items()}
    _say({name: _timed(run, 1)[0] for name, run in runs.items()})
    for _ in sys.stdin:
        _say({name: _timed(run, repeats) for name, run in runs.items()})


def _step(network: Any, images: Any, labels: Any) -> Callable[[], None]:
    """A function that runs one training step, to its end."""
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(tf_keras.optimizers.Adam(1e-4), loss)
    signature = [tf.TensorSpec((None, *images.shape[1:])), tf.TensorSpec((None,), labels.dtype)]
    function = tf.function(lambda x, y: network.train_step((x, y)), signature, autograph=False)

    def run() -> None:
        for value in function(images, labels).values():
            value.numpy()

    return run


def _timed(run: Callable[[], None], repeats: int) -> tuple[float, float]:
    """CPU and clock time of a step, in seconds."""
    clock, process = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        run()
    cpu = time.process_time() - process
    return cpu / repeats, (time.perf_counter() - clock) / repeats


def _say(value: Any) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

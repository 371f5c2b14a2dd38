"""The step of tfmot's 8-bit QAT beside legacy Keras' float step: a process of step_time.py.

    python benchmarks/tfmot_step_time.py FOLDER ROUNDS REPEATS

tfmot needs legacy Keras and turns the whole process to it. Reads FOLDER/float.keras, a network of
Keras 3, which is copied layer by layer, and FOLDER/batch.npz. Prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_metamix.launch.comparison.legacy_keras import legacy_copy

os.environ["TF_USE_LEGACY_KERAS"] = "1"

import tensorflow_model_optimization as tfmot
import tf_keras


def main(folder: Path, rounds: int, repeats: int) -> None:
    """Times both steps in turn."""
    batch = np.load(folder / "batch.npz")
    images, labels = tf.constant(batch["images"]), tf.constant(batch["labels"])
    model = legacy_copy(keras.saving.load_model(folder / "float.keras", compile=False))
    networks = {
        "legacy_float": model,
        "tfmot": tfmot.quantization.keras.quantize_model(model),
    }
    first, cpu, wall = {}, {}, {}
    for name, network in networks.items():
        loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        network.compile(tf_keras.optimizers.Adam(1e-4), loss)
        start = time.process_time()
        network.train_on_batch(images, labels)
        first[name], cpu[name], wall[name] = time.process_time() - start, [], []
        network.train_on_batch(images, labels)
    for _ in range(rounds):
        for name, network in networks.items():
            clock, process = time.perf_counter(), time.process_time()
            for _ in range(repeats):
                network.train_on_batch(images, labels)
            cpu[name].append((time.process_time() - process) / repeats)
            wall[name].append((time.perf_counter() - clock) / repeats)
    figures = {
        name: {
            "ms": 1e3 * float(np.median(cpu[name])),
            "wall_ms": 1e3 * float(np.median(wall[name])),
            "first_s": first[name],
        }
        for name in networks
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

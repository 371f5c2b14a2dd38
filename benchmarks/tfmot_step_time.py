"""The training step of tfmot's 8-bit QAT over its own float step: a process of step_time.py.

    python benchmarks/tfmot_step_time.py --model=small_mobilenet --width=16 --batch_size=128

tfmot needs legacy Keras and turns the whole process to it. The network is that of
keras_metamix/zoo/small.py, built by the same source with tf_keras in the place of keras.
Prints one line of JSON.
"""

import importlib.util
import json
import os
import sys
import time
import types
from pathlib import Path

os.environ["TF_USE_LEGACY_KERAS"] = "1"

import numpy as np
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_string("model", "small_mobilenet", "Network of keras_metamix.zoo.")
flags.DEFINE_integer("width", 16, "Width of the network.")
flags.DEFINE_integer("batch_size", 128, "Images in a step.")
flags.DEFINE_integer("rounds", 20, "Samples of each kind of step.")
flags.DEFINE_integer("repeats", 5, "Steps in a sample.")

ZOO = Path(__file__).resolve().parents[1] / "keras_metamix" / "zoo" / "small.py"


def legacy_zoo() -> types.ModuleType:
    """The zoo's module, its `import keras` answered by tf_keras."""
    sys.modules["keras"] = tf_keras
    sys.modules["keras.layers"] = tf_keras.layers
    spec = importlib.util.spec_from_file_location("legacy_zoo", ZOO)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(argv: list[str]) -> None:
    """Times both steps in turn."""
    del argv
    random = np.random.default_rng(0)
    images = tf.constant(random.normal(size=(FLAGS.batch_size, 28, 28, 1)).astype(np.float32))
    labels = tf.constant(random.integers(0, 10, FLAGS.batch_size))
    model = getattr(legacy_zoo(), FLAGS.model)(width=FLAGS.width)
    quantized = tfmot.quantization.keras.quantize_model(model)
    steps, times = {}, {"float": [], "qat": []}
    for name, network in (("float", model), ("qat", quantized)):
        loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        network.compile(tf_keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
        steps[name] = network
        for _ in range(3):
            network.train_on_batch(images, labels)
    for _ in range(FLAGS.rounds):
        for name, network in steps.items():
            started = time.perf_counter()
            for _ in range(FLAGS.repeats):
                network.train_on_batch(images, labels)
            times[name].append((time.perf_counter() - started) / FLAGS.repeats)
    ratios = np.divide(times["qat"], times["float"])
    figures = {
        "tfmot_float_ms": 1e3 * float(np.median(times["float"])),
        "tfmot_qat_ms": 1e3 * float(np.median(times["qat"])),
        "tfmot_qat_over_float": float(np.median(times["qat"]) / np.median(times["float"])),
        "tfmot_qat_over_float_spread": [float(q) for q in np.quantile(ratios, (0.1, 0.9))],
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    app.run(main)

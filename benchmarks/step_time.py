"""Training steps of each phase over a plain float step of the same model, in one run.

    python benchmarks/step_time.py [--model=small_mobilenet] [--json=FILE]

Steps are interleaved (float, weight training, bit-meta, bit-search, float, ...) so that the
machine's drift falls on all alike; ratios are of medians. "bit_search" is the search update
alone; an epoch of the alternating phase pays for one of it and one of bit-meta per mini-batch.
"bit_mixer" is a step of Bit-Mixer's last stage, each layer at a bit-width of its own.
The 8-bit QAT of tensorflow-model-optimization is measured too (--notfmot: not), in a process of
its own, since it needs legacy Keras, against a legacy-Keras float step of the same architecture.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import keras_metamix as kmm
from keras_metamix import zoo
from keras_metamix.files import written_whole
from keras_metamix.metamix.updates import search_update

FLAGS = flags.FLAGS
flags.DEFINE_enum("model", "small_mobilenet", zoo.__all__, "Network of keras_metamix.zoo.")
flags.DEFINE_integer("width", 16, "Width of the network.")
flags.DEFINE_integer("batch_size", 128, "Images in a step.")
flags.DEFINE_integer("rounds", 20, "Samples of each kind of step.")
flags.DEFINE_integer("repeats", 5, "Steps in a sample: a machine that throttles does so in bursts.")
flags.DEFINE_bool("tfmot", True, "Measure tfmot's 8-bit QAT too.")
flags.DEFINE_string("json", "", "Where to write the figures.")

WARMUP = 1


def _compiled(model: keras.Model) -> keras.Model:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-4), loss)
    return model


def _searchable(float_model: keras.Model, images: np.ndarray, phase: str) -> kmm.MetaMixModel:
    model = kmm.MetaMixModel.from_float(float_model, kmm.SearchSpace((8, 4, 3), 4))
    kmm.calibrate(model, images)
    _compiled(model)
    uniform = kmm.uniform_assignment(float_model, 4, 4)
    if phase == "weight_training":
        model.set_bits(uniform)
    model.set_objective(kmm.bops(float_model, uniform))
    return model


def _mixer(float_model: keras.Model, images: np.ndarray) -> kmm.BitMixerModel:
    model = kmm.BitMixerModel.from_float(float_model)
    kmm.calibrate(model, images)
    _compiled(model)
    model.stage = "layer_wise"
    model.layer_wise_share.assign(1.0)
    return model


def make_steps(images: np.ndarray, labels: np.ndarray) -> dict[str, object]:
    """One compiled function for each kind of step; a call runs it once, to the end."""
    width, shape = FLAGS.width, images.shape[1:]

    def network() -> keras.Model:
        return getattr(zoo, FLAGS.model)(shape, width=width)

    x, y = tf.constant(images), tf.constant(labels)
    plain = _compiled(network())
    training = _searchable(network(), images, "weight_training")
    meta = _searchable(network(), images, "bit_meta")
    search = _searchable(network(), images, "bit_search")
    search.phase = "bit_search"
    mixer = _mixer(network(), images)
    functions = {
        "float": lambda: plain.train_step((x, y)),
        "weight_training": lambda: training.train_step((x, y)),
        "bit_meta": lambda: meta.train_step((x, y)),
        "bit_search": lambda: search_update(search, x, y, None),
        "bit_mixer": lambda: mixer.train_step((x, y)),
    }
    return {name: tf.function(f, autograph=False) for name, f in functions.items()}


def interleave(steps: dict[str, object], rounds: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of each kind of step, in rounds of one sample of each."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(WARMUP + rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(repeats):
                for value in step().values():  # type: ignore[operator]
                    value.numpy()
            if number >= WARMUP:
                times[name].append((time.perf_counter() - start) / repeats)
    return times


def summarize(times: dict[str, list[float]], baseline: str = "float") -> dict[str, object]:
    """Medians in milliseconds, ratios of medians, and the spread of round-by-round ratios."""
    base = np.array(times[baseline])
    figures: dict[str, object] = {}
    for name, seconds in times.items():
        figures[f"{name}_ms"] = float(np.median(seconds) * 1e3)
        if name != baseline:
            ratios = np.array(seconds) / base
            figures[f"{name}_over_{baseline}"] = float(np.median(seconds) / np.median(base))
            low, high = np.percentile(ratios, [10, 90])
            figures[f"{name}_over_{baseline}_spread"] = [float(low), float(high)]
    return figures


def _tfmot_figures() -> dict[str, object]:
    command = [sys.executable, os.path.join(os.path.dirname(__file__), "tfmot_step_time.py")]
    command += [f"--width={FLAGS.width}", f"--batch_size={FLAGS.batch_size}"]
    command += [f"--model={FLAGS.model}", f"--rounds={FLAGS.rounds}"]
    command += [f"--repeats={FLAGS.repeats}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"tfmot's process failed:\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def main(argv: list[str]) -> None:
    """Measures, prints and writes the figures."""
    del argv
    random = np.random.default_rng(0)
    images = random.normal(size=(FLAGS.batch_size, 28, 28, 1)).astype(np.float32)
    labels = random.integers(0, 10, FLAGS.batch_size)
    figures = summarize(interleave(make_steps(images, labels), FLAGS.rounds, FLAGS.repeats))
    figures |= {
        "model": FLAGS.model,
        "width": FLAGS.width,
        "batch_size": FLAGS.batch_size,
        "rounds": FLAGS.rounds,
        "repeats": FLAGS.repeats,
        "machine": f"{os.cpu_count()} x {platform.machine()}",
    }
    _report(figures)
    if FLAGS.tfmot:
        _report(figures | _tfmot_figures())


def _report(figures: dict[str, object]) -> None:
    for name, value in figures.items():
        print(f"{name}: {value:.3f}" if isinstance(value, float) else f"{name}: {value}")
    print(flush=True)
    if FLAGS.json:
        with written_whole(FLAGS.json) as temporary:
            temporary.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)

"""Training steps over a plain Keras float step of the same network, interleaved in one process.

    python benchmarks/step_time.py [--networks=small_mobilenet,small_resnet,mobilenet_v2] \
        [--against=FOLDER] [--json=FILE] [--markdown=FILE]

Each kind of step is a function of a batch of unknown size, as in `fit`. Kinds are interleaved
(float, fast float, weight training, ...), so that the machine's drift falls on all alike; a ratio
is the median of the ratios of each round. Times are of the process' CPU and of the clock.

- float: the network that Keras trains; fast_float: `keras_metamix.fast_float` of it;
- weight_training, bit_meta, bit_meta_split, bit_search: MetaMix's phases, A in (8, 4, 3) and W4.
  "bit_search" is the update of the architecture parameters alone: a mini-batch of that phase pays
  for one of it and one of bit-meta;
- bit_mixer: a step of Bit-Mixer's last stage, each layer at a bit-width of its own;
- tfmot, legacy_float: 8-bit QAT of tensorflow-model-optimization and the float step below it, in
  a process of their own, since they need legacy Keras, which takes its turn in each round;
  --notfmot leaves them out.

--alone measures the CPU time of each kind's first step, which traces and compiles, and its peak
memory, in a process of its own, since what one kind compiles another may use. --against=FOLDER runs
the same benchmark on another checkout in turn with this one, and prints the ratios of both.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

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
NETWORKS = {  # input shape, images in a step, arguments
    "small_mobilenet": ((28, 28, 1), 128, {"width": 16}),
    "small_resnet": ((28, 28, 1), 128, {"width": 16}),
    "mobilenet_v2": ((96, 96, 3), 32, {"width": 0.35}),
}
flags.DEFINE_list("networks", list(NETWORKS), "Networks of keras_metamix.zoo.")
flags.DEFINE_list("kinds", [], "Kinds of step; none: all.")
flags.DEFINE_integer("rounds", 15, "Samples of each kind of step.", lower_bound=1)
flags.DEFINE_integer("repeats", 3, "Steps in a sample.", lower_bound=1)
flags.DEFINE_bool("tfmot", True, "Measure tfmot's 8-bit QAT too.")
flags.DEFINE_bool("alone", False, "Measure each kind's first step and peak memory too.")
flags.DEFINE_string("against", "", "Another checkout, measured in turn with this one.")
flags.DEFINE_integer("turns", 3, "With --against: how often the two take turns.", lower_bound=1)
flags.DEFINE_string("json", "", "Where to write the figures.")
flags.DEFINE_string("markdown", "", "Where to write them as a table.")

WARMUP = 1
BASELINE, TFMOT = "float", "tfmot"
BESIDE = (TFMOT, "legacy_float")


class Steps:
    """One compiled function for each kind of step of a network; a call runs it once."""

    def __init__(self, name: str):
        shape, count, self.arguments = NETWORKS[name]
        random = np.random.default_rng(0)
        self.name, self.shape = name, shape
        self.images = random.normal(size=(count, *shape)).astype(np.float32)
        self.labels = random.integers(0, 10, count).astype(np.int32)

    def kinds(self) -> list[str]:
        """Those that the installed version has."""
        known = ["float", "weight_training", "bit_meta", "bit_search", "bit_mixer"]
        if hasattr(kmm, "fast_float"):
            known.insert(1, "fast_float")
            known.insert(4, "bit_meta_split")
        return [kind for kind in known if not FLAGS.kinds or kind in FLAGS.kinds]

    def make(self, kind: str) -> Callable[[], Any]:
        """A function that runs one step, to its end."""
        step = self._step(kind)
        signature = [tf.TensorSpec((None, *self.shape)), tf.TensorSpec((None,), tf.int32)]
        function = tf.function(step, signature, autograph=False)
        batch = tf.constant(self.images), tf.constant(self.labels)

        def run() -> None:
            for value in function(*batch).values():
                value.numpy()

        return run

    def network(self) -> keras.Model:
        """The float network."""
        return getattr(zoo, self.name)(self.shape, classes=10, **self.arguments)

    def _step(self, kind: str) -> Callable[[Any, Any], Any]:
        if kind in ("float", "fast_float"):
            network = self.network()
            model = _compiled(network if kind == "float" else kmm.fast_float(network))
        elif kind == "bit_mixer":
            model = self._mixer()
        else:
            model = self._searchable(kind)
        if kind == "bit_search":
            return lambda x, y: search_update(model, x, y, None)
        return lambda x, y: model.train_step((x, y))

    def _searchable(self, kind: str) -> kmm.MetaMixModel:
        float_model = self.network()
        model = kmm.MetaMixModel.from_float(float_model, kmm.SearchSpace((8, 4, 3), 4))
        kmm.calibrate(model, self.images)
        _compiled(model)
        uniform = kmm.uniform_assignment(float_model, 4, 4)
        if kind == "weight_training":
            model.set_bits(uniform)
        model.set_objective(kmm.bops(float_model, uniform))
        if kind == "bit_search":
            model.phase = "bit_search"
        if kind == "bit_meta_split":
            model.meta = "split"
        return model

    def _mixer(self) -> kmm.BitMixerModel:
        model = kmm.BitMixerModel.from_float(self.network())
        kmm.calibrate(model, self.images)
        _compiled(model)
        model.stage = "layer_wise"
        model.layer_wise_share.assign(1.0)
        return model


def _compiled(model: Any) -> Any:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-4), loss)
    return model


class Beside:
    """tfmot's step and legacy Keras' float step of a network, in a process of their own."""

    def __init__(self, steps: Steps):
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        steps.network().save(folder / "float.keras")
        np.savez(folder / "batch.npz", images=steps.images, labels=steps.labels)
        script = Path(__file__).with_name("tfmot_step_time.py")
        self._process: Any = subprocess.Popen(
            [sys.executable, script, folder, str(FLAGS.repeats)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.first: dict[str, float] = self._answer()

    def sample(self) -> dict[str, tuple[float, float]]:
        """CPU and clock time of a step of each kind, in seconds."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("benchmarks/tfmot_step_time.py failed: see above.")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()
        self._folder.cleanup()


def measure(name: str) -> dict[str, Any]:
    """Times of each kind of step of a network, and what the first of all took."""
    steps = Steps(name)
    runs = {kind: steps.make(kind) for kind in steps.kinds()}
    start = time.process_time()
    for run in runs.values():
        run()
    first = time.process_time() - start
    beside = Beside(steps) if FLAGS.tfmot else None
    rounds: list[dict[str, tuple[float, float]]] = []
    for _ in range(WARMUP + FLAGS.rounds):
        rounds.append({kind: _timed(run) for kind, run in runs.items()})
        if beside:
            rounds[-1] |= beside.sample()
    if beside:
        beside.close()
    of = {kind: list(zip(*(r[kind] for r in rounds[WARMUP:]), strict=True)) for kind in rounds[0]}
    cpu, wall = ({kind: times[i] for kind, times in of.items()} for i in range(2))
    return {"cpu": cpu, "wall": wall, "first_s": first, "beside": beside.first if beside else {}}


def _timed(run: Callable[[], Any]) -> tuple[float, float]:
    """CPU and clock time of a step, in seconds."""
    clock, process = time.perf_counter(), time.process_time()
    for _ in range(FLAGS.repeats):
        run()
    cpu = time.process_time() - process
    return cpu / FLAGS.repeats, (time.perf_counter() - clock) / FLAGS.repeats


def summarize(measured: Iterable[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Medians over the rounds of one or several runs, and of the ratios of each round.

    Returns:
      A row for each kind: ms and wall_ms, over_float with its 10th and 90th percentile,
      over_tfmot; first_s of those of `Beside`.
    """
    runs = list(measured)
    rows: dict[str, dict[str, float]] = {}
    for kind in runs[0]["cpu"]:
        cpu, wall = (np.concatenate([run[of][kind] for run in runs]) for of in ("cpu", "wall"))
        rows[kind] = {"ms": 1e3 * float(np.median(cpu)), "wall_ms": 1e3 * float(np.median(wall))}
        if BASELINE in runs[0]["cpu"]:
            ratios = cpu / np.concatenate([run["cpu"][BASELINE] for run in runs])
            low, middle, high = (float(q) for q in np.quantile(ratios, (0.1, 0.5, 0.9)))
            rows[kind] |= {"over_float": middle, "low": low, "high": high}
        if TFMOT in runs[0]["cpu"]:
            ratios = cpu / np.concatenate([run["cpu"][TFMOT] for run in runs])
            rows[kind]["over_tfmot"] = float(np.median(ratios))
    for kind, first in runs[0]["beside"].items():
        rows[kind]["first_s"] = first
    return rows


def _processes(name: str, folder: str, *more: str) -> dict[str, Any]:
    """`measure` in a process that imports the packages of a checkout."""
    path = os.pathsep.join([folder, os.path.join(folder, "tflite")])
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, __file__, f"--networks={name}", f"--rounds={FLAGS.rounds}"]
    command += [f"--repeats={FLAGS.repeats}", f"--kinds={','.join(FLAGS.kinds)}", *more]
    command.append("--raw")
    return json.loads(_output(command, environment))


def _output(command: list[str], environment: dict[str, str] | None = None) -> str:
    """The last line that a process prints."""
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if result.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{result.stderr[-2000:]}")
    return result.stdout.splitlines()[-1]


flags.DEFINE_bool("raw", False, "Print all times of one network as one line of JSON.")


def _raw() -> None:
    found = measure(FLAGS.networks[0])
    found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(json.dumps(found))


def _alone(name: str, folder: str, kinds: Iterable[str]) -> dict[str, dict[str, float]]:
    """What each kind of step takes in a process of its own: first_s and peak_mb."""
    found = {}
    for kind in kinds:
        run = _processes(name, folder, f"--kinds={kind}", "--rounds=1", "--notfmot")
        found[kind] = {of: run[of] for of in ("first_s", "peak_mb")}
    return found


def main(argv: list[str]) -> None:
    """Measures, prints and writes the figures."""
    del argv
    if FLAGS.raw:
        _raw()
        return
    here = str(Path(__file__).resolve().parents[1])
    folders = {"this": here} | ({"other": FLAGS.against} if FLAGS.against else {})
    figures: dict[str, Any] = {
        "machine": f"{os.cpu_count()} x {platform.machine()}",
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "rounds": FLAGS.rounds,
        "repeats": FLAGS.repeats,
        "networks": {},
    }
    for name in FLAGS.networks:
        turns = FLAGS.turns if FLAGS.against else 1
        runs: dict[str, list[Any]] = {which: [] for which in folders}
        for _ in range(turns):
            for which, folder in folders.items():
                tfmot = FLAGS.tfmot and which == "this"
                runs[which].append(_processes(name, folder, f"--tfmot={tfmot}"))
        found: dict[str, Any] = {which: summarize(of) for which, of in runs.items()}
        for which, folder in folders.items() if FLAGS.alone else ():
            ours = [kind for kind in found[which] if kind not in BESIDE]
            for kind, more in _alone(name, folder, ours).items():
                found[which][kind] |= more
        figures["networks"][name] = found
        print(_table(name, found), flush=True)
        _write(FLAGS.json, json.dumps(figures, indent=2) + "\n")
        tables = [_table(*item) for item in figures["networks"].items()]
        _write(FLAGS.markdown, "\n".join(tables))


def _table(name: str, found: dict[str, Any]) -> str:
    """A network's figures as Markdown."""
    shape, count, _ = NETWORKS[name]
    lines = [f"{name}, {'x'.join(map(str, shape))}, {count} images a step", ""]
    lines.append(
        "| step | CPU, ms | clock, ms | over float | 10 to 90 % | over tfmot | first step, s "
        "| peak, MB |"
    )
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for which, rows in found.items():
        for kind, row in rows.items():
            label = kind if which == "this" else f"{kind}, {which}"
            ratio = f"{row['over_float']:.2f}" if "over_float" in row else ""
            spread = f"{row['low']:.2f} to {row['high']:.2f}" if "low" in row else ""
            tfmot = f"{row['over_tfmot']:.2f}" if "over_tfmot" in row else ""
            first = f"{row['first_s']:.1f}" if "first_s" in row else ""
            peak = f"{row['peak_mb']:.0f}" if "peak_mb" in row else ""
            times = f"{row['ms']:.1f} | {row['wall_ms']:.1f}"
            lines.append(f"| {label} | {times} | {ratio} | {spread} | {tfmot} | {first} | {peak} |")
    return "\n".join(lines) + "\n"


def _write(file: str, text: str) -> None:
    if file:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        with written_whole(file) as temporary:
            temporary.write_text(text)


if __name__ == "__main__":
    app.run(main)

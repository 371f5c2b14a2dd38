"""One trained model beside what other tools make of it: scores, size, latency, parity."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from keras_metamix.calibration import calibrate
from keras_metamix.checks import one_line
from keras_metamix.cost import LatencyTable
from keras_metamix.files import require_folder, written_whole
from keras_metamix.launch.budget import TABLE, uniform_name
from keras_metamix.launch.comparison.litert_quantizer import static_file
from keras_metamix.launch.comparison.npu import npu_estimates
from keras_metamix.launch.comparison.stock_converter import float_file, int8_file
from keras_metamix.launch.comparison.tfmot_qat import qat_file
from keras_metamix.launch.config import BitMixer, Experiment, MetaMix
from keras_metamix.launch.datasets import Data, load_data, task_of
from keras_metamix.launch.finished_run import read_config, read_float_model, read_model
from keras_metamix.launch.messages import check_output, command_line
from keras_metamix.launch.results import UNIFORM_FILE, point_file, run_facts
from keras_metamix.launch.tasks import Task
from keras_metamix.metamix.model import MetaMixModel
from keras_metamix.report import save_figure
from keras_metamix.report.side_by_side import (
    BASELINE,
    QAT,
    comparison_figure,
    comparison_markdown,
    comparison_table,
)
from metamix_tflite import convert, parity
from metamix_tflite.devices import ethosu
from metamix_tflite.read.files import read_file
from metamix_tflite.run.latency import BenchmarkReport, benchmark_all
from metamix_tflite.run.runner import Runner, require_count

OURS = "ours"
CONTAINERS: tuple[Literal["fast", "smallest"], ...] = ("fast", "smallest")
NPU_CONTAINER: Literal["int8"] = "int8"
FLAG = "--compare"
FILES = "comparison"  # a folder in the run's
_BATCH = 50
_TOOLS = ("litert-quantizer", "tensorflow-model-optimization", "tf-keras")
_INSTALL = 'pip install "keras-metamix[baseline]"'
# What the tools raise for a network that they cannot take.
_FAILURES = (ValueError, TypeError, RuntimeError, KeyError)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A file, and the outputs of the graph that it was made of for the test images.

    Attributes:
      name, flat: the file.
      expected: the outputs.
      model: of a file of ours, what `convert` made it of.
    """

    name: str
    flat: bytes
    expected: np.ndarray
    model: Any = None


def run_comparison(
    run: Path,
    output: Path | None = None,
    qat_epochs: int | None = None,
    calibration_images: int = 200,
    threads: int = 1,
    runs: int = 200,
    warmup: int = 20,
    accelerator: str | None = None,
) -> tuple[Any, list[Path]]:
    """Makes the files, measures them in turn, and writes what was found.

    Args:
      run: the folder of a finished `metamix-train`. The files go into RUN/comparison/.
      output: where OUTPUT.md, .json and .png go; default: RUN/comparison.
      qat_epochs: of tfmot's training; default: as many as our own training took.
      calibration_images: of the training images, that post-training quantization sees.
      threads, runs, warmup: see `benchmark_all`.
      accelerator: an Ethos-U NPU, for which Vela compiles the INT8 files. Ours, those of the run's
        further budgets and of its uniform bits are then made in INT8 containers too.

    Returns:
      A `rich` table, and the paths that were written.

    Raises:
      ValueError, OSError: no such run, or no place to write to; says what was expected.
    """
    started = time.perf_counter()
    require_count("threads", 1, threads)
    require_count("runs", 1, runs)
    require_count("warmup", 0, warmup)
    require_count("calibration_images", 1, calibration_images)
    require_count("qat_epochs", 1, 1 if qat_epochs is None else qat_epochs)
    config = read_config(run, FLAG)
    float_model = read_float_model(run, FLAG)
    models = _trained(run, config, all_models=accelerator is not None)
    if accelerator:
        ethosu.compiler(ethosu.Options(accelerator))  # says what is wrong with it before hours
    output = output or run / "comparison"
    for suffix in (".md", ".json", ".png"):
        check_output("--output", output.with_name(output.name + suffix))
    require_folder("--compare", run / FILES)
    metamix = isinstance(config, MetaMix)
    our_epochs = config.train.epochs if metamix else sum(config.mixer.stage_epochs)
    epochs = qat_epochs or our_epochs
    data = load_data(config)
    known = data.train.unbatch().take(calibration_images)  # what training sees first
    known = np.stack([image for image, _ in known.as_numpy_iterator()])

    def qat() -> tuple[bytes, np.ndarray]:
        return qat_file(config.to_dict(), run / "float.keras", epochs)

    containers = (*CONTAINERS, NPU_CONTAINER) if accelerator else CONTAINERS
    ours = [(OURS, container) for container in containers]
    ours += [(name, NPU_CONTAINER) for name in models if name != OURS]
    made = {f"{name}, {container}": (models[name], container) for name, container in ours}
    entries, missing = _make(float_model, made, data.test_images, known, qat)
    print("measuring", flush=True)
    flats = {entry.name: entry.flat for entry in entries}
    reports = benchmark_all(flats, "local", threads, runs, warmup)
    base = reports[BASELINE]
    task = task_of(config)
    npu = None
    if accelerator is not None:
        untrained = _untrained(config, float_model, known, models)
        npu = npu_estimates(accelerator, flats, untrained, _table(run, accelerator))
    comparison = {
        "npu": npu,
        "title": config.title,
        "metrics": task.names,
        "rows": [_row(entry, reports[entry.name], base, data, task) for entry in entries],
        "missing": missing,
        "parity": [
            {"name": e.name, **dataclasses.asdict(parity(e.flat, e.model, data.test_images))}
            for e in entries
            if e.model
        ],
        "images": {"test": len(data.test_labels), "calibration": calibration_images},
        "qat_epochs": epochs,
        "our_epochs": our_epochs,
        "threads": threads,
        "runs": runs,
        "notes": [*task.notes, *data.notes],
        "run": _facts(config, time.perf_counter() - started),
    }
    return comparison_table(comparison), _write(comparison, entries, run, output)


def _trained(run: Path, config: MetaMix | BitMixer, all_models: bool) -> dict[str, Any]:
    """OURS, or all trained models of a finished run."""
    files = {OURS: "model.keras"}
    if all_models and isinstance(config, MetaMix):
        files |= {f"{OURS} x{times:g}": point_file(times) for times in config.search.budgets}
        if config.train.uniform:
            files[uniform_name(config)] = UNIFORM_FILE
    return {name: read_model(run, FLAG, file) for name, file in files.items()}


def _untrained(
    config: MetaMix | BitMixer, float_model: keras.Model, images: np.ndarray, models: dict[str, Any]
) -> dict[str, bytes]:
    """Of each of our INT8 files one of the same bits, with the float network's weights."""
    found = {}
    for name, model in models.items():
        if isinstance(model, MetaMixModel):
            fresh = MetaMixModel.from_float(float_model, model.space)
            calibrate(fresh, images)
            fresh.set_bits(model.bit_assignment)
            found[f"{name}, {NPU_CONTAINER}"] = convert(fresh, weight_container=NPU_CONTAINER)
    return found


def _table(run: Path, accelerator: str) -> LatencyTable | None:
    """What Vela priced the run's layers at, if it did so for this accelerator."""
    if not (run / TABLE).is_file():
        return None
    table = LatencyTable.load(run / TABLE)
    return table if table.origin.get("accelerator") == accelerator else None


def _make(
    float_model: keras.Model,
    ours: Mapping[str, tuple[Any, Any]],
    images: np.ndarray,
    known: np.ndarray,
    qat: Callable[[], tuple[bytes, np.ndarray]],
) -> tuple[list[Entry], list[dict[str, str]]]:
    """The files that could be made, and the names and reasons of those that could not.

    Args:
      float_model: what other tools take.
      ours: model and weight container of our files, by name.
      images: of the test.
      known: that post-training quantization sees.
      qat: trains and makes tfmot's file.
    """
    of_float = _outputs(float_model, images)
    of_ours = {id(model): _outputs(model, images) for model, _ in ours.values()}
    flat = float_file(float_model)
    makers: dict[str, Callable[[], tuple[bytes, np.ndarray]]] = {
        "float": lambda: (flat, of_float),
        BASELINE: lambda: (int8_file(float_model, known), of_float),
        "LiteRT Quantizer int8": lambda: (static_file(flat, known, 8), of_float),
        "LiteRT Quantizer w4a8": lambda: (static_file(flat, known, 4), of_float),
        QAT: qat,
    }
    for name, (model, container) in ours.items():
        makers[name] = lambda m=model, c=container: (
            convert(m, weight_container=c),
            of_ours[id(m)],
        )
    entries, missing = [], []
    for name, make in makers.items():
        print(f"making {name}", flush=True)
        try:
            made, expected = make()
            Runner(made)
        except ModuleNotFoundError as error:
            missing.append({"name": name, "reason": f"{error.name} is missing: {_INSTALL}"})
        except _FAILURES as error:
            if name in ("float", BASELINE, *ours):
                raise
            missing.append({"name": name, "reason": one_line(str(error), 200)})
        else:
            entries.append(Entry(name, made, expected, *ours.get(name, ())[:1]))
    return entries, missing


def _outputs(model: Any, images: np.ndarray) -> np.ndarray:
    return np.asarray(model.predict(images, batch_size=_BATCH, verbose=0))


def _row(
    entry: Entry, report: BenchmarkReport, base: BenchmarkReport, data: Data, task: Task
) -> dict[str, Any]:
    """What was measured of a file; size and latency also over those of the stock int8 file."""
    batch = min(_BATCH, len(data.test_images))
    found = Runner(entry.flat, batch_size=batch).predict(data.test_images)
    step = _output_step(entry.flat)
    steps = None if step is None else np.rint(np.abs(found - entry.expected) / step)
    return {
        "name": entry.name,
        "scores": task.scores(found, data.test_labels),
        "file_bytes": report.file_bytes,
        "latency_us": report.median_us,
        "latency_spread_us": [report.low_us, report.high_us],
        "delegated": report.delegated,
        "partitions": report.partitions,
        "outputs": found.size,
        "differing": None if steps is None else int(np.count_nonzero(steps)),
        "max_steps": None if steps is None else int(steps.max()),
        "top1_agreement": float(np.mean(found.argmax(-1) == entry.expected.argmax(-1))),
        "size_ratio": report.file_bytes / base.file_bytes,
        "latency_ratio": report.median_us / base.median_us,
    }


def _output_step(flat: bytes) -> float | None:
    """The step of the grid that a file's float32 outputs lie on; None where it computes floats."""
    graph = read_file(flat)
    producer = graph.producer(graph.outputs[0])
    if producer is None or producer.op != "DEQUANTIZE":
        return None
    return float(graph.tensors[producer.inputs[0]].scales[0])


def _facts(config: Experiment, seconds: float) -> dict[str, Any]:
    facts = dataclasses.asdict(run_facts(config, command_line(), seconds))
    for tool in _TOOLS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            facts["versions"][tool] = importlib.metadata.version(tool)
    return facts


def _write(comparison: dict[str, Any], entries: list[Entry], run: Path, output: Path) -> list[Path]:
    """Writes page, numbers, picture and files; returns their paths."""
    page, numbers, picture = (output.with_name(output.name + e) for e in (".md", ".json", ".png"))
    names = {e.name: "_".join(e.name.lower().replace(",", "").split()) for e in entries}
    contents = {
        page: comparison_markdown(comparison, picture.name).encode(),
        numbers: (json.dumps(comparison, indent=2) + "\n").encode(),
        **{run / FILES / f"{names[entry.name]}.tflite": entry.flat for entry in entries},
    }
    (run / FILES).mkdir(exist_ok=True)
    for path, content in contents.items():
        with written_whole(path) as temporary:
            temporary.write_bytes(content)
    save_figure(comparison_figure(comparison), picture)
    return [*contents, picture]

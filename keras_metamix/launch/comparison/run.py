"""One trained model beside what other tools make of it: scores, size, latency, parity."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
from ml_collections import ConfigDict

from keras_metamix.checks import naming, one_line
from keras_metamix.files import require_folder, written_whole
from keras_metamix.launch.comparison.litert_quantizer import static_file
from keras_metamix.launch.comparison.npu import npu_estimates
from keras_metamix.launch.comparison.stock_converter import float_file, int8_file
from keras_metamix.launch.comparison.tfmot_qat import qat_file
from keras_metamix.launch.config import BitMixer, Experiment, MetaMix, complete
from keras_metamix.launch.datasets import Data, load_data, task_of
from keras_metamix.launch.export import load_float_model, load_model
from keras_metamix.launch.messages import check_output, command_line
from keras_metamix.launch.results import run_facts
from keras_metamix.launch.tasks import Task
from keras_metamix.report import save_figure
from keras_metamix.report.side_by_side import (
    BASELINE,
    comparison_figure,
    comparison_markdown,
    comparison_table,
)
from metamix_tflite import convert, parity
from metamix_tflite.read.files import read_file
from metamix_tflite.run.latency import BenchmarkReport, benchmark_all
from metamix_tflite.run.runner import Runner, require_count

OURS: dict[str, Literal["fast", "smallest"]] = {
    "ours, fast": "fast",
    "ours, smallest": "smallest",
}
FILES = "comparison"  # a folder in the run's
_BATCH = 50
_TOOLS = ("litert-quantizer", "tensorflow-model-optimization", "tf-keras")
_INSTALL = 'pip install "keras-metamix[baseline]"'
# What the tools raise for a network that they cannot take.
_FAILURES = (ValueError, TypeError, RuntimeError, KeyError)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A file, and the outputs of the graph that it was made of for the test images."""

    name: str
    flat: bytes
    expected: np.ndarray


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
      accelerator: an Ethos-U NPU, for which Vela compiles the INT8 files, and one of ours.

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
    config, float_model, model = _read_run(run)
    output = output or run / "comparison"
    for suffix in (".md", ".json", ".png"):
        check_output("--output", output.with_name(output.name + suffix))
    require_folder("--compare", run / FILES)
    ours = config.train.epochs if isinstance(config, MetaMix) else sum(config.mixer.stage_epochs)
    epochs = qat_epochs or ours
    data = load_data(config)
    known = data.train.unbatch().take(calibration_images)  # what training sees first
    known = np.stack([image for image, _ in known.as_numpy_iterator()])

    def qat() -> tuple[bytes, np.ndarray]:
        return qat_file(config.to_dict(), run / "float.keras", epochs)

    entries, missing = _make(float_model, model, data.test_images, known, qat)
    print("measuring", flush=True)
    flats = {entry.name: entry.flat for entry in entries}
    reports = benchmark_all(flats, "local", threads, runs, warmup)
    base = reports[BASELINE]
    task = task_of(config)
    npu = None
    if accelerator is not None:
        npu = npu_estimates(
            accelerator, flats | {"ours, int8": convert(model, "ethosu", io="float32")}
        )
    comparison = {
        "npu": npu,
        "title": config.title,
        "metrics": task.names,
        "rows": [_row(entry, reports[entry.name], base, data, task) for entry in entries],
        "missing": missing,
        "parity": [
            {"name": name, **dataclasses.asdict(parity(flats[name], model, data.test_images))}
            for name in OURS
        ],
        "images": {"test": len(data.test_labels), "calibration": calibration_images},
        "qat_epochs": epochs,
        "our_epochs": ours,
        "threads": threads,
        "runs": runs,
        "notes": [*task.notes, *data.notes],
        "run": _facts(config, time.perf_counter() - started),
    }
    return comparison_table(comparison), _write(comparison, entries, run, output)


def _read_run(run: Path) -> tuple[MetaMix | BitMixer, keras.Model, Any]:
    """Config, float model and trained model of a finished run."""
    for name in ("config.json", "float.keras", "model.keras"):
        if not (run / name).is_file():
            raise FileNotFoundError(
                f"--compare={run}: expected what metamix-train leaves there, found no {name}."
            )
    with naming(f"{run / 'config.json'}"):
        config = complete(ConfigDict(json.loads((run / "config.json").read_text())))
    float_model = load_float_model(run / "float.keras", "metamix-train writes it.")
    model = load_model(run / "model.keras")
    with naming(f"{run / 'model.keras'}"):
        model.require_quantized()
    return config, float_model, model


def _make(
    float_model: keras.Model,
    model: Any,
    images: np.ndarray,
    known: np.ndarray,
    qat: Callable[[], tuple[bytes, np.ndarray]],
) -> tuple[list[Entry], list[dict[str, str]]]:
    """The files that could be made, and the names and reasons of those that could not."""
    of_float, of_ours = _outputs(float_model, images), _outputs(model, images)
    flat = float_file(float_model)
    makers: dict[str, Callable[[], tuple[bytes, np.ndarray]]] = {
        "float": lambda: (flat, of_float),
        BASELINE: lambda: (int8_file(float_model, known), of_float),
        "LiteRT Quantizer int8": lambda: (static_file(flat, known, 8), of_float),
        "LiteRT Quantizer w4a8": lambda: (static_file(flat, known, 4), of_float),
        "tfmot int8 QAT": qat,
    }
    for name, container in OURS.items():
        makers[name] = lambda container=container: (
            convert(model, weight_container=container),
            of_ours,
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
            if name in ("float", BASELINE, *OURS):
                raise
            missing.append({"name": name, "reason": one_line(str(error), 200)})
        else:
            entries.append(Entry(name, made, expected))
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

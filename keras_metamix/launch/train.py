"""Float training, search, weight training, export, verification, benchmark, report.

    metamix-train --config=configs/quickstart.py --workdir=runs/quickstart

Whatever is wrong with the config, the data or the budget is said before the float training.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import keras
from absl import app, flags
from ml_collections import ConfigDict, config_flags
from rich.console import Console

from keras_metamix.cost import assignment_bops
from keras_metamix.files import written_whole
from keras_metamix.graph.layer_costs import layer_costs
from keras_metamix.launch.config import complete
from keras_metamix.launch.datasets import load_data
from keras_metamix.launch.messages import run_main
from keras_metamix.launch.optimization import load_teacher, make_optimizer
from keras_metamix.launch.results import (
    Candidate,
    bits_of,
    float_file,
    layer_rows,
    measure,
    run_facts,
    search_history,
)
from keras_metamix.launch.training import (
    float_network,
    search_space,
    target_bops,
    train_float,
    train_metamix,
    train_uniform,
)
from keras_metamix.metamix.distillation import Teacher
from keras_metamix.metamix.model import MetaMixModel
from keras_metamix.metamix.selection import check_budget
from keras_metamix.report import results_table, validate_metrics, write_report
from metamix_tflite import convert
from metamix_tflite.containers import check_container

FLAGS = flags.FLAGS
_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/metamix", "Folder that the results go to.")
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
    """Runs the experiment of a config (see configs/) and writes its files into `workdir`."""
    started = time.perf_counter()
    config = complete(config)
    keras.utils.set_random_seed(config.seed)
    data = load_data(config)
    float_model = float_network(config, data)
    target = target_bops(config, float_model)
    teacher = load_teacher(config, float_model)
    _check_early(config, float_model, target, teacher)
    workdir.mkdir(parents=True, exist_ok=True)

    size = f"{float_model.name}, {float_model.count_params():,} parameters"
    if config.float.epochs:
        print(f"float training: {size}")
        train_float(config, float_model, data)
    else:
        weights = config.float.weights or config.model.get("weights") or "none, untrained"
        print(f"no float training: {size}, weights: {weights}")
    print(f"MetaMix: budget {target / 1e6:.2f} M BOPs")
    model, callback, lines = train_metamix(config, float_model, data, target, teacher)
    uniform = None
    if config.train.uniform:
        print("uniform bit-widths, for comparison")
        uniform, _ = train_uniform(config, float_model, data, teacher)

    print("export, verification, benchmark")
    candidates = _export(config, float_model, model, uniform)
    metrics = {
        "title": config.title,
        "target_bops": target,
        "rows": measure(candidates, data.test_images, data.test_labels, config),
        "layers": layer_rows(candidates[-1].flat, model),
        "argmax_bits": bits_of(callback.argmax_assignment),
        "final_bits": bits_of(callback.assignment),
        "epochs": lines.records,
        "alphas": search_history(callback, model),
        "notes": [*NOTES, *data.notes],
    }
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    metrics["run"] = run_facts(config, command, time.perf_counter() - started)
    _write(workdir, model, candidates, metrics)


def _check_early(
    config: Any, float_model: keras.Model, target: float, teacher: keras.Model | None
) -> None:
    """Finds out what is wrong with the search before hours of float training."""
    check_container(config.export.weight_container)
    model = MetaMixModel.from_float(float_model, search_space(config))
    check_budget(layer_costs(model), model.candidate_scores(), target)
    make_optimizer(config, config.train.learning_rate)
    if teacher is not None:
        Teacher(teacher, config.train.distillation, model)
    if config.train.epochs <= config.search.meta_epochs + config.search.search_epochs:
        raise ValueError(
            f"config.train.epochs={config.train.epochs} leaves no epoch for weight training after "
            f"{config.search.meta_epochs} of bit-meta and {config.search.search_epochs} of search."
        )


def _export(config: Any, float_model: Any, model: Any, uniform: Any) -> list[Candidate]:
    container = config.export.weight_container
    candidates = [Candidate("float", "float.tflite", float_file(float_model), float_model)]
    if uniform is not None:
        flat = convert(uniform, weight_container=container)
        candidates.append(Candidate("uniform A4W4", "uniform.tflite", flat, uniform))
    flat = convert(model, weight_container=container)
    return [*candidates, Candidate("MetaMix", "model.tflite", flat, model)]


def _write(workdir: Path, model: Any, candidates: list[Candidate], metrics: dict[str, Any]) -> None:
    """Writes every file, and prints the table and the names."""
    validate_metrics(metrics)
    for candidate in candidates:
        with written_whole(workdir / candidate.file) as temporary:
            temporary.write_bytes(candidate.flat)
    bits = model.bit_assignment
    bits.save(workdir / "bits.json")
    with written_whole(workdir / "model.keras") as temporary:
        model.save(temporary)
    with written_whole(workdir / "metrics.json") as temporary:
        temporary.write_text(json.dumps(metrics, indent=2) + "\n")
    write_report(metrics, workdir / "report.html")
    Console().print(results_table(metrics))
    spent = assignment_bops(layer_costs(model), bits)
    print(f"BOPs {spent:,} of {metrics['target_bops']:,.0f}; {metrics['run']['seconds']:.0f} s")
    for name in ("bits.json", "model.keras", "model.tflite", "metrics.json", "report.html"):
        print(f"wrote {workdir / name}")


def _parse_flags(argv: list[str]) -> list[str]:
    name = Path(argv[0]).name
    try:
        return FLAGS(argv)
    except AttributeError as error:  # ml_collections, of a field that the config does not have
        sys.exit(f"{name}: the config has no field {error} to set.")
    except flags.IllegalFlagValueError as error:
        # Of a config file that raises, ml_collections gives the traceback, the error last.
        sys.exit(f"{name}: {str(error).strip().splitlines()[-1].strip()}")
    except flags.Error:
        return app.parse_flags_with_usage(argv)  # says it and exits


def run() -> None:
    """Entry point of `metamix-train`."""
    for name in ("config", "workdir"):  # absl's --help lists the flags of the main module alone
        FLAGS.register_key_flag_for_module(sys.argv[0], FLAGS[name])
    run_main(main, _parse_flags)


if __name__ == "__main__":
    run()

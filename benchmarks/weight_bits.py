"""Do searched weight bits beat uniform and random ones of the same cost? From one meta-state:

    python benchmarks/weight_bits.py --output=runs/weight_bits

The quickstart's network, activations of 8 bits, weights of 8, 4, 3 and 2. One search; then for each
budget the bits that it chose, bits drawn at random that use as much of the budget, and of the
uniform bit-widths those that lie within the range. Each is trained from the weights that the
search left, for as many epochs, and measured on the test images. Writes OUTPUT.json, which an
interrupted run goes on with, and OUTPUT.md.

With `--kind=size` budgets are bytes of the file, which holds weights of 4 and 3 bits in as many
bytes and those of 2 bits in half of them; with `--kind=bops` every bit counts. With
`--kind=latency` they are microseconds of an Ethos-U NPU, for which Vela prices the layers of the
trained float network; its estimates of each trained point are given, too.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import runpy
from pathlib import Path
from typing import Any

import keras
import numpy as np

import keras_metamix as kmm
from keras_metamix.assignment import BitAssignment
from keras_metamix.cost import PricedBudget, average_bits, select
from keras_metamix.files import written_whole
from keras_metamix.launch.budget import budget_of, npu_table
from keras_metamix.launch.config import complete
from keras_metamix.launch.datasets import load_data
from keras_metamix.launch.optimization import compile_quantized
from keras_metamix.launch.session import Session
from keras_metamix.launch.training import float_network, train_float, train_metamix
from metamix_tflite import convert
from metamix_tflite.devices import ethosu

KINDS = ("size", "bops", "latency")
BITS = (8, 4, 3, 2)


def main() -> None:
    """Runs what the file lacks, and writes it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("configs/quickstart.py"))
    parser.add_argument("--kind", choices=KINDS, default="size")
    parser.add_argument("--accelerator", default="ethos-u55-256", help="of --kind=latency")
    parser.add_argument("--data", help="default: the config's")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.25, 0.5, 0.75])
    parser.add_argument("--random", type=int, default=3, help="assignments of each budget")
    parser.add_argument("--float_epochs", type=int, default=12)
    parser.add_argument("--meta_epochs", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=3, help="of each point")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, help="of the network; default: the config's")
    parser.add_argument("--output", type=Path, default=Path("runs/weight_bits"))
    arguments = parser.parse_args()
    told = {k: v for k, v in vars(arguments).items() if k not in ("output", "config")}
    told = json.loads(json.dumps(told | {"config": arguments.config.name}))
    file = arguments.output.with_suffix(".json")
    study = json.loads(file.read_text()) if file.is_file() else {"arguments": told, "points": {}}
    if study["arguments"] != told:
        raise SystemExit(f"{file}: is of other arguments; name another --output, or remove it.")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    config = _config(arguments)
    data = load_data(config)
    session = Session(config, data)
    model = _searched(session, arguments, study, file)
    meta = [np.array(keras.ops.convert_to_numpy(v)) for v in model.variables]
    for name, bits, cost, limit in _wanted(model, arguments, session.table):
        if name in study["points"]:
            continue
        for variable, value in zip(model.variables, meta, strict=True):
            variable.assign(value)
        accuracy, untrained = _trained(session, model, bits, arguments.epochs)
        told = _compiled(model, arguments) if arguments.kind == "latency" else {}
        study["points"][name] = {
            "cost": cost,
            "limit": limit,
            "average_weight_bits": average_bits(kmm.layer_costs(model), bits)[1],
            "untrained": untrained,
            "accuracy": accuracy,
            **told,
            "weight_bits": dict(bits.weight_bits),
        }
        print(f"{name}: {cost:,.0f} of {limit:,.0f}, {100 * accuracy:.2f} %", flush=True)
        _save(file, study)
    arguments.output.with_suffix(".md").write_text(_table(study))
    print(_table(study))


def _config(arguments: argparse.Namespace) -> Any:
    config = runpy.run_path(str(arguments.config))["get_config"]()
    config.seed, config.float.epochs = arguments.seed, arguments.float_epochs
    config.space.activation_bits, config.space.weight_bits = (8,), BITS
    config.search.budget = "" if arguments.kind == "latency" else arguments.kind
    if arguments.kind == "latency":
        config.search.accelerator, config.export.weight_container = arguments.accelerator, "int8"
    if arguments.data:
        config.data.name = arguments.data
    config.search.meta_epochs, config.search.search_epochs = arguments.meta_epochs, 1
    config.train.epochs = arguments.meta_epochs + 1
    if arguments.width:
        config.model.width = arguments.width
    return complete(config)


def _searched(session: Any, arguments: Any, study: dict[str, Any], file: Path) -> Any:
    """The model after one search; kept beside the results."""
    weights = arguments.output.with_suffix(".weights.h5")
    keras.utils.set_random_seed(arguments.seed)
    float_model = float_network(session.config, session.data)
    table_file = arguments.output.with_suffix(".table.json")
    if arguments.kind == "latency" and table_file.is_file():
        session.table = kmm.LatencyTable.load(table_file)
    if weights.is_file():
        model = kmm.MetaMixModel.from_float(float_model, kmm.SearchSpace(8, BITS))
        model.load_weights(weights)
        return model
    float_model = train_float(session, float_model)
    found: Any = float_model.evaluate(session.data.test, verbose=0, return_dict=True)
    study["float"] = float(found["accuracy"])
    if arguments.kind == "latency":
        table_file.write_text(json.dumps(npu_table(session.config, float_model)))
        session.table = kmm.LatencyTable.load(table_file)
    # The search's own budget is the middle of what all bits cost.
    model = kmm.MetaMixModel.from_float(float_model, kmm.SearchSpace(8, BITS))
    middle = budget_of(arguments.kind, session.table, share=0.5).priced(model).limit
    field = f"target_{arguments.kind}"
    search = dataclasses.replace(session.config.search, **{field: middle})
    session.config = dataclasses.replace(session.config, search=search)
    model, _, _ = train_metamix(session, float_model)
    model.save_weights(weights)
    _save(file, study)
    return model


def _compiled(model: Any, arguments: Any) -> dict[str, Any]:
    """What Vela makes of a point's file."""
    vela = ethosu.compiler(ethosu.Options(arguments.accelerator))
    found = vela.compile("point", convert(model, weight_container="int8"))
    return {"cycles": found.cycles, "stored_bytes": found.read_only_bytes}


def _wanted(
    model: Any, arguments: Any, table: Any
) -> list[tuple[str, BitAssignment, float, float]]:
    """Name, bits, cost and limit of each point."""
    found = []

    def add(name: str, bits: BitAssignment, priced: PricedBudget) -> None:
        found.append((name, bits, priced.total(bits), priced.limit))

    generator = np.random.default_rng(arguments.seed)

    def kind(*limit: float, **share: float) -> kmm.Budget:
        return budget_of(arguments.kind, table, *limit, **share)

    for share in arguments.shares:
        budget = kind(share=share)
        priced = budget.priced(model)
        add(f"{share:g} searched", kmm.select_bits(model, budget), priced)
        for number in range(arguments.random):
            scores = {
                name: dict(zip(pairs, generator.normal(size=len(pairs)), strict=True))
                for name, pairs in priced.choices.items()
            }
            add(f"{share:g} random {number}", select(scores, [priced]), priced)
    for bits in BITS:
        uniform = kmm.uniform_assignment(model, 8, bits)
        priced = kind(share=1.0).priced(model)
        cost = priced.total(uniform)
        add(f"uniform W{bits}", uniform, dataclasses.replace(priced, limit=cost))
        if bits < 8:  # what the search makes of the same cost
            budget = kind(cost)
            add(f"as W{bits} searched", kmm.select_bits(model, budget), budget.priced(model))
    return found


def _trained(session: Any, model: Any, bits: BitAssignment, epochs: int) -> tuple[float, float]:
    """Test accuracy at some bits after training, and before it."""
    train = dataclasses.replace(session.config.train, epochs=epochs)
    model.set_bits(bits)
    kmm.prepare_weight_training(model, session.data.train, session.statistics_batches)
    compile_quantized(
        model, dataclasses.replace(session.config, train=train), session.data.steps, 0
    )
    before: Any = model.evaluate(session.data.test, verbose=0, return_dict=True)
    settings: Any = {"epochs": epochs, "steps_per_epoch": session.data.steps, "verbose": 0}
    model.fit(session.data.train, shuffle=False, **settings)  # the data set shuffles
    after: Any = model.evaluate(session.data.test, verbose=0, return_dict=True)
    return float(after["accuracy"]), float(before["accuracy"])


def _table(study: dict[str, Any]) -> str:
    kind, npu = study["arguments"]["kind"], study["arguments"]["kind"] == "latency"
    columns = [kind, *(["NPU cycles", "stored on it"] if npu else []), "average W"]
    columns += ["before training", "after"]
    lines = [
        f"Float: {100 * study['float']:.2f} % test accuracy. `{json.dumps(study['arguments'])}`",
        "",
        f"| bits | {' | '.join(columns)} |",
        f"| --- |{' ---: |' * len(columns)}",
    ]
    for name, point in study["points"].items():
        accuracies = " | ".join(f"{100 * point[key]:.2f} %" for key in ("untrained", "accuracy"))
        average = point["average_weight_bits"]
        compiled = [f"{point[key]:,}" for key in ("cycles", "stored_bytes") if npu]
        costs = " | ".join([f"{point['cost']:,.{npu:d}f}", *compiled])
        lines.append(f"| {name} | {costs} | {average:.2f} | {accuracies} |")
    return "\n".join(lines) + "\n"


def _save(file: Path, study: dict[str, Any]) -> None:
    with written_whole(file) as temporary:
        temporary.write_text(json.dumps(study, indent=1) + "\n")


if __name__ == "__main__":
    main()

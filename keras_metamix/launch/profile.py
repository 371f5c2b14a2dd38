"""Times the operators of a float model's quantized files, for searches against a latency.

    metamix-profile MODEL.keras --output=table.json [--activation_bits=8,4,3] [--weight_bits=8,4]
    metamix-profile MODEL.keras --output=table.json --device=ethosu [--accelerator=ethos-u55-256]

Each operator that a file of any of the bit-widths has is cut out and timed alone, once however many
layers have it. What calling LiteRT costs, measured on a file that computes nothing, is subtracted
from each and counted once for the network. An interrupted measurement goes on where it was.
For an Ethos-U NPU Vela estimates the layers' cycles in whole files (`profile_ethosu`).
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import itertools
import json
import statistics
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_metamix.assignment import SearchSpace
from keras_metamix.calibration import calibrate
from keras_metamix.checks import require_whole
from keras_metamix.cost import LayerCost
from keras_metamix.cost.latency_table import FORMAT, read_table
from keras_metamix.files import written_whole
from keras_metamix.graph.layer_costs import layer_costs, uniform_assignment
from keras_metamix.launch.commands import option, parse
from keras_metamix.launch.export import load_float_model
from keras_metamix.launch.messages import check_output, command_line, run_main
from keras_metamix.launch.profile_ethosu import ETHOSU, profile_ethosu
from keras_metamix.launch.results import cpu_name, today
from keras_metamix.metamix.model import MetaMixModel
from metamix_tflite import convert, devices
from metamix_tflite.devices import ethosu
from metamix_tflite.run.latency import run_times
from metamix_tflite.targets import ContainerName, target_of
from metamix_tflite.write.operator_files import OperatorFile, empty_file, operator_files

LOCAL = "local"
# What each device is asked by default; None: what the device's own options say.
DEFAULTS: dict[str, dict[str, Any]] = {
    LOCAL: {
        "activation_bits": (8, 4, 3),
        "weight_bits": (8, 4),
        "containers": "fast",
        "threads": 1,
        "runs": 100,
        "warmup": 10,
    },
    ETHOSU: {"activation_bits": (8,), "weight_bits": (8, 4, 3, 2), "containers": "int8"}
    | dict.fromkeys(field.name for field in dataclasses.fields(ethosu.Options)),
}
TOGETHER = 16  # operators that take turns, between two writings of the table
_EMPTY = ""  # name of the file that computes nothing
# The operators of a file for each (activation bits, weight bits).
Files = dict[tuple[int, int], list[OperatorFile]]


@dataclasses.dataclass(kw_only=True)
class Options:
    """Times each layer of a model at each bit-width."""

    # What is None by default has another default for each device, see `DEFAULTS`.

    model: Path = option(
        "a float model, Functional or Sequential", metavar="MODEL.keras", positional=True
    )
    output: Path = option("the table", metavar="TABLE.json")
    activation_bits: tuple[int, ...] = option("local: 8,4,3; ethosu: 8", None)
    weight_bits: tuple[int, ...] = option("local: 8,4; ethosu: 8,4,3,2", None)
    edge_bits: int = option("of the first and the last layer", 8)
    edge_weight_bits: int | None = option("of their weights; default: edge_bits", None)
    containers: ContainerName = option(
        "weight container of metamix-export; local: fast; ethosu: int8", None
    )
    device: str = option("local or ethosu: the others price no single layers", LOCAL)
    threads: int = option("local: CPU threads; 1", None)
    runs: int = option("local: timed inferences of each operator; 100", None)
    warmup: int = option("local: inferences before these; 10", None)
    accelerator: str | None = option("ethosu: as Vela names it; ethos-u55-256", None)
    system_config: str | None = option("ethosu: a section of --vela_config; Arm's high end", None)
    memory_mode: str | None = option("ethosu: a section of --vela_config; of that system", None)
    optimise: str | None = option("ethosu: Performance or Size; Performance", None)
    vela_config: Path | None = option("ethosu: an .ini of Vela; Arm's", None, "FILE")
    timeout: int | None = option("ethosu: seconds for one file; 600", None)
    overwrite: bool = option("begin anew where the output is there", False)


def main(options: Options) -> None:
    """Measures, and writes the table.

    Raises:
      ValueError, OSError: what is wrong with a file or flag, what was expected and found.
    """
    check_output("--output", options.output, ".json")
    options = _completed(options)
    if options.device == ETHOSU:
        profile_ethosu(options)
        return
    target_of(weight_container=options.containers)  # says what is wrong with it
    for flag, least in (("threads", 1), ("runs", 1), ("warmup", 0)):
        require_whole(f"--{flag}", getattr(options, flag), least)
    table = _begin(options)
    model = load_float_model(options.model, "give the one that from_float takes.")
    costs = layer_costs(model)  # refuses sizes that are not known
    files = _files(model, options)
    _measure(table, files, options)
    edges = options.edge_bits, options.edge_weight_bits or options.edge_bits
    low, high = _add_up(table, costs, files, edges)
    _write(table, options.output)
    print(
        f"{options.output}: {len(table['kernels'])} operators timed on {table['origin']['cpu']}; "
        f"the network's fixed cost is {table['fixed_us']:.1f} us ({low:.1f} to {high:.1f}, as the "
        "bits are)"
    )


def _completed(options: Options) -> Options:
    """The options with the device's defaults.

    Raises:
      ValueError: no such device, or an option of another one.
    """
    if options.device not in DEFAULTS:
        raise ValueError(f"--device: expected one of {tuple(DEFAULTS)}, found {options.device!r}.")
    defaults = DEFAULTS[options.device]
    devices.check_options(
        options.device,
        [*defaults],
        [
            field.name
            for field in dataclasses.fields(options)
            if field.default is None and getattr(options, field.name) is not None
        ],
    )
    missing = {k: v for k, v in defaults.items() if getattr(options, k) is None}
    return dataclasses.replace(options, **missing)


def origin(threads: int, container: str) -> dict[str, Any]:
    """Where times are measured; a table refuses those of another origin."""
    return {
        "device": "local",
        "cpu": cpu_name(),
        "runtime": f"ai-edge-litert {importlib.metadata.version('ai-edge-litert')}",
        "threads": threads,
        "container": container,
    }


def _begin(options: Options) -> dict[str, Any]:
    """The table to go on with, or an empty one.

    Raises:
      ValueError: the output is no table, or one of another origin; names both.
    """
    here = origin(options.threads, options.containers)
    table = {"format": FORMAT, "origin": here, "kernels": {}, "empty_us": {}, "operations": {}}
    if options.output.exists() and not options.overwrite:
        found = read_table(options.output)
        there = found.get("origin")
        there = there if isinstance(there, dict) else {}
        differ = [key for key in here if there.get(key) != here[key]]
        if differ:
            ours, theirs = (
                ", ".join(f"{key} {of.get(key)!r}" for key in differ) for of in (here, there)
            )
            raise ValueError(
                f"--output={options.output}: expected a table of {ours}, found one of {theirs}: "
                "give another name, or --overwrite to begin anew."
            )
        table |= {key: found[key] for key in ("kernels", "empty_us", "operations") if key in found}
    run = {"date": today(), "command": command_line(), "runs": options.runs}
    return table | run | {"fixed_us": None}


def _files(model: keras.Model, options: Options) -> Files:
    """Operators of the network's file at each pair of bit-widths, in all layers but the edges."""
    edges = options.edge_bits, options.edge_weight_bits
    space = SearchSpace(
        options.activation_bits, options.weight_bits, edges[0], edge_weight_bits=edges[1]
    )
    quantized = MetaMixModel.from_float(model, space)
    random = np.random.default_rng(0)
    images = [random.normal(size=(1, *x.shape[1:])).astype(np.float32) for x in model.inputs]
    calibrate(quantized, images[0] if len(images) == 1 else images)
    files = {}
    for activation, weight in itertools.product(space.activation_bits, options.weight_bits):
        quantized.set_bits(uniform_assignment(model, activation, weight, *edges))
        flat = convert(quantized, weight_container=options.containers, golden=0)
        files[activation, weight] = operator_files(flat)
    return files


def _measure(table: dict[str, Any], files: Files, options: Options) -> None:
    """Times the operators that the table lacks; writes it after each batch of them."""
    flats = {file.kernel: file.flat for found in files.values() for file in found}
    missing = [kernel for kernel in flats if kernel not in table["kernels"]]
    for start in range(0, len(missing), TOGETHER):
        batch = missing[start : start + TOGETHER]
        chosen = {kernel: flats[kernel] for kernel in batch} | {_EMPTY: empty_file()}
        times = run_times(chosen, options.threads, options.runs, options.warmup)
        empty = times.pop(_EMPTY)
        for kernel, us in times.items():
            table["kernels"][kernel] = max(us - empty, 0.0)
            table["empty_us"][kernel] = empty
        _write(table, options.output)
        print(f"  {len(missing) - start - len(batch)} of {len(missing)} operators left")


def _add_up(
    table: dict[str, Any], costs: list[LayerCost], files: Files, edges: tuple[int, int]
) -> tuple[float, float]:
    """Prices the layers' operations, and the fixed cost, whose least and most are returned."""
    kernels = table["kernels"]
    for (activation, weight), found in files.items():
        for cost in costs:
            bits = "/".join(map(str, edges if cost.edge else (activation, weight)))
            calls = [file.kernel for file in found if file.layer == cost.name]
            for text, kernel in zip(cost.operations, calls, strict=True):
                macs = cost.macs // len(cost.operations)
                row = table["operations"].setdefault(text, {"macs": macs, "prices": {}})
                row["prices"][bits] = kernels[kernel]
    empty = statistics.median(table["empty_us"].values())
    fixed = [
        empty + sum(kernels[file.kernel] for file in found if not file.layer)
        for found in files.values()
    ]
    table["network"] = [text for cost in costs for text in cost.operations]
    table["fixed_us"] = statistics.fmean(fixed)
    return min(fixed), max(fixed)


def _write(table: dict[str, Any], output: Path) -> None:
    with written_whole(output) as temporary:
        temporary.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


parse_flags = functools.partial(parse, Options)
run = functools.partial(run_main, main, parse_flags)  # the entry point of the command

if __name__ == "__main__":
    run()

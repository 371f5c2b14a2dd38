"""A table of what Vela estimates for each layer of a float model's quantized files."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import statistics
from typing import Any

import keras
import numpy as np

from keras_metamix.assignment import BitAssignment, SearchSpace
from keras_metamix.calibration import calibrate
from keras_metamix.cost import LayerCost
from keras_metamix.cost.latency_table import FORMAT, read_table
from keras_metamix.files import written_whole
from keras_metamix.graph.layer_costs import layer_costs
from keras_metamix.launch.export import load_float_model
from keras_metamix.launch.messages import command_line
from keras_metamix.launch.results import today
from keras_metamix.metamix.model import MetaMixModel
from metamix_tflite import convert
from metamix_tflite.devices import ethosu
from metamix_tflite.devices.ethosu_layers import layer_prices

ETHOSU = "ethosu"
CONTAINER = "int8"


def profile_ethosu(options: Any) -> None:
    """Compiles a uniform file for each pair of bit-widths, and writes the table.

    Args:
      options: of `metamix-profile`, with the device's defaults.

    Raises:
      ValueError, OSError: what is wrong with a file or flag, what was expected and found.
    """
    if options.containers != CONTAINER:
        raise ValueError(
            f"--containers: Vela takes files of {CONTAINER!r}, found {options.containers!r}."
        )
    if options.output.exists() and not options.overwrite:
        read_table(options.output)  # what is no table is never written over
        raise ValueError(
            f"--output={options.output}: is there: give another name, or --overwrite it."
        )
    vela_flags = vela_options(vars(options))
    ethosu.compiler(vela_flags)  # says what is wrong with the flags
    model = load_float_model(options.model, "give the one that from_float takes.")
    edges = options.edge_bits, options.edge_weight_bits
    space = SearchSpace(
        options.activation_bits, options.weight_bits, edges[0], edge_weight_bits=edges[1]
    )
    table = vela_table(model, space, vela_flags)
    with written_whole(options.output) as temporary:
        temporary.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    low, high = table["fixed_range_us"]
    print(
        f"{options.output}: {len(table['layers'])} layers priced by {table['origin']['compiler']} "
        f"for {vela_flags.accelerator}, {vela_flags.system_config}, {vela_flags.memory_mode} at "
        f"{table['clock_hz'] / 1e6:g} MHz: no NPU was run. The network's fixed cost is "
        f"{table['fixed_us']:.1f} us ({low:.1f} to {high:.1f}, as the bits are)"
    )


def vela_table(
    model: keras.Model, space: SearchSpace, vela_flags: ethosu.Options
) -> dict[str, Any]:
    """The table of what Vela estimates for each layer, as JSON has it; prints a line for each file.

    A file has every layer at the pair of its candidates that has the same index: where all
    layers have the same candidates, their bits are uniform. On a U65 or U85, where a layer's cycles
    depend a little on the bits of the layer before it, further files have each layer beside others,
    and the price is the mean.

    Args:
      model: the float model: compression depends on its weights.
      space: whose bit-widths are priced.
      vela_flags: the accelerator and its configuration.

    Raises:
      DeviceUnavailable: Vela is not installed.
      ValueError: no such configuration, or a network that has no file; names it.
    """
    vela = ethosu.compiler(vela_flags)
    costs = layer_costs(model)  # refuses sizes that are not known
    return {
        "format": FORMAT,
        "origin": origin(vela_flags) | {"compiler": f"Vela {vela.version}"},
        "date": today(),
        "command": command_line(),
        "network": [text for cost in costs for text in cost.operations],
        "operations": {},
        **_layers(model, costs, space, vela, alone=vela_flags.accelerator.startswith("ethos-u55")),
    }


def vela_options(given: dict[str, Any]) -> ethosu.Options:
    """Those of some flags that are Vela's."""
    names = {field.name for field in dataclasses.fields(ethosu.Options)}
    return ethosu.Options(**{k: v for k, v in given.items() if k in names and v is not None})


def origin(vela_flags: ethosu.Options) -> dict[str, Any]:
    """What estimates are made for; a table refuses those of another origin."""
    digest = (
        ""
        if vela_flags.vela_config is None
        else hashlib.sha256(vela_flags.vela_config.read_bytes()).hexdigest()
    )
    return {
        "device": ETHOSU,
        "accelerator": vela_flags.accelerator,
        "system_config": vela_flags.system_config,
        "memory_mode": vela_flags.memory_mode,
        "optimise": vela_flags.optimise,
        "config_sha256": digest,
        "container": CONTAINER,
    }


def _layers(
    model: keras.Model, costs: list[LayerCost], space: SearchSpace, vela: Any, alone: bool
) -> dict[str, Any]:
    """Prices of the layers at each pair of bit-widths, and the fixed cost.

    Args:
      model, space, vela: see `vela_table`.
      costs: `layer_costs` of the model.
      alone: whether a layer's cycles do not depend on the bits of others.
    """
    quantized = MetaMixModel.from_float(model, space)
    random = np.random.default_rng(0)
    images = [random.normal(size=(1, *x.shape[1:])).astype(np.float32) for x in model.inputs]
    calibrate(quantized, images[0] if len(images) == 1 else images)
    kinds = ("prices", "cycles", "weight_bytes")
    found: dict[str, dict[str, dict[str, list[float]]]] = {
        cost.name: {kind: {} for kind in kinds} for cost in costs
    }
    fixed_us, fixed_bytes, clock = [], [], 1.0
    choices = quantized.cost_table.choices
    most = max(choices, key=lambda name: len(choices[name]))
    for shift, place in itertools.product((0,) if alone else (0, 1), range(len(choices[most]))):
        pairs = {
            name: row[(place + shift * number) % len(row)]
            for number, (name, row) in enumerate(choices.items())
        }
        bits = BitAssignment(
            {name: a for name, (a, _) in pairs.items()}, {name: w for name, (_, w) in pairs.items()}
        )
        quantized.set_bits(bits)
        flat = convert(quantized, ETHOSU, golden=0)
        activation, weight = pairs[most]
        compiled = vela.compile(f"A{activation}W{weight}", flat)
        priced, clock = layer_prices(flat, compiled), compiled.clock_hz
        for name, price in priced.items():
            pair = f"{bits[name].activation}/{bits[name].weight}"
            values = price.cycles / clock * 1e6, price.cycles, price.weight_bytes
            for kind, value in zip(kinds, values, strict=True):
                found[name][kind].setdefault(pair, []).append(value)
        cycles = compiled.cycles - sum(price.cycles for price in priced.values())
        fixed_us.append(cycles / clock * 1e6)
        stored = sum(price.weight_bytes for price in priced.values())
        fixed_bytes.append(compiled.read_only_bytes - stored)
        if not shift:
            print(f"  A{activation}W{weight}: {compiled.cycles:,} cycles, {stored:,} weight bytes")
    return {
        "layers": {
            cost.name: {"operations": cost.operations}
            | {
                kind: {pair: statistics.fmean(values) for pair, values in row.items()}
                for kind, row in found[cost.name].items()
            }
            for cost in costs
        },
        "clock_hz": clock,
        "fixed_us": statistics.fmean(fixed_us),
        "fixed_range_us": [min(fixed_us), max(fixed_us)],
        "fixed_bytes": statistics.fmean(fixed_bytes),
    }

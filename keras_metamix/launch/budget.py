"""What bits may cost: the budgets that a config describes."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import keras

from keras_metamix.assignment import SearchSpace
from keras_metamix.checks import naming
from keras_metamix.cost import Bops, Budget, Latency, LatencyTable, Size
from keras_metamix.launch.config import Experiment, MetaMix
from keras_metamix.launch.profile_ethosu import CONTAINER, vela_table
from keras_metamix.quantized_model import QuantizedModel
from metamix_tflite.devices import ethosu

UNIFORM_BITS = 4
TABLE = "latency_table.json"  # in a run's folder: of its accelerator
TABLE_SECTIONS = {"metamix": "search", "bitmixer": "mixer"}  # where a method's config names it


def load_table(config: Experiment) -> LatencyTable | None:
    """The table of `latency_table` in `config.search`, or `config.mixer`; None where it is "".

    Raises:
      ValueError, OSError: no such file, no whole table, or one of another weight container than
        the file is to have; names the field and the file.
    """
    section = TABLE_SECTIONS[config.method]
    path = getattr(config, section).latency_table
    if not path:
        return None
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"config.{section}.latency_table: expected a file of metamix-profile, found no {path!r}"
        )
    with naming_table(config):
        table = LatencyTable.load(path)
        _check_container(config, table.origin.get("container"))
    return table


def npu_table(config: MetaMix, model: keras.Model) -> dict[str, Any]:
    """The table that Vela gives for `config.search.accelerator`, as JSON has it.

    Args:
      config: as `complete` gives it.
      model: the float model, whose weights are what is compressed.

    Raises:
      DeviceUnavailable: Vela is not installed.
      ValueError: the file is to have another weight container than Vela takes.
    """
    with naming_table(config):
        _check_container(config, CONTAINER)
        space = SearchSpace(**dataclasses.asdict(config.space))
        return vela_table(model, space, ethosu.Options(config.search.accelerator))


def _check_container(config: Experiment, found: str | None) -> None:
    wanted = config.export.file_target.container
    if found not in (None, wanted):
        raise ValueError(
            f"expected a table of weight container {wanted!r}, which the files of config.export "
            f"have, found one of {found!r}."
        )


def naming_table(config: Experiment) -> contextlib.AbstractContextManager[Any]:
    """Puts the field and the file in front of what is wrong with a table, where there is one."""
    section = TABLE_SECTIONS[config.method]
    for field in ("latency_table", "accelerator"):
        if value := getattr(getattr(config, section), field, ""):
            return naming(f"config.{section}.{field}={value!r}")
    return contextlib.nullcontext()


def search_budgets(config: MetaMix, table: LatencyTable | None, model: keras.Model) -> list[Budget]:
    """The budgets of `config.search`, by its `kinds`, all of which are met.

    Args:
      config: as `complete` gives it.
      table: the one that it names.
      model: the float model.

    Raises:
      ValueError: the table lacks what a share is of; names the layer.
    """
    return [_search_budget(kind, config, table, model) for kind in config.search.kinds]


def _search_budget(
    kind: str, config: MetaMix, table: LatencyTable | None, model: keras.Model
) -> Budget:
    """A target of `config.search`, or a share of what the uniform network costs."""
    field = config.search.field_of(kind)
    target = getattr(config.search, field)
    if field == "target_ratio":
        bits = uniform_bits(config)
        uniform = QuantizedModel.from_float(model, **bits)
        with naming_kind(config, kind):
            priced = budget_of(kind, config, table, share=1.0).priced(uniform)
            target *= priced.total(uniform.bit_assignment)
    return budget_of(kind, config, table, target)


def uniform_bits(config: Experiment, bits: int = UNIFORM_BITS) -> dict[str, Any]:
    """Bit-widths of a uniform network, as `QuantizedModel.from_float` takes them.

    Where the config has one bit-width of activations, it is that; the edges are the config's, with
    the most of their weights' bits.
    """
    space = SearchSpace(**dataclasses.asdict(config.space))
    several = len(space.activation_bits) > 1
    (edge,), (edge_weights, *_) = space.layer_candidates(edge=True)
    return {
        "activation_bits": bits if several else space.activation_bits[0],
        "weight_bits": bits,
        "edge_bits": edge,
        "edge_weight_bits": edge_weights,
    }


def uniform_name(config: Experiment, bits: int = UNIFORM_BITS) -> str:
    """`uniform A4W4`."""
    wanted = uniform_bits(config, bits)
    return f"uniform A{wanted['activation_bits']}W{bits}"


def budget_of(kind: str, config: Experiment, table: Any, *limit: Any, **share: float) -> Budget:
    """A budget of one of `config.KINDS`, with a limit or a share, of the files of a config."""
    if kind == "latency":
        return Latency(table, *limit, **share)
    return (
        Size(*limit, **share, **config.export.convert_options)
        if kind == "size"
        else Bops(*limit, **share)
    )


def naming_kind(config: Experiment, kind: str) -> contextlib.AbstractContextManager[Any]:
    """Names the table in what is wrong with a budget of it."""
    return naming_table(config) if kind == "latency" else contextlib.nullcontext()

"""What a search may cost: BOPs, or microseconds by the latency table that the config names."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import keras

from keras_metamix.checks import naming
from keras_metamix.cost import Bops, Budget, Latency, LatencyTable
from keras_metamix.graph.layer_costs import bops, layer_costs, uniform_assignment
from keras_metamix.launch.config import Experiment, MetaMix

UNIFORM_BITS = 4
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
        table, wanted = LatencyTable.load(path), config.export.weight_container
        found = table.origin.get("container", wanted)
        if found != wanted:
            raise ValueError(
                f"expected a table of config.export.weight_container={wanted!r}, found one of "
                f"{found!r}."
            )
    return table


def naming_table(config: Experiment) -> contextlib.AbstractContextManager[Any]:
    """Puts the field and the file in front of what is wrong with a table, where there is one."""
    section = TABLE_SECTIONS[config.method]
    path = getattr(config, section).latency_table
    where = f"config.{section}.latency_table={path!r}"
    return naming(where) if path else contextlib.nullcontext()


def search_budget(config: MetaMix, table: LatencyTable | None, model: keras.Model) -> Budget:
    """The budget: the target of `config.search`, or a share of what uniform 4-bit layers cost.

    Args:
      config: as `complete` gives it.
      table: of the config; without it the budget is in BOPs, with it in microseconds.
      model: the float model.

    Raises:
      ValueError: the table lacks what the share is of; names the layer.
    """
    field = target_field(config)
    target = getattr(config.search, field)
    if field == "target_ratio":
        uniform = uniform_assignment(model, UNIFORM_BITS, UNIFORM_BITS, config.space.edge_bits)
        costs = layer_costs(model)
        target *= bops(model, uniform) if table is None else table.predict(costs, uniform)
    return Bops(target) if table is None else Latency(table, target)


def target_field(config: MetaMix) -> str:
    """The field of `config.search` that the budget is of."""
    field = "target_latency" if config.search.latency_table else "target_bops"
    return "target_ratio" if getattr(config.search, field) is None else field

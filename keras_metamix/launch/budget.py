"""What a search may cost: BOPs, or microseconds by the latency table that the config names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import keras

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


@contextlib.contextmanager
def naming_table(config: Experiment) -> Iterator[None]:
    """Puts the field and the file in front of what is wrong with a table, where there is one."""
    section = TABLE_SECTIONS[config.method]
    path = getattr(config, section).latency_table
    try:
        yield
    except ValueError as error:
        if not path:
            raise
        raise ValueError(f"config.{section}.latency_table={path!r}: {error}") from error


def search_budget(config: MetaMix, table: LatencyTable | None, model: keras.Model) -> Budget:
    """The budget: the target of `config.search`, or a share of what uniform 4-bit layers cost.

    Args:
      config: as `complete` gives it.
      table: of the config; without it the budget is in BOPs, with it in microseconds.
      model: the float model.

    Raises:
      ValueError: the table lacks what the share is of; names the layer.
    """
    field = _target_field(config, table)
    target = getattr(config.search, field)
    if field == "target_ratio":
        uniform = uniform_assignment(model, UNIFORM_BITS, UNIFORM_BITS, config.space.edge_bits)
        costs = layer_costs(model)
        cost = bops(model, uniform) if table is None else table.predict(costs, uniform)
        target *= cost
    return Bops(target) if table is None else Latency(table, target)


@contextlib.contextmanager
def naming_target(config: MetaMix, table: LatencyTable | None) -> Iterator[None]:
    """Puts the field that holds the budget in front of what is wrong with it."""
    field = _target_field(config, table)
    try:
        yield
    except ValueError as error:
        value = getattr(config.search, field)
        raise ValueError(f"config.search.{field}={value}: {error}") from error


def _target_field(config: MetaMix, table: LatencyTable | None) -> str:
    field = "target_bops" if table is None else "target_latency"
    return "target_ratio" if getattr(config.search, field) is None else field

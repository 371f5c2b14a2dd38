"""What a table predicts of files, beside what Vela makes of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keras_metamix.checks import naming
from keras_metamix.cost.latency_table import LatencyTable
from keras_metamix.launch.profile_ethosu import origin, vela_options
from keras_metamix.report import numbers
from metamix_tflite.devices import DeviceReport
from metamix_tflite.read.files import read_file


def load_estimates(path: Path, given: Mapping[str, Any]) -> LatencyTable:
    """A table of `metamix-profile --device=ethosu`, made with the present options of Vela.

    Raises:
      OSError, ValueError: no such table, or one of another origin; names the flags that differ.
    """
    table, here = LatencyTable.load(path), origin(vela_options(dict(given)))
    differ = [key for key in here if table.origin.get(key) != here[key]]
    if differ:
        expected, found = (
            ", ".join(f"{key} {of.get(key)!r}" for key in differ) for of in (here, table.origin)
        )
        raise ValueError(f"--latency_table={path}: expected one of {expected}, found {found}.")
    return table


def beside(report: DeviceReport, files: Mapping[str, bytes], table: LatencyTable) -> DeviceReport:
    """The report with the predicted cycles of each file, and a sentence about each.

    Raises:
      ValueError: a file declares no bits, or they are not in the table; names it.
    """
    rows, notes = [], list(report.notes)
    for row in report.rows:
        if "time_us" not in row:  # of a kind of operator
            rows.append(row)
            continue
        name = str(row["file"])
        cycles, stored, time = (float(row[k] or 0) for k in ("cycles", "flash_bytes", "time_us"))
        with naming(f"{name}: --latency_table"):
            us, flash = table.predict_file(declared_bits(files[name]))
        predicted = round(us * cycles / time) if cycles else 0
        rows.append({k: v for key, value in row.items() for k, v in _with(key, value, predicted)})
        text = f"{name}: {predicted:,} cycles predicted, {cycles:,.0f} compiled"
        text += f" ({_error(predicted, cycles)})"
        if stored:
            text += f"; {numbers.size(flash)} of flash predicted, {numbers.size(stored)} compiled"
            text += f" ({_error(flash, stored)})"
        notes.append(f"{text}.")
    return dataclasses.replace(report, rows=rows, notes=notes)


def declared_bits(flat: bytes) -> dict[str, tuple[int, int]]:
    """The bits of the MAC layers of a file of `convert`."""
    layers = read_file(flat, declared=True).metadata["layers"].values()
    return {e["layer"]: (e["activation_bits"], e["weight_bits"]) for e in layers if e["layer"]}


def _with(key: str, value: Any, predicted: int) -> list[tuple[str, Any]]:
    return [(key, value), ("predicted_cycles", predicted)] if key == "cycles" else [(key, value)]


def _error(predicted: float, compiled: float) -> str:
    return f"{100 * (predicted / compiled - 1):+.2f} %" if compiled else "no NPU operator"

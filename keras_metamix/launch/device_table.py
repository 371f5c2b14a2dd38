"""What was measured on a device, as a table in the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from keras_metamix.report import numbers
from keras_metamix.report.table import terminal
from metamix_tflite.devices import DeviceReport

_UNITS = {"_us": numbers.duration, "_bytes": numbers.size, "_fraction": numbers.percent}


def device_table(report: DeviceReport) -> Table:
    """A column for each key of the report's rows; see `terminal`."""
    keys = list(dict.fromkeys(key for row in report.rows for key in row))
    right = []
    for place, key in enumerate(keys):
        values = [row[key] for row in report.rows if row.get(key) is not None]
        if values and not any(isinstance(value, str | bool) for value in values):
            right.append(place)
    headers = [key.removesuffix(_suffix(key)).replace("_", " ") for key in keys]
    rows = [[cell(key, row.get(key)) for key in keys] for row in report.rows]
    return terminal(f"device {report.device}", headers, rows, right)


def cell(key: str, value: Any) -> str:
    """A value as `numbers` writes it, with the unit that its key ends in."""
    if value is None:
        return numbers.MISSING
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _UNITS.get(_suffix(key), numbers.count)(value)


def _suffix(key: str) -> str:
    return next((suffix for suffix in _UNITS if key.endswith(suffix)), "")

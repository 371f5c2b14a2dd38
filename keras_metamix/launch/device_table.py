"""What was measured on a device, as a table in the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from keras_metamix.report import numbers
from metamix_tflite.devices import DeviceReport

_UNITS = {"_us": numbers.duration, "_bytes": numbers.size, "_fraction": numbers.percent}


def device_table(report: DeviceReport) -> Table:
    """A column for each key of the report's rows; cells verbatim, never as markup."""
    keys = list(dict.fromkeys(key for row in report.rows for key in row))
    table = Table(title=f"device {report.device}", title_justify="left")
    for key in keys:
        values = [row[key] for row in report.rows if row.get(key) is not None]
        right = bool(values) and not any(isinstance(value, str | bool) for value in values)
        heading = key.removesuffix(_suffix(key)).replace("_", " ")
        table.add_column(heading, overflow="fold", justify="right" if right else "left")
    for row in report.rows:
        table.add_row(*(Text(cell(key, row.get(key))) for key in keys))
    return table


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

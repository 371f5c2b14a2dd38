"""The table of a device's report: columns from the rows' keys, units from their ends."""

import io

import pytest
from rich.console import Console

from keras_metamix.launch.device_table import cell, device_table
from metamix_tflite.devices import DeviceReport


def lines_of(report):
    console = Console(file=io.StringIO(), width=100)
    console.print(device_table(report))
    text = console.file.getvalue()
    rows = [
        [c.strip() for c in line.replace("┃", "│").split("│")[1:-1]] for line in text.splitlines()
    ]
    return text.splitlines()[0].strip(), [row for row in rows if row]


def test_rows_may_have_other_columns():
    rows = [
        {"file": "[red]a.tflite", "average_us": 1234.0, "whole": True},
        {"file": "b.tflite", "refused": "no such delegate", "arena_bytes": 48200},
    ]
    title, (header, first, second) = lines_of(DeviceReport("moon", rows))
    assert title == "device moon"
    assert header == ["file", "average", "whole", "refused", "arena"]
    assert first == ["[red]a.tflite", "1.23 ms", "yes", "–", "–"]
    assert second == ["b.tflite", "–", "–", "no such delegate", "48.2 kB"]


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("average_us", 86.4, "86.4 µs"),
        ("arena_bytes", 12, "12 B"),
        ("nodes", 65, "65"),
        ("agreement_fraction", 0.5, "50.00 %"),
        ("macs", 12_345_678, "12.3 M"),
        ("exact", False, "no"),
        ("average_us", None, "–"),
        ("state", "ran", "ran"),
    ],
)
def test_cells(key, value, text):
    assert cell(key, value) == text

"""Where .tflite files are measured: each device is a module, imported when it is asked for.

A device's module has a frozen dataclass `Options`, whose fields are the launcher's flags of the
same names, and a function `measure(files, options) -> DeviceReport`. It imports neither TensorFlow
nor Keras. The machine that this runs on, "local", is `metamix_tflite.run.latency`.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# Device -> its module.
MODULES = {
    "android": "metamix_tflite.devices.android",
    "gpu": "metamix_tflite.devices.gpu",
    "arm64": "metamix_tflite.devices.arm64",
    "edgetpu": "metamix_tflite.devices.edgetpu",
    "ethosu": "metamix_tflite.devices.ethosu",
    "micro": "metamix_tflite.devices.micro",
    "web": "metamix_tflite.devices.web",
}

Cell = str | int | float | bool | None


class DeviceUnavailable(OSError):
    """A device, or a tool that it takes, is not there; the message says how to get it."""


@dataclasses.dataclass(frozen=True)
class DeviceReport:
    """What was measured.

    Attributes:
      device: where.
      rows: in the order of the table; the keys are its columns, in the order in which they first
        occur. Values of keys that end in `_us` are microseconds, in `_bytes` bytes, in `_fraction`
        fractions; None is what was not measured.
      notes: what a reader of the numbers has to know, a sentence each.
    """

    device: str
    rows: list[dict[str, Cell]]
    notes: list[str] = dataclasses.field(default_factory=list)


def measure(device: str, files: Mapping[str, bytes], **options: Any) -> DeviceReport:
    """Measures .tflite files of one signature each on a device.

    Args:
      device: a name of `MODULES`.
      files: bytes by a name for the report.
      options: fields of the device's `Options`.

    Raises:
      DeviceUnavailable: what is missing and how to get it, in one line.
      ValueError: an unknown device or option, a bad value of one, or a bad file; names it.
    """
    if device not in MODULES:
        raise ValueError(f"device: expected one of {[*MODULES]}, found {device!r}.")
    module = importlib.import_module(MODULES[device])
    check_options(device, [field.name for field in dataclasses.fields(module.Options)], options)
    return module.measure(files, module.Options(**options))


def check_options(device: str, known: Sequence[str], options: Iterable[str]) -> None:
    """Raises ValueError for an option that a device does not take; names both."""
    for name in options:
        if name not in known:
            takes = ", ".join(f"--{option}" for option in known) or "no options"
            raise ValueError(f"--{name}: device {device!r} takes {takes}.")


def require_at_least(**counts: tuple[int, int]) -> None:
    """Checks counts among options, each given as name=(least, found).

    Raises:
      ValueError: names the option, what was expected and what was found.
    """
    for name, (least, found) in counts.items():
        if found < least:
            raise ValueError(f"{name}: expected at least {least}, found {found}.")

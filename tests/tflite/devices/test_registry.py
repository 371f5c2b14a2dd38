"""The registry of devices: names, options, and what a module may import."""

import subprocess
import sys

import pytest

from metamix_tflite import devices

PROGRAM = """
import importlib, sys
from metamix_tflite import devices
for module in devices.MODULES.values():
    imported = importlib.import_module(module)
    assert callable(imported.measure) and imported.Options(), module
loaded = {m.partition(".")[0] for m in sys.modules} & {"tensorflow", "keras", "jax", "torch"}
assert not loaded, loaded
"""


def test_modules_import_no_framework():
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, timeout=120)


def test_an_unknown_device_is_named():
    with pytest.raises(ValueError, match=r"device: expected one of \[.*\], found 'moon'"):
        devices.measure("moon", {})


@pytest.mark.parametrize("device", devices.MODULES)
def test_an_option_of_another_device_is_named(device):
    with pytest.raises(ValueError, match=rf"--crater: device '{device}' takes --"):
        devices.measure(device, {}, crater=1)


def test_counts():
    devices.require_at_least(threads=(1, 1), warmup=(0, 3))
    with pytest.raises(ValueError, match="threads: expected at least 1, found 0"):
        devices.require_at_least(threads=(1, 0))

"""The installed commands, and what they print before they do anything."""

import importlib
import tomllib
from pathlib import Path

import pytest

from keras_metamix.launch import doctor

TOP = Path(__file__).parents[2]
SCRIPTS = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["scripts"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_installed_command_has_its_entry_point(name):
    module, _, function = SCRIPTS[name].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_a_missing_file_is_named(command):
    status, _, err = command(doctor, "none.keras")
    assert status == 1
    assert err.endswith(": No such file or directory: 'none.keras'\n") and "Errno" not in err

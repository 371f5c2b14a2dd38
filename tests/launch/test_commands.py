"""The installed commands, and what they print before they do anything."""

import importlib
import os
import subprocess
import sys
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
    if module == "metamix_commands":
        assert name == f"metamix-{function}"
        assert callable(importlib.import_module(f"keras_metamix.launch.{function}").run)


def run(*arguments):
    """metamix-doctor in a process of its own, where nobody has turned TensorFlow's notes off."""
    code = "import sys, metamix_commands; sys.argv[0] = 'metamix-doctor'; metamix_commands.doctor()"
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    environment["PYTHONPATH"] = os.pathsep.join([str(TOP), str(TOP / "tflite")])
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_help_is_all_that_a_command_prints():
    done = run("--help")
    assert done.returncode == 0 and done.stdout.startswith("usage: metamix-doctor")
    assert done.stderr == ""


def test_a_missing_file_is_named(command):
    status, _, err = command(doctor, "none.keras")
    assert status == 1
    assert err.endswith(": No such file or directory: 'none.keras'\n") and "Errno" not in err

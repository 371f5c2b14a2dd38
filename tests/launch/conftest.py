"""A quantized model in a folder of its own, and commands run in this process."""

import numpy as np
import pytest

import keras_metamix as kmm
from keras_metamix.launch.messages import exit_status


@pytest.fixture(scope="session")
def quantized(float_model):
    """Calibrated at 4 bits, not trained."""
    model = kmm.MetaMixModel.from_float(float_model)
    kmm.calibrate(model, np.random.default_rng(0).normal(size=(16, 8, 8, 1)).astype("float32"))
    model.set_bits(kmm.uniform_assignment(float_model, 4, 4))
    return model


@pytest.fixture
def command(capsys):
    """command(launcher, *arguments) -> (exit status, stdout, stderr)."""

    def call(launcher, *arguments):
        flags = launcher.parse_flags(["command", *arguments])
        status = exit_status(launcher.main, flags)
        return status, *capsys.readouterr()

    return call

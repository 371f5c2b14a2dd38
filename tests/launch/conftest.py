"""A quantized model in a folder of its own, and commands run in this process."""

import keras
import numpy as np
import pytest

import keras_metamix as kmm
from keras_metamix.launch.messages import exit_status
from keras_metamix.zoo import small_cnn


@pytest.fixture(scope="session")
def float_model():
    keras.utils.set_random_seed(0)
    return small_cnn((8, 8, 1), classes=4, width=4)


@pytest.fixture(scope="session")
def quantized(float_model):
    """Calibrated at 4 bits, not trained."""
    model = kmm.MetaMixModel.from_float(float_model)
    kmm.calibrate(model, np.random.default_rng(0).normal(size=(16, 8, 8, 1)).astype("float32"))
    model.set_bits(kmm.uniform_assignment(float_model, 4, 4))
    return model


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, so that commands name files as a user would."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def command(capsys):
    """command(launcher, *arguments) -> (exit status, stdout, stderr)."""

    def call(launcher, *arguments):
        flags = launcher.parse_flags(["command", *arguments])
        status = exit_status(launcher.main, flags)
        return status, *capsys.readouterr()

    return call

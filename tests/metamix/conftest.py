"""A MetaMixModel of a network so small that a phase of it trains in a second."""

import keras
import pytest

from keras_metamix.assignment import SearchSpace
from keras_metamix.calibration import calibrate
from keras_metamix.metamix.model import MetaMixModel

BUDGET = 48_000  # the network takes 46848 (3-bit) to 58368 (8-bit) BOPs at 4-bit weights


@pytest.fixture(scope="session")
def metamix(tiny_model, data, loss):
    """A compiled, calibrated MetaMixModel in a phase."""

    def build(space=None, phase="bit_meta", optimizer=None, calibrated=True, seed=0, **compile):
        model = MetaMixModel.from_float(tiny_model(seed), space or SearchSpace())
        model.compile(
            optimizer=optimizer or keras.optimizers.SGD(0.05),
            loss=loss,
            **({"metrics": ["accuracy"]} | compile),
        )
        if calibrated:
            calibrate(model, data[0][:8])
        model.set_objective(BUDGET)
        model.phase = phase
        return model

    return build

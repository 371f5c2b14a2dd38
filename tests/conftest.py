"""What every test file shares."""

import gc

import keras
import pytest


@pytest.fixture(scope="module", autouse=True)
def _fresh_process():
    """Leaves no file's models to the next: Keras and Python's garbage collector slow down with
    all that a process has ever made, to a tenth of their speed over the whole suite."""
    yield
    keras.utils.clear_session()
    gc.freeze()  # what is left stays: no later collection walks through it

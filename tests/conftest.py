"""What every test file shares."""

import gc
import os

import keras
import pytest


def pytest_collection_modifyitems(items):
    """Files with slow tests come first, so that two workers end together; tests marked long run
    with LONG_TESTS=1 alone."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    if "LONG_TESTS" not in os.environ:
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="takes minutes: set LONG_TESTS=1"))


@pytest.fixture(scope="module", autouse=True)
def _fresh_process():
    """Leaves no file's models to the next: Keras and Python's garbage collector slow down with
    all that a process has ever made, to a tenth of their speed over the whole suite."""
    yield
    keras.utils.clear_session()
    gc.freeze()  # what is left stays: no later collection walks through it

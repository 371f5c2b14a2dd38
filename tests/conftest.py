"""What every test file shares."""

import gc
import os
from pathlib import Path

# On x86 TensorFlow takes oneDNN's kernels by default only where a CPU has VNNI. Keras computes
# depthwise convolutions of unequal strides and dilated transposed ones with no others.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import keras
import numpy as np
import pytest
from keras import layers

from keras_metamix.zoo import small_cnn

CLASSES = 4


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


@pytest.fixture(scope="session")
def float_model():
    """A network for tests that look at files, messages and costs."""
    keras.utils.set_random_seed(0)
    return small_cnn((8, 8, 1), CLASSES, width=4)


@pytest.fixture(scope="session")
def tiny_model():
    """tiny_model(seed) -> a network with every kind of variable: two searched layers with a
    transition between them, streams (a sum)."""

    def build(seed=0):
        keras.utils.set_random_seed(seed)
        image = keras.Input((8, 8, 1), name="image")
        x = layers.Conv2D(3, 3, 2, "same", use_bias=False, name="stem")(image)
        x = layers.BatchNormalization(momentum=0.9, name="stem_bn")(x)
        x = layers.ReLU(name="stem_relu")(x)
        y = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(x)
        y = layers.BatchNormalization(momentum=0.9, name="depthwise_bn")(y)
        y = layers.ReLU(6.0, name="depthwise_relu")(y)
        y = layers.Conv2D(3, 1, use_bias=False, name="project")(y)
        y = layers.BatchNormalization(momentum=0.9, name="project_bn")(y)
        x = layers.Add(name="sum")([x, y])
        x = layers.Flatten(name="flat")(x)
        return keras.Model(image, layers.Dense(CLASSES, name="logits")(x), name="tiny")

    return build


@pytest.fixture(scope="session")
def data():
    """24 images and labels for `tiny_model`."""
    generator = np.random.default_rng(0)
    y = generator.integers(0, CLASSES, 24)
    x = generator.normal(size=(24, 8, 8, 1)) + y[:, None, None, None]
    return x.astype(np.float32), y.astype(np.int32)


@pytest.fixture(scope="session")
def quarters():
    """256 pictures whose brightest quarter is their class, and the classes."""
    generator = np.random.default_rng(0)
    y = generator.integers(0, 4, 256)
    x = generator.normal(0, 0.5, (256, 8, 8, 3)).astype("float32")
    for image, label in zip(x, y, strict=True):
        image[4 * (label // 2) :, 4 * (label % 2) :][:4, :4] += 1
    return x, y


@pytest.fixture(scope="session")
def loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture
def batch(data):
    """The first 8 of them."""
    return data[0][:8], data[1][:8]


@pytest.fixture
def changes():
    """Which variables a call changes, and by how much: {path: difference}."""

    def measure(model, call):
        before = {v.path: np.array(v) for v in model.network.variables}
        call()
        after = {v.path: np.array(v) for v in model.network.variables}
        return {p: after[p] - before[p] for p in before if np.any(after[p] != before[p])}

    return measure


@pytest.fixture(scope="session")
def litertjs_package():
    """The npm folder @litertjs, where Chromium is there too: LITERTJS names it, or it lies in a
    node_modules/ of the working directory or above."""
    from metamix_tflite.devices import web
    from metamix_tflite.verification.web_page import LITERTJS, find_litertjs, litertjs_version

    named = os.environ.get("LITERTJS")
    try:
        web.find_browser(None)
        found = find_litertjs(Path(named) if named else None)
    except OSError as error:
        pytest.skip(str(error))
    assert litertjs_version(found) == LITERTJS
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, so that commands name files as a user would."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(params=[False, True], ids=["our batch norm", "a library's batch norm"])
def library_has_batch_norm(request, monkeypatch):
    """Whether batch norm of large images is TensorFlow's, as where it calls oneDNN, or ours."""
    from keras_metamix.ops import normalization

    monkeypatch.setattr(normalization, "_library_has_it", lambda: request.param)
    return request.param

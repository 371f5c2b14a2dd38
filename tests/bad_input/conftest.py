"""A tiny model of each kind, its files, and what every refusal has to be."""

import re
import types

import keras
import numpy as np
import pytest

import keras_metamix as kmm
import metamix_tflite as mt
from keras_metamix.launch.messages import exit_status
from keras_metamix.zoo import small_cnn

LONGEST = 300  # characters of a message


def cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture(scope="session")
def given():
    """Models, files, images and labels that are as they should be; no case may change them."""
    keras.utils.set_random_seed(0)
    images = np.random.default_rng(0).normal(size=(8, 8, 8, 1)).astype(np.float32)
    model = small_cnn((8, 8, 1), classes=4, width=4)
    quantized = kmm.MetaMixModel.from_float(model)
    kmm.calibrate(quantized, images)
    quantized.set_bits(kmm.uniform_assignment(model, 4, 4))
    mixer = kmm.BitMixerModel.from_float(model)
    mixer.compile("sgd", cross_entropy(), metrics=["accuracy"])
    kmm.calibrate(mixer, images)
    mixer.stage = "layer_wise"
    points = {"full": mixer.uniform_bits(4), "eco": mixer.uniform_bits(2)}
    return types.SimpleNamespace(
        model=model,
        quantized=quantized,
        mixer=mixer,
        bits=quantized.bit_assignment,
        points=points,
        flat=mt.convert(quantized),
        points_flat=mt.convert(mixer, operating_points=points),
        images=images,
        labels=np.arange(8) % 4,
    )


def listing(folder):
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture
def refuses(folder):
    """refuses(call, error, message): one line that says so, and nothing is written."""

    def check(call, error, message):
        before = listing(folder)
        with pytest.raises(error) as caught:
            call()
        text = str(caught.value)
        assert re.search(message, text), text
        assert "\n" not in text and len(text) <= LONGEST, text
        assert listing(folder) == before

    return check


@pytest.fixture
def command_refuses(folder, capsys):
    """command_refuses(launcher, arguments, message): status 1, one line on stderr, no file."""

    def check(launcher, arguments, message):
        before = listing(folder)
        flags = launcher.parse_flags(["command", *arguments])
        status = exit_status(launcher.main, flags)
        out, err = capsys.readouterr()
        assert (status, out, err.count("\n")) == (1, "", 1), (status, out, err)
        assert re.search(message, err), err
        assert len(err) <= LONGEST, err
        assert listing(folder) == before

    return check

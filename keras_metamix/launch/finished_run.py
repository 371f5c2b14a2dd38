"""What a finished `metamix-train` left in its folder."""

from __future__ import annotations

import json
from pathlib import Path

import keras
from ml_collections import ConfigDict

from keras_metamix.checks import naming
from keras_metamix.launch.config import BitMixer, MetaMix, complete
from keras_metamix.launch.export import load_float_model, load_model
from keras_metamix.quantized_model import QuantizedModel


def read_config(run: Path, flag: str) -> MetaMix | BitMixer:
    """The config of a run.

    Args:
      run: its folder.
      flag: that names the folder, for messages.

    Raises:
      FileNotFoundError, ValueError: there is none, or one with a field out of its range.
    """
    file = _existing(run, "config.json", flag)
    with naming(f"{file}"):
        return complete(ConfigDict(json.loads(file.read_text())))


def read_float_model(run: Path, flag: str) -> keras.Model:
    """The float network of a run; see `read_config`."""
    return load_float_model(_existing(run, "float.keras", flag), "metamix-train writes it.")


def read_model(run: Path, flag: str, name: str = "model.keras") -> QuantizedModel:
    """A trained network of a run, by default the one that it is about; see `read_config`."""
    file = _existing(run, name, flag)
    model = load_model(file)
    with naming(f"{file}"):
        model.require_quantized()
    return model


def _existing(run: Path, name: str, flag: str) -> Path:
    if not (run / name).is_file():
        raise FileNotFoundError(
            f"{flag}={run}: expected what metamix-train leaves there, found no {name}."
        )
    return run / name

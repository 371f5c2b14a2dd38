"""Images on which a file is compared with its model: those of a file, or random ones."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_metamix.calibration import check_finite
from keras_metamix.graph.io_names import named_inputs

RANDOM_IMAGES = 50


def parity_images(network: keras.Model, file: Path | None) -> dict[str, np.ndarray]:
    """An array of images for each input of a network, by name.

    Args:
      network: of a quantized model.
      file: a .npy of the images of the only input, or a .npz with an array for each input by its
        name; None gives random ones, of normal values or of bytes.

    Raises:
      ValueError: a file of something else; says what.
    """
    inputs = dict(named_inputs(network))
    if file is None:
        return {name: _random(tensor) for name, tensor in inputs.items()}
    found = _read(file, inputs)
    for name, tensor in inputs.items():
        part = f", {name!r}" if len(inputs) > 1 else ""
        _check(found[name], tensor, f"--images={file}{part}")
    return found


def _random(tensor: Any) -> np.ndarray:
    generator, shape = np.random.default_rng(0), (RANDOM_IMAGES, *tensor.shape[1:])
    if tensor.dtype == "uint8":
        return generator.integers(0, 256, shape).astype(np.uint8)
    return generator.normal(size=shape)


def _read(file: Path, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a file, by name."""
    (name, tensor), *others = inputs.items()
    expected = f"an array of shape {_shape(tensor)}"
    expected = f"a .npz with arrays {[*inputs]}" if others else expected
    try:  # mapped, so that a header which promises terabytes allocates none
        loaded: Any = np.load(file, mmap_mode="r")
        alone = {"one array" if others else name: loaded}
        found = dict(loaded) if isinstance(loaded, Mapping) else alone
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"--images={file}: expected {expected}, found no array: {error}"
        ) from error
    if set(found) != set(inputs):
        raise ValueError(f"--images={file}: expected {expected}, found {[*found]}.")
    return found


def _check(images: np.ndarray, tensor: Any, label: str) -> None:
    if images.shape[1:] != tuple(tensor.shape[1:]) or images.dtype.kind not in "iuf":
        raise ValueError(
            f"{label}: expected an array of shape {_shape(tensor)}, found {images.dtype} of shape "
            f"{images.shape}."
        )
    check_finite(images, f"images of {label}")


def _shape(tensor: Any) -> str:
    return f"(images, {', '.join(map(str, tensor.shape[1:]))})"

"""Recordings of a smartwatch during shoulder exercises, as windows of equal length.

From the wheel of seglearn 1.2.5 (David M. Burns, 3-clause BSD), which holds a part of the data of
"Shoulder physiotherapy exercise recognition: machine learning the inertial signals from a
smartwatch" (Burns et al., 2018, https://arxiv.org/abs/1802.01489): ten subjects, both arms, seven
exercises of 20 repetitions, accelerations and angular velocities at 50 Hz.
"""

from __future__ import annotations

import codecs
import dataclasses
import io
import pickle
import zipfile
from collections.abc import Collection
from typing import Any

import numpy as np
from wheels import Wheel

SEGLEARN = Wheel(
    "seglearn",
    "1.2.5",
    "seglearn-1.2.5-py3-none-any.whl",
    "ec6b952c85c9627050102854b372d85951563d3b990df677d7c55547e87413dd",
)
CLASSES = (
    "PEN",
    "ABD",
    "FEL",
    "IR",
    "ER",
    "TRAP",
    "ROW",
)  # of `exercise`, as the data set has them
WINDOW, STEP = 128, 64  # samples: 2.56 s, of which each next window repeats a half
_FILE = "seglearn/data/watch_dataset.npy"
_RECONSTRUCT = np.ones(0).__reduce__()[0]  # what a pickled array names
_GLOBALS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,  # of NumPy 1, and of 2
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): codecs.encode,
}


class _Unpickler(pickle.Unpickler):
    """Refuses to name anything but what arrays are made of."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _GLOBALS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is refused") from None


@dataclasses.dataclass(frozen=True)
class Windows:
    """Windows of all recordings.

    Attributes:
      motion: float32, shape (windows, WINDOW, 6): three accelerations, three angular velocities.
      exercise: shape (windows,), indices into CLASSES.
      subject: shape (windows,), from 1 on.
    """

    motion: np.ndarray
    exercise: np.ndarray
    subject: np.ndarray

    def split(self, subjects: Collection[int]) -> tuple[Windows, Windows]:
        """The windows of the other subjects and those of these, normalized as the former are."""
        held = np.isin(self.subject, [*subjects])
        mean = self.motion[~held].mean(axis=(0, 1))
        deviation = self.motion[~held].std(axis=(0, 1))
        motion = (self.motion - mean) / deviation
        first, second = (
            Windows(motion[chosen], self.exercise[chosen], self.subject[chosen])
            for chosen in (~held, held)
        )
        return first, second


def read_windows(wheel: zipfile.ZipFile) -> Windows:
    """The windows of the recordings in seglearn's wheel.

    Raises:
      ValueError: the wheel holds something else than was expected.
    """
    try:
        found = read_recordings(wheel.read(_FILE))
        recordings, exercises, subjects = (found[key] for key in ("X", "y", "subject"))
    except (KeyError, pickle.UnpicklingError) as error:
        raise ValueError(f"{wheel.filename}: expected recordings in {_FILE}, {error}.") from error
    return cut(recordings, exercises, subjects)


def read_recordings(file: bytes) -> dict[str, Any]:
    """The dictionary that a .npy holds as a pickle.

    Raises:
      UnpicklingError: the pickle names what it may not.
    """
    stream = io.BytesIO(file)
    np.lib.format.read_magic(stream)
    np.lib.format.read_array_header_1_0(stream)
    return _Unpickler(stream).load().item()


def cut(recordings: Any, exercises: Any, subjects: Any) -> Windows:
    """Windows of recordings of shape (samples, 6), each with an exercise and a subject."""
    motion, labels, owners = [], [], []
    for recording, exercise, subject in zip(recordings, exercises, subjects, strict=True):
        starts = range(0, len(recording) - WINDOW + 1, STEP)
        motion += [recording[start : start + WINDOW] for start in starts]
        labels += [exercise] * len(starts)
        owners += [subject] * len(starts)
    return Windows(np.asarray(motion, np.float32), np.asarray(labels), np.asarray(owners))

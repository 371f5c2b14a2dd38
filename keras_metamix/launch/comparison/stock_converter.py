"""What TensorFlow's own converter makes of a float model."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np


def float_file(model: keras.Model) -> bytes:
    """The float .tflite."""
    return _convert(model)


def int8_file(model: keras.Model, images: np.ndarray) -> bytes:
    """Post-training quantization: 8-bit weights and activations, float32 at the ends.

    Args:
      model: trained in float.
      images: shape (images, height, width, channels), that the ranges of activations are set from.
    """
    import tensorflow as tf

    def settings(converter: Any) -> None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([image[None]] for image in images)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]

    return _convert(model, settings)


def _convert(model: keras.Model, settings: Any = None) -> bytes:
    import tensorflow as tf

    with silent():
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        if settings is not None:
            settings(converter)
        return converter.convert()


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Hides what a tool tells of each of its steps: log, warnings, progress bars."""
    logging.disable(logging.WARNING)
    text = io.StringIO()
    try:
        with (
            contextlib.redirect_stdout(text),
            contextlib.redirect_stderr(text),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)

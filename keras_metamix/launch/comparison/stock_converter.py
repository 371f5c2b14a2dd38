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
    return converted(model)


def int8_file(model: keras.Model, images: np.ndarray) -> bytes:
    """Post-training quantization: 8-bit weights and activations, with float32 inputs and outputs.

    Args:
      model: trained in float.
      images: shape (images, height, width, channels), that the ranges of activations are set from.
    """
    import tensorflow as tf

    return converted(
        model,
        optimizations=[tf.lite.Optimize.DEFAULT],
        representative_dataset=lambda: ([image[None]] for image in images),
        target_spec=tf.lite.TargetSpec(supported_ops=[tf.lite.OpsSet.TFLITE_BUILTINS_INT8]),
    )


def converted(model: Any, **settings: Any) -> bytes:
    """What TFLiteConverter makes of a model of either Keras, with these of its settings."""
    import tensorflow as tf

    with silent():
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        for name, value in settings.items():
            setattr(converter, name, value)
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

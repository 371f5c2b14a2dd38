"""What the methods' models do alike around Keras' `compile` and `fit`."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_metamix.calibration import calibrate, check_finite, first_batches, image_batches


def build_optimizer(optimizer: Any, variables: list[Any]) -> None:
    """Builds an optimizer so that step sizes take no weight decay, nor what a user excluded."""
    if optimizer is None or optimizer.built:
        return
    # Keras replaces what was excluded before at each call: it is asked what that was.
    excluded = [v for v in variables if v.name == "log_step" or not optimizer._use_weight_decay(v)]
    optimizer.exclude_from_weight_decay(var_list=excluded)
    optimizer.build(variables)


def calibrate_once(model: Any, x: Any, batch_size: int | None) -> None:
    """Sets step sizes from the first batch of what `fit` takes as `x`, if nobody has."""
    if isinstance(x, np.ndarray):
        check_finite(x, "training images")
    if not model.calibrated:
        for images in image_batches(x, 1, batch_size):
            calibrate(model, images)


def build_metrics(model: Any, x: Any, y: Any, batch_size: int | None) -> None:
    """Makes the metrics' variables now: made in the first step, they cost a second trace."""
    if model._compile_metrics is None or model._compile_metrics.built:
        return
    data = x if y is None else (x, y)
    for batch in first_batches(data, 1, batch_size):
        model._symbolic_build(data_batch=batch)

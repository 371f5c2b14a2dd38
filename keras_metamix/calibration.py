"""Step sizes from data, and batch-norm statistics of a quantized network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, get_args

import keras
import numpy as np
from keras import ops

from keras_metamix.layers.activation_quantizer import ActivationQuantizer
from keras_metamix.layers.grid import activation_range
from keras_metamix.layers.mac import QuantizedMac
from keras_metamix.layers.mode import QuantizationMode, quantization_mode
from keras_metamix.layers.weight_quantizer import SMALLEST_STEP, Rule
from keras_metamix.ops import shifted_range

# Candidate steps of the MSE rule, as fractions of the step at which nothing is clipped.
_MSE_FRACTIONS = np.geomspace(0.02, 1.0, 60)
_MSE_SAMPLE = 16384


def lsq_step(values: np.ndarray, high: float) -> float:
    """LSQ's initial step, `2 * mean|v| / sqrt(high)`."""
    return max(2.0 * float(np.mean(np.abs(values))) / float(np.sqrt(high)), SMALLEST_STEP)


def mse_step(values: np.ndarray, low: float, high: float, minimum: float | None = None) -> float:
    """The step of least squared error on (a sample of) `values`, by search over 60 steps.

    Args:
      values: any shape.
      low, high: integer ends of the grid.
      minimum: of an "offset" grid, see `shifted_range`.
    """
    values = np.asarray(values, np.float32).reshape(-1)
    if values.size > _MSE_SAMPLE:
        values = np.random.default_rng(0).choice(values, _MSE_SAMPLE, replace=False)
    reach = max(float(values.max()) / high, float(values.min()) / low if low < 0 else 0.0)
    best, best_error = SMALLEST_STEP, np.inf
    steps = np.maximum(reach * _MSE_FRACTIONS, SMALLEST_STEP).astype(np.float32)
    ends = shifted_range(steps, low * np.ones_like(steps), high * np.ones_like(steps), minimum)
    lows, highs = (ops.convert_to_numpy(end) for end in ends)
    for step, lowest, highest in zip(steps, lows, highs, strict=True):
        quantized = np.round(np.clip(values / step, lowest, highest)) * step
        error = float(np.mean(np.square(values - quantized)))
        if error < best_error:
            best, best_error = float(step), error
    return best


def calibrate(model: Any, images: Any, rule: Rule = "lsq") -> None:
    """Sets every step size of a MetaMixModel from data: the start of training, or PTQ alone.

    Args:
      model: what `MetaMixModel.from_float` made; it runs in float, one batch.
      images: one batch as the model takes it. A network whose batch norms have never trained
        runs on the batch's own statistics, since it has no others.
      rule: "lsq" (2 * mean|v| / sqrt(Qp)) for weights and the searched candidates and squared
        error for the streams and the 8-bit ends, or "mse" (squared error) for all. Weight steps
        that are set anew later, by `set_bits` or before weight training, follow it too.

    Raises:
      ValueError: another rule; NaN or Inf in the images or in a layer's values; names it.
    """
    if rule not in get_args(Rule):
        raise ValueError(f"rule: expected one of {list(get_args(Rule))}, found {rule!r}.")
    check_finite(images, "calibration images")
    mode = QuantizationMode(
        activations="observe",
        weights="off",
        streams=False,
        statistics="frozen",
        observer=_step_setter(rule),
    )
    with quantization_mode(mode):
        model.network(images, training=not _has_statistics(model.network))
    calibrate_weights(model.network, rule)
    model.calibrated = True
    model.train_function = model.test_function = model.predict_function = None  # signs are traced


def _has_statistics(network: keras.Model) -> bool:
    """Whether moving statistics ever left their initial 0 and 1."""
    norms = [x for x in network.layers if isinstance(x, keras.layers.BatchNormalization)]
    return not norms or any(
        np.any(ops.convert_to_numpy(norm.moving_mean) != 0)
        or np.any(ops.convert_to_numpy(norm.moving_variance) != 1)
        for norm in norms
    )


def calibrate_streams(network: keras.Model, images: Any) -> None:
    """Sets the steps of the stream quantizers from an otherwise quantized network."""
    mode = QuantizationMode(observer=_step_setter("mse"), statistics="frozen")
    with quantization_mode(mode):
        network(images, training=True)


def check_finite(arrays: Any, what: str) -> None:
    """Raises ValueError where a structure of arrays holds NaN or Inf."""
    for array in keras.tree.flatten(arrays):
        array = ops.convert_to_numpy(array)
        if not np.all(np.isfinite(array)):
            count = int(np.sum(~np.isfinite(array)))
            raise ValueError(
                f"The {what} hold {count} NaN or Inf of {array.size} values; expected finite ones."
            )


def first_batches(data: Any, count: int, batch_size: int | None = None) -> Iterator[Any]:
    """Up to `count` batches of arrays (a structure of them) or of what `fit` takes as `x`.

    Raises:
      TypeError: neither arrays, a tf.data.Dataset nor a keras.utils.PyDataset, for example a
        generator, which cannot be read twice.
    """
    if isinstance(data, keras.utils.PyDataset):
        for index in range(min(count, data.num_batches or count)):
            yield data[index]
    elif data is not None and all(hasattr(a, "shape") for a in keras.tree.flatten(data)):
        size = batch_size or 32
        total = keras.tree.flatten(data)[0].shape[0]
        for start in range(0, min(count * size, total), size):
            yield keras.tree.map_structure(lambda a, s=start: a[s : s + size], data)
    elif data is not None and hasattr(data, "take"):
        yield from data.take(count)
    else:
        raise TypeError(
            "Step sizes are set from the training data, which has to be arrays, a "
            f"tf.data.Dataset or a keras.utils.PyDataset; found {type(data).__name__}."
        )


def image_batches(data: Any, count: int, batch_size: int | None = None) -> Iterator[Any]:
    """The inputs of `first_batches`, where `data` is the `x` of `fit`."""
    for batch in first_batches(data, count, batch_size):
        yield batch[0] if isinstance(batch, tuple) else batch


def calibrate_weights(network: keras.Model, rule: Rule | None = None) -> None:
    """Sets the weight steps of every MAC layer from its present kernel.

    None is the rule by which they were set last.
    """
    for layer in network.layers:
        if isinstance(layer, QuantizedMac):
            layer.weight_quantizer.initialize_steps(layer.kernel, rule)  # pyright: ignore


def reestimate_batch_norm(network: keras.Model, batches: Iterable[Any]) -> int:
    """Replaces moving statistics by the average over `batches` of the network in its mode.

    Returns:
      How many batches were used.
    """
    norms = [x for x in network.layers if isinstance(x, keras.layers.BatchNormalization)]
    momenta = [norm.momentum for norm in norms]
    count = 0
    try:
        for count, images in enumerate(batches, start=1):
            for norm in norms:
                norm.momentum = (count - 1) / count
            network(images, training=True)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return count


def _step_setter(rule: Rule) -> Callable[[ActivationQuantizer, Any], None]:
    seen: set[str] = set()

    def observe(quantizer: ActivationQuantizer, values: Any) -> None:
        if quantizer.name not in seen:  # of a shared layer the first call decides
            seen.add(quantizer.name)
            _set_steps(quantizer, ops.convert_to_numpy(values), rule)

    return observe


def _set_steps(quantizer: ActivationQuantizer, values: np.ndarray, rule: Rule) -> None:
    if quantizer.fixed_step is not None:
        return
    if not np.all(np.isfinite(values)):
        raise ValueError(f"The input of {quantizer.name!r} holds NaN or Inf.")
    if not np.any(values):  # a dead branch: no step fits better than another
        quantizer.log_step.assign(np.zeros(len(quantizer.candidates), np.float32))
        return
    if quantizer.sign_from_data:
        quantizer.set_sign("signed" if values.min() < 0 else "unsigned")
    steps = []
    for bits in quantizer.candidates:
        low, high = activation_range(bits, quantizer.sign)
        if rule == "lsq" and quantizer.searched:
            steps.append(lsq_step(values, high))
        else:
            steps.append(mse_step(values, low, high, quantizer.minimum))
    quantizer.log_step.assign(np.log(np.asarray(steps, np.float32)))

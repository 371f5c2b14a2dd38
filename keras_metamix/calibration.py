"""Step sizes from data, and batch-norm statistics of a quantized network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from keras_metamix.layers.activation_quantizer import ActivationQuantizer
from keras_metamix.layers.grid import HARD_SWISH_MINIMUM, activation_range
from keras_metamix.layers.mac import QuantizedMac
from keras_metamix.layers.mode import QuantizationMode, quantization_mode

Rule = Literal["lsq", "mse"]
SMALLEST_STEP = 1e-8
# Candidate steps of the MSE rule, as fractions of the step at which nothing is clipped.
_MSE_FRACTIONS = np.geomspace(0.02, 1.0, 60)
_MSE_SAMPLE = 16384


def lsq_step(values: np.ndarray, high: float) -> float:
    """LSQ's initial step, `2 * mean|v| / sqrt(high)`."""
    return max(2.0 * float(np.mean(np.abs(values))) / float(np.sqrt(high)), SMALLEST_STEP)


def mse_step(values: np.ndarray, low: float, high: float, offset: bool = False) -> float:
    """The step of least squared error on (a sample of) `values`, by search over 60 steps."""
    values = np.asarray(values, np.float32).reshape(-1)
    if values.size > _MSE_SAMPLE:
        values = np.random.default_rng(0).choice(values, _MSE_SAMPLE, replace=False)
    reach = max(float(values.max()) / high, float(values.min()) / low if low < 0 else 0.0)
    best, best_error = SMALLEST_STEP, np.inf
    for step in np.maximum(reach * _MSE_FRACTIONS, SMALLEST_STEP):
        shift = max(np.round(HARD_SWISH_MINIMUM / step), -high) if offset else 0.0
        quantized = np.round(np.clip(values / step, low + shift, high + shift)) * step
        error = float(np.mean(np.square(values - quantized)))
        if error < best_error:
            best, best_error = float(step), error
    return best


def calibrate(model: Any, images: Any, rule: Rule = "lsq") -> None:
    """Sets every step size of a MetaMixModel from data: the start of training, or PTQ alone.

    Args:
      model: what `MetaMixModel.from_float` made; it runs in float, one batch.
      images: one batch as the model takes it.
      rule: "lsq" (2 * mean|v| / sqrt(Qp)) for the searched candidates and squared error for the
        streams and the 8-bit ends, or "mse" (squared error) for all.

    Raises:
      ValueError: NaN or Inf in the images or in a layer's values; names it.
    """
    check_finite(images, "calibration images")
    mode = QuantizationMode(
        activations="observe", weights="off", streams=False, observer=_step_setter(rule)
    )
    with quantization_mode(mode):
        model.network(images, training=False)
    calibrate_weights(model.network)
    model.calibrated = True


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


def calibrate_weights(network: keras.Model) -> None:
    """Sets the weight steps of every MAC layer from its present kernel."""
    for layer in network.layers:
        if isinstance(layer, QuantizedMac):
            layer.weight_quantizer.initialize_steps(layer.kernel)  # pyright: ignore


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
    if not np.all(np.isfinite(values)):
        raise ValueError(f"The input of {quantizer.name!r} holds NaN or Inf.")
    if not np.any(values):  # a dead branch: no step fits better than another
        quantizer.log_step.assign(np.zeros(len(quantizer.candidates), np.float32))
        return
    steps = []
    for bits in quantizer.candidates:
        low, high = activation_range(bits, quantizer.sign)
        if rule == "lsq" and quantizer.searched:
            steps.append(lsq_step(values, high))
        else:
            steps.append(mse_step(values, low, high, offset=quantizer.sign == "offset"))
    quantizer.log_step.assign(np.log(np.asarray(steps, np.float32)))

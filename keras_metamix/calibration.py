"""Step sizes from data, and batch-norm statistics of a quantized network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, get_args

import keras
import numpy as np
from keras import ops

from keras_metamix.checks import require_whole, shown
from keras_metamix.layers.activation_quantizer import ActivationQuantizer
from keras_metamix.layers.grid import activation_range
from keras_metamix.layers.mac import QuantizedMac
from keras_metamix.layers.mode import QuantizationMode, quantization_mode
from keras_metamix.layers.parts import batch_norms
from keras_metamix.layers.weight_quantizer import LARGEST, SMALLEST_STEP, Rule
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
      TypeError: another model, or images that are no arrays of numbers.
      ValueError: another rule; images of another shape, or none; NaN or Inf in them or in a
        layer's values; names it.
    """
    if rule not in get_args(Rule):
        raise ValueError(f"rule: expected one of {list(get_args(Rule))}, found {rule!r}.")
    if not hasattr(type(model), "bit_assignment"):
        raise TypeError(
            f"calibrate: expected a MetaMixModel or a BitMixerModel, found {shown(model)}."
        )
    check_finite(images, "calibration images")
    check_shapes(images, model.network)
    setter = _StepSetter(rule)
    mode = QuantizationMode(
        activations="observe",
        weights="off",
        streams=False,
        statistics="frozen",
        observer=setter,
    )
    with quantization_mode(mode):
        model.network(images, training=not _has_statistics(model.network))
    setter.finish()
    calibrate_weights(model.network, rule)
    model.calibrated = True


def _has_statistics(network: keras.Model) -> bool:
    """Whether moving statistics ever left their initial 0 and 1."""
    norms = list(batch_norms(network))
    return not norms or any(
        np.any(ops.convert_to_numpy(norm.moving_mean) != 0)
        or np.any(ops.convert_to_numpy(norm.moving_variance) != 1)
        for norm in norms
    )


def calibrate_streams(network: keras.Model, images: Any) -> None:
    """Sets the steps of the stream quantizers from an otherwise quantized network."""
    setter = _StepSetter("mse")
    mode = QuantizationMode(observer=setter, statistics="frozen")
    with quantization_mode(mode):
        network(images, training=True)
    setter.finish()


def check_finite(arrays: Any, what: str) -> None:
    """Checks that arrays hold numbers that float32 can hold.

    Raises:
      TypeError: a structure of anything but arrays of real numbers.
      ValueError: NaN or Inf.
    """
    for found in keras.tree.flatten(arrays):
        array = ops.convert_to_numpy(found)
        if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
            raise TypeError(f"The {what}: expected arrays of real numbers, found {shown(found)}.")
        if array.dtype.kind in "biu":
            continue
        with np.errstate(over="ignore"):
            finite = np.isfinite(array.astype(np.float32, copy=False))
        if not np.all(finite):
            raise ValueError(
                f"The {what} hold {np.sum(~finite)} NaN or Inf of {array.size} values; expected "
                "finite ones."
            )


def check_shapes(images: Any, network: keras.Model) -> None:
    """Raises ValueError unless images are at least one, and as the network's inputs are."""
    if isinstance(images, dict):
        return  # Keras matches the names, and says so
    arrays = keras.tree.flatten(images)
    expected = [tuple(t.shape) for t in network.inputs]
    found = [tuple(getattr(a, "shape", ())) for a in arrays]
    if len(found) != len(expected) or not all(map(_fits, found, expected)):
        raise ValueError(
            f"images: expected the shape of the model's input, {_listed(expected)}, found "
            f"{_listed(found)}."
        )


def _fits(found: tuple[int, ...], expected: tuple[int | None, ...]) -> bool:
    """Whether a batch has a shape that Keras takes: it adds or drops a last axis of size 1."""
    if not found or not found[0]:
        return False
    sizes, wanted = (s[1:-1] if s[-1:] == (1,) else s[1:] for s in (found, expected))
    return len(sizes) == len(wanted) and all(
        n is None or n == size for size, n in zip(sizes, wanted, strict=True)
    )


def _listed(shapes: list[tuple[Any, ...]]) -> str:
    return shown(shapes[0] if len(shapes) == 1 else shapes)


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
        if batch_size is not None:
            require_whole("batch_size", batch_size, 1)
        size = batch_size or 32
        total = (*keras.tree.flatten(data)[0].shape, 0)[0]
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
    norms = list(batch_norms(network))
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


class _StepSetter:
    """Sets each quantizer's steps from the tensor that it sees first.

    What is wrong is raised by `finish`: from within a layer Keras would make pages of it.
    """

    def __init__(self, rule: Rule):
        self.rule: Rule = rule
        self.seen: set[str] = set()
        self.unusable: str | None = None

    def __call__(self, quantizer: ActivationQuantizer, values: Any) -> None:
        if quantizer.name in self.seen:  # of a shared layer the first call decides
            return
        self.seen.add(quantizer.name)
        values = ops.convert_to_numpy(values)
        if np.all(np.abs(values) < LARGEST):  # false for NaN too
            _set_steps(quantizer, values, self.rule)
        elif self.unusable is None:
            self.unusable = quantizer.name

    def finish(self) -> None:
        """Raises ValueError where a tensor was no basis for a step size; names its quantizer."""
        if self.unusable is not None:
            raise ValueError(
                f"The input of {self.unusable!r} holds NaN, Inf or values beyond {LARGEST:g}: "
                "expected finite weights, and images of a usual scale."
            )


def _set_steps(quantizer: ActivationQuantizer, values: np.ndarray, rule: Rule) -> None:
    if quantizer.fixed_step is not None:
        return
    if not np.any(values):  # a dead branch: no step fits better than another
        quantizer.log_step.assign(np.zeros(len(quantizer.candidates), np.float32))
        return
    if quantizer.sign_from_data:
        quantizer.set_sign("signed" if values.min() < 0 else "unsigned")
    steps = []
    for bits in quantizer.candidates:
        low, high = activation_range(bits, quantizer.sign)
        if rule == "lsq" and quantizer.choice.searched:
            steps.append(lsq_step(values, high))
        else:
            steps.append(mse_step(values, low, high, quantizer.minimum))
    quantizer.log_step.assign(np.log(np.asarray(steps, np.float32)))

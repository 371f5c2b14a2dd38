"""What rounding and clipping cost a tensor, beside the step size that would cost it least."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from keras import ops

from keras_metamix.layers.activation_quantizer import ActivationQuantizer
from keras_metamix.layers.grid import activation_range
from keras_metamix.layers.weight_quantizer import Rule, WeightQuantizer
from keras_metamix.ops import shifted_range
from keras_metamix.step_observer import lsq_step, mse_step

_KEPT = 4096  # values of a batch, which the best step is searched for
_MORE = {2: 4, 3: 4}  # bits that are proposed in the place of few


@dataclasses.dataclass(frozen=True)
class TensorError:
    """What quantization costs one tensor.

    Attributes:
      bits: its bit-width.
      sqnr: signal to quantization noise, 10 log10(sum v^2 / sum (v - q)^2), in dB; infinite where
        nothing is lost, NaN where all values are 0.
      best_sqnr: the same at the step size of least squared error, at these bits.
      step_ratio: the step size over that one; of weights the median over the channels. NaN where
        the device dictates the step.
      start_ratio: the step size over the one that calibration sets by the model's rule. LSQ's, of
        weights of 8 bits, is about ten times the one of least error, and sound: weights train to
        it.
      clipped: share of the values that lie beyond the grid's ends, 0 to 1.
      more_bits: a larger bit-width, and `more_sqnr` what it would give at its best step.
    """

    bits: int
    sqnr: float
    best_sqnr: float
    step_ratio: float
    start_ratio: float
    clipped: float
    more_bits: int
    more_sqnr: float

    @property
    def gain(self) -> float:
        """What the best step would gain, in dB; 0 where that is not known."""
        gained = self.best_sqnr - self.sqnr
        return gained if math.isfinite(gained) else 0.0


def decibels(signal: float, error: float) -> float:
    """`10 log10(signal / error)`; infinite without an error, NaN without a signal."""
    if not signal > 0:
        return math.nan
    return 10 * math.log10(signal / error) if error > 0 else math.inf


@dataclasses.dataclass
class Noise:
    """Sums of squares of a tensor and of what it is off."""

    signal: float = 0.0
    error: float = 0.0

    def add(self, values: np.ndarray, found: np.ndarray) -> None:
        """Adds values and what stands in their place."""
        exact = values.astype(np.float64)
        self.signal += float(np.sum(np.square(exact)))
        self.error += float(np.sum(np.square(exact - found)))

    @property
    def sqnr(self) -> float:
        """In dB, see `decibels`."""
        return decibels(self.signal, self.error)


class ActivationTally:
    """What passes one quantizer, batch after batch.

    Args:
      quantizer: at the bits that it is assigned.
    """

    def __init__(self, quantizer: ActivationQuantizer):
        self.quantizer = leader = quantizer.leader()
        self.bits: int = leader.choice.bits
        self.step = float(ops.convert_to_numpy(leader.step(leader.candidates.index(self.bits))))
        self.noise, self.count, self.beyond = Noise(), 0, 0
        self._kept: list[np.ndarray] = []
        self._random = np.random.default_rng(0)

    def add(self, values: Any) -> np.ndarray:
        """Takes the values before the quantizer and returns them quantized."""
        found = self.in_float(values)
        low, high = _ends(self.quantizer, self.bits, self.step)
        quantized = np.rint(np.clip(found / self.step, low, high)) * self.step
        self.noise.add(found, quantized)
        self.count += found.size
        self.beyond += int(np.sum(found > (high + 0.5) * self.step))
        self.beyond += int(np.sum(found < (low - 0.5) * self.step))
        flat = found.reshape(-1)
        chosen = flat if flat.size <= _KEPT else self._random.choice(flat, _KEPT, replace=False)
        self._kept.append(chosen)
        return quantized

    def in_float(self, values: Any) -> np.ndarray:
        """The values that the quantizer rounds: a ReLU is part of some."""
        return ops.convert_to_numpy(self.quantizer.float_activation(values)).astype(np.float32)

    def result(self, rule: Rule) -> TensorError:
        """Of all batches; `rule` is the one of the model's calibration."""
        values, more = np.concatenate(self._kept), _MORE.get(self.bits, 8)
        clipped = self.beyond / self.count
        if self.quantizer.fixed_step is not None or not np.any(values):
            sqnr = self.noise.sqnr
            unknown = math.nan
            return TensorError(self.bits, sqnr, sqnr, unknown, unknown, clipped, more, unknown)
        best, of_best = _best(self.quantizer, self.bits, values)
        _, of_more = _best(self.quantizer, more, values)
        # The best step is found on the sample: what the present one loses is of the sample too.
        here = _sqnr(self.quantizer, self.bits, self.step, values)
        best_sqnr = self.noise.sqnr + max(of_best - here, 0.0)
        start = best
        if rule == "lsq" and self.quantizer.choice.searched:
            start = lsq_step(
                float(np.mean(np.abs(values))), activation_range(self.bits, self.quantizer.sign)[1]
            )
        ratios = self.step / best, self.step / start
        return TensorError(self.bits, self.noise.sqnr, best_sqnr, *ratios, clipped, more, of_more)


def weight_error(
    quantizer: WeightQuantizer, kernel: Any, quantized: np.ndarray, rule: Rule
) -> TensorError:
    """What quantization costs a kernel.

    Args:
      quantizer: of the kernel, at the bits that it is assigned.
      kernel: the float one.
      quantized: what the layer computes with.
      rule: of the model's calibration.
    """
    bits, exact = quantizer.choice.bits, ops.convert_to_numpy(kernel)
    step = ops.convert_to_numpy(quantizer.step(quantizer.candidates.index(bits)))
    high = 2 ** (bits - 1) - 1
    best_steps, best = _best_kernel(quantizer, bits, kernel)
    more = _MORE.get(bits, 8)
    noise = Noise()
    noise.add(exact, quantized)
    return TensorError(
        bits,
        noise.sqnr,
        max(best, noise.sqnr),
        float(np.median(step / best_steps)),
        float(np.median(step / _steps(quantizer, bits, kernel, rule))),
        float(np.mean(np.abs(exact) > (high + 0.5) * step)),
        more,
        _best_kernel(quantizer, more, kernel)[1],
    )


def _best_kernel(quantizer: WeightQuantizer, bits: int, kernel: Any) -> tuple[np.ndarray, float]:
    """Steps of least squared error at some bits, and the SQNR that they give."""
    steps, exact = _steps(quantizer, bits, kernel, "mse"), ops.convert_to_numpy(kernel)
    high = 2 ** (bits - 1) - 1
    noise = Noise()
    noise.add(exact, np.rint(np.clip(exact / steps, -high, high)) * steps)
    return steps, noise.sqnr


def _steps(quantizer: WeightQuantizer, bits: int, kernel: Any, rule: Rule) -> np.ndarray:
    """The steps that a rule sets for a kernel at some bits."""
    fresh = WeightQuantizer(bits, quantizer.channel_axes)
    fresh.build(tuple(kernel.shape))
    fresh.initialize_steps(kernel, rule)
    return ops.convert_to_numpy(fresh.step(0))


def _ends(quantizer: ActivationQuantizer, bits: int, step: float) -> tuple[float, float]:
    """Lowest and highest level at a bit-width and a step."""
    low, high = (np.float32(end) for end in activation_range(bits, quantizer.sign))
    found = shifted_range(np.float32(step), low, high, quantizer.minimum)
    first, last = (float(ops.convert_to_numpy(end)) for end in found)
    return first, last


def _best(quantizer: ActivationQuantizer, bits: int, values: np.ndarray) -> tuple[float, float]:
    """The step of least squared error on some values, and the SQNR that it gives."""
    low, high = activation_range(bits, quantizer.sign)
    step = mse_step(values, low, high, quantizer.minimum)
    if quantizer.maximum is not None:
        step = min(step, quantizer.maximum / high)
    return step, _sqnr(quantizer, bits, step, values)


def _sqnr(quantizer: ActivationQuantizer, bits: int, step: float, values: np.ndarray) -> float:
    low, high = _ends(quantizer, bits, step)
    noise = Noise()
    noise.add(values, np.rint(np.clip(values / step, low, high)) * step)
    return noise.sqnr

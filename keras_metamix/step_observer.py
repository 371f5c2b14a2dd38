"""Step sizes of activations, from the values that pass a network's quantizers."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

from keras_metamix.layers.activation_quantizer import ActivationQuantizer
from keras_metamix.layers.grid import activation_range
from keras_metamix.layers.weight_quantizer import LARGEST, SMALLEST_STEP, Rule
from keras_metamix.ops import shifted_range

# Candidate steps of the MSE rule, as fractions of the step at which nothing is clipped.
_MSE_FRACTIONS = np.geomspace(0.02, 1.0, 60)
_MSE_SAMPLE = 16384


def lsq_step(mean: float, high: float) -> float:
    r"""LSQ's initial step, $2 \, \mathrm{mean}(|v|) / \sqrt{q_{max}}$, from that mean."""
    return max(2.0 * mean / float(np.sqrt(high)), SMALLEST_STEP)


def mse_step(values: np.ndarray, low: float, high: float, minimum: float | None = None) -> float:
    r"""The step of least squared error on (a sample of) `values`, by search over 60 steps.

    $$s = \mathrm{argmin}_{s} \; \mathrm{mean} \left( (v - Q(v))^2 \right)$$

    The steps are from 0.02 to 1 of the one that clips nothing, in equal ratios.

    Args:
      values: any shape.
      low, high: integer ends of the grid.
      minimum: of an "offset" grid, see `shifted_range`.
    """
    values = _sample(values)
    below = -high if minimum is not None else low  # an "offset" grid is shifted to its minimum
    reach = max(float(values.max()) / high, float(values.min()) / below if below < 0 else 0.0)
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


class StepObserver:
    """Gathers what each quantizer sees in one or several passes, and sets its steps from all of it.

    What is wrong is raised by `finish`: from within a layer Keras would make pages of it.

    Args:
      rule: "lsq" or "mse", see `calibrate`.
    """

    def __init__(self, rule: Rule):
        self.rule: Rule = rule
        self._seen: dict[str, _Seen] = {}
        self._passed: set[str] = set()
        self._complete = False
        self._unusable: str | None = None

    def begin(self, complete: bool) -> None:
        """Begins a pass; where the values are `complete`, only dead quantizers take more."""
        self._passed, self._complete = set(), complete

    @property
    def has_dead(self) -> bool:
        """Whether a quantizer has seen nothing but 0."""
        return any(not seen.count for seen in self._seen.values())

    def __call__(self, quantizer: ActivationQuantizer, values: Any) -> None:
        if quantizer.name in self._passed or quantizer.fixed_step is not None or quantizer.follows:
            return  # of a shared layer the first call decides
        self._passed.add(quantizer.name)
        seen = self._seen.setdefault(quantizer.name, _Seen(quantizer))
        if self._complete and seen.count:
            return
        values = ops.convert_to_numpy(values)
        if np.all(np.abs(values) < LARGEST):  # false for NaN too
            seen.add(values)
        elif self._unusable is None:
            self._unusable = quantizer.name

    def finish(self) -> None:
        """Sets the steps; those of a quantizer that saw nothing but 0 stay as they were.

        Raises:
          ValueError: a tensor was no basis for a step size; names its quantizer.
        """
        for seen in self._seen.values():
            if seen.count:
                seen.set_steps(self.rule)
        if self._unusable is not None:
            raise ValueError(
                f"The input of {self._unusable!r} holds NaN, Inf or values beyond {LARGEST:g}: "
                "expected finite weights, and images of a usual scale."
            )


class _Seen:
    """What one quantizer has seen."""

    def __init__(self, quantizer: ActivationQuantizer):
        self.quantizer = quantizer
        self.count = 0
        self._mean, self._negative = 0.0, False
        self._samples: list[np.ndarray] = []

    def add(self, values: np.ndarray) -> None:
        """Takes the values of a pass; none of a dead branch, for which all steps are alike."""
        if not np.any(values):
            return
        self.count += values.size
        mean = float(np.mean(np.abs(values)))
        self._mean += (mean - self._mean) * (values.size / self.count)
        self._negative |= bool(values.min() < 0)
        self._samples.append(_sample(values))

    def set_steps(self, rule: Rule) -> None:
        """Sets the quantizer's sign, where data decide it, and its steps."""
        quantizer, values = self.quantizer, np.concatenate(self._samples)
        if quantizer.sign_from_data:
            quantizer.set_sign("signed" if self._negative else "unsigned")
        steps = []
        for bits in quantizer.candidates:
            low, high = activation_range(bits, quantizer.sign)
            if rule == "lsq" and quantizer.choice.searched:
                steps.append(lsq_step(self._mean, high))
            else:
                steps.append(mse_step(values, low, high, quantizer.minimum))
        quantizer.set_steps(np.asarray(steps, np.float32))


def _sample(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float32).reshape(-1)
    if values.size > _MSE_SAMPLE:
        values = np.random.default_rng(0).choice(values, _MSE_SAMPLE, replace=False)
    return values

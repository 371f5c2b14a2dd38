"""Quantizes a kernel at one of several candidate bit-widths, a step for each output channel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import keras
import numpy as np
from keras import ops

from keras_metamix.layers.bit_choice import BitChoice
from keras_metamix.layers.grid import weight_range
from keras_metamix.layers.mode import current_mode
from keras_metamix.ops import lsq_integers, lsq_per_channel, pick

Rule = Literal["lsq", "mse"]
RULES: tuple[Rule, ...] = get_args(Rule)
SMALLEST_STEP = 1e-8
LARGEST = 1e18  # beyond, squared errors overflow float32
# Candidate steps of the MSE rule, as fractions of the step at which nothing is clipped: close
# together, for a channel of few weights has an error of many valleys.
_MSE_FRACTIONS = np.geomspace(0.02, 1.0, 120)


@keras.saving.register_keras_serializable("keras_metamix")
class WeightQuantizer(keras.layers.Layer):
    r"""Symmetric narrow LSQ of a kernel, with a step size for each output channel.

    With $n = 2^{b-1} - 1$ for $b$ bits and the step size $s$ of a channel of $N$ weights (LSQ,
    Esser et al., ICLR 2020):

    $$Q_b(w) = s \cdot \mathrm{round} \left( \mathrm{clip} \left( \frac{w}{s}, -n, n \right)
    \right)$$

    $$\frac{\partial Q_b}{\partial w} = \begin{cases} 1 & |w / s| \le n \\ 0 & |w / s| > n
    \end{cases}, \qquad \frac{\partial Q_b}{\partial s} = \frac{1}{\sqrt{N n}} \cdot \begin{cases}
    \mathrm{round}(w / s) - w / s & |w / s| \le n \\ \mathrm{sign}(w) \, n & |w / s| > n
    \end{cases}$$

    In bit-search of weights the output is the mixture of the candidates, of which the probabilities
    alone have a gradient:

    $$Q(w) = \sum_b p_b \, Q_b(w), \qquad p = \mathrm{softmax}(\beta)$$

    Args:
      candidates: bit-widths, descending, one bit-width, or the choice of an activation, which the
        weights follow.
      channel_axes: axes of the kernel that together number the output channels.

    Variables: `log_step` (candidates, output channels), and those of a choice of its own.

    Attributes:
      choice: which candidate is in use.
    """

    def __init__(
        self,
        candidates: int | Sequence[int] | BitChoice,
        channel_axes: Sequence[int],
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        own = not isinstance(candidates, BitChoice)
        self.choice: BitChoice = BitChoice(candidates, "weights") if own else candidates
        self.channel_axes = tuple(channel_axes)
        self._highs = np.array([weight_range(b)[1] for b in self.candidates], np.float32)

    @property
    def candidates(self) -> tuple[int, ...]:
        """The candidate bit-widths."""
        return self.choice.candidates

    def build(self, kernel_shape: Sequence[int]) -> None:
        axes = {axis % len(kernel_shape) for axis in self.channel_axes}
        self._step_shape = [n if i in axes else 1 for i, n in enumerate(kernel_shape)]
        channels = math.prod(self._step_shape)
        per_channel = math.prod(kernel_shape) // channels
        self._gradient_scales = (1.0 / np.sqrt(per_channel * self._highs)).astype(np.float32)
        count = len(self.candidates)
        self.log_step = self.add_weight((count, channels), initializer="zeros", name="log_step")
        if self.choice.of == "weights":
            self.choice.build(self)

    def initialize_steps(self, kernel: Any, rule: Rule = "lsq") -> None:
        r"""Sets the step of every channel from its weights.

        With $n$ the largest integer of a candidate, by the rules "lsq" and "mse":

        $$s_{lsq} = \frac{2 \, \mathrm{mean}(|w|)}{\sqrt{n}}, \qquad s_{mse} =
        \mathrm{argmin}_{s} \; \mathrm{mean} \left( (w - Q(w))^2 \right)$$

        The latter is searched among 120 steps, from 0.02 to 1 of $\max |w| / n$ in equal ratios.

        Args:
          kernel: of the shape this quantizer was built for.
          rule: "lsq" or "mse".
        """
        magnitudes = np.abs(ops.convert_to_numpy(kernel))
        others = tuple(i for i, n in enumerate(self._step_shape) if n == 1)
        if rule == "mse":
            steps = np.stack([_mse_steps(magnitudes, others, high) for high in self._highs])
        else:
            mean = np.mean(magnitudes, axis=others).reshape(-1)
            steps = 2.0 * mean / np.sqrt(self._highs)[:, None]
        if not np.all(steps < LARGEST):  # NaN too
            raise ValueError(
                f"{self.path}: expected weights that are finite and below {LARGEST:g}, found NaN, "
                "Inf or larger ones."
            )
        self.log_step.assign(np.log(np.maximum(steps, SMALLEST_STEP)).astype(np.float32))

    def step(self, index: Any | None = None) -> Any:
        """Step sizes of a candidate (default: the one assigned), broadcastable to the kernel."""
        index = self.choice.index() if index is None else index
        return ops.exp(ops.reshape(pick(self.log_step, index), self._step_shape))

    def integers(self, kernel: Any) -> Any:
        """The integers that the kernel is deployed as, as floats of its shape."""
        high = pick(self._highs, self.choice.index())
        return lsq_integers(kernel, self.step(), -high, high)

    def call(self, kernel: Any) -> Any:
        mode = current_mode()
        if mode.weights == "off":
            return kernel
        if mode.weights == "mixture" and self.choice.searched:
            probabilities = self.choice.probabilities()
            return sum(
                probabilities[b] * ops.stop_gradient(self._quantize(kernel, b))
                for b in range(len(self.candidates))
            )
        return self._quantize(kernel, self.choice.index())

    def _quantize(self, kernel: Any, index: Any) -> Any:
        high = pick(self._highs, index)
        scale = pick(self._gradient_scales, index)
        return lsq_per_channel(kernel, self.step(index), -high, high, scale)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {
            "candidates": list(self.candidates),
            "channel_axes": list(self.channel_axes),
        }


def _mse_steps(magnitudes: np.ndarray, others: tuple[int, ...], high: float) -> np.ndarray:
    """The step of least squared error of each channel, shape (channels,).

    Args:
      magnitudes: absolute values of a kernel: its range is symmetric.
      others: axes of the weights that share a step.
      high: the largest integer.
    """
    reach = np.maximum(np.max(magnitudes, axis=others, keepdims=True) / high, SMALLEST_STEP)
    best, best_error = reach, np.full(reach.shape, np.inf)
    for fraction in _MSE_FRACTIONS:
        step = (fraction * reach).astype(np.float32)
        quantized = np.minimum(np.rint(magnitudes / step), high) * step
        error = np.mean(np.square(magnitudes - quantized), axis=others, keepdims=True)
        best = np.where(error < best_error, step, best)
        best_error = np.minimum(error, best_error)
    return best.reshape(-1)

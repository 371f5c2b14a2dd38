"""Quantizes a kernel so that its lower bit-widths derive from the highest one's integers."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_metamix.layers.weight_quantizer import SMALLEST_STEP, Rule, WeightQuantizer
from keras_metamix.ops import lsq_integers, lsq_nested, nested_integers, pick

_MOST_BITS_OF_LSQ = 4


@keras.saving.register_keras_serializable("keras_metamix")
class NestedWeightQuantizer(WeightQuantizer):
    r"""A `WeightQuantizer` with one stored integer tensor, that of the highest candidate.

    The integers $q_b$ of the other candidates follow from it (`nested_integers`); each candidate
    has a step of its own for each channel, which only scales them: $Q_b(w) = s_b \, q_b$.
    """

    def build(self, kernel_shape: Any) -> None:
        super().build(kernel_shape)
        self._shifts = np.array([self.candidates[0] - b for b in self.candidates], np.float32)

    def initialize_steps(self, kernel: Any, rule: Rule = "lsq") -> None:
        r"""The highest candidate's steps by `rule`; the others' by least squares.

        $$s_b = \frac{\sum q_b \, w}{\sum q_b^2}$$

        Above 4 bits the highest's are by "mse", whatever the rule: LSQ's make so wide a grid of 8
        bits that all of a Gaussian kernel's integers of 2 bits are 0.
        """
        wide = self.choice.searched and self.candidates[0] > _MOST_BITS_OF_LSQ
        super().initialize_steps(kernel, "mse" if wide else rule)
        kernel = ops.convert_to_tensor(kernel)
        others = tuple(i for i, n in enumerate(self._step_shape) if n == 1)
        top = self.highest_integers(kernel)
        steps = ops.convert_to_numpy(self.log_step).copy()
        for row in range(1, len(self.candidates)):
            levels = nested_integers(top, self._shifts[row], self._highs[row])
            energy = ops.convert_to_numpy(ops.sum(levels * levels, others)).reshape(-1)
            dot = ops.convert_to_numpy(ops.sum(levels * kernel, others)).reshape(-1)
            plain = np.exp(steps[0]) * 2.0 ** self._shifts[row]  # of a channel that is all zero
            fitted = np.where(energy > 0, dot / np.maximum(energy, 1.0), plain)
            steps[row] = np.log(np.maximum(fitted, SMALLEST_STEP))
        self.log_step.assign(steps.astype(np.float32))

    def highest_integers(self, kernel: Any) -> Any:
        """The stored integers, as floats of the kernel's shape."""
        return lsq_integers(kernel, self.step(0), -self._highs[0], self._highs[0])

    def integers(self, kernel: Any) -> Any:
        index = self.choice.index()
        shift, high = pick(self._shifts, index), pick(self._highs, index)
        return nested_integers(self.highest_integers(kernel), shift, high)

    def _quantize(self, kernel: Any, index: Any) -> Any:
        return lsq_nested(
            kernel,
            self.step(0),
            self._highs[0],
            self.step(index),
            pick(self._shifts, index),
            pick(self._highs, index),
            pick(self._gradient_scales, index),
        )

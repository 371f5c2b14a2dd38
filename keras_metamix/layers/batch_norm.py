"""Batch normalization that evaluates as the device will: folded, its bias on the integer grid."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_metamix.layers.mode import current_mode
from keras_metamix.ops import batch_norm, round_straight_through

# A dead channel (scale near 0) still needs a positive scale and an int32 bias in the file.
# XNNPACK's INT4 kernels for ARM accumulate 16 times the sum, so that sums stay below 2^27.
SMALLEST_SCALE = 2.0**-24
LARGEST_BIAS_INTEGER = 2.0**26
# The device's weight of scales and shifts that fold into no MAC layer: a power of two, and large
# enough that the bias, which counts in steps of input step / weight, is rounded finely.
AFFINE_INTEGER = 64


def folded_terms(
    gamma: Any, beta: Any, mean: Any, variance: Any, epsilon: float, bias: Any, step: Any
) -> tuple[Any, Any]:
    r"""Batch norm as a channel scale and an integer bias.

    With the accumulator $A$, its step $s$ and the bias $c$ of the convolution, for each channel:

    $$\gamma \, \frac{s A + c - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta \approx s \left( m A + |m|
    B \right), \qquad m = \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}}, \qquad B = \mathrm{round}
    \left( \frac{\beta + (c - \mu) \, m}{|m| \, s} \right)$$

    $|m|$ is kept so large that $|B| \le 2^{26}$, and at least $2^{-24}$.

    Args:
      gamma, beta, mean, variance: of the batch norm, shape (channels,).
      bias: of the convolution before it.
      step: of the accumulator, shape (channels,).

    Returns:
      scale (signed) and integer_bias, shape (channels,), as floats.
    """
    scale = gamma / ops.sqrt(variance + epsilon)
    total = beta + (bias - mean) * scale
    smallest = ops.maximum(SMALLEST_SCALE, ops.abs(total) / (step * LARGEST_BIAS_INTEGER))
    sign = ops.where(scale < 0, -ops.ones_like(scale), ops.ones_like(scale))
    scale = sign * ops.maximum(ops.abs(scale), smallest)
    return scale, round_straight_through(total / (ops.abs(scale) * step))


@keras.saving.register_keras_serializable("keras_metamix")
class FoldableBatchNormalization(keras.layers.BatchNormalization):
    r"""`keras.layers.BatchNormalization` that follows the quantization mode.

    It folds into a scale $m$ and an integer bias $B$ of each output channel, and leaves the trained
    integers as they are. With $\gamma$, $\beta$, $\mu$, $\sigma^2$ of the batch norm, $c$ the bias
    of the convolution, $s$ the product of the step sizes of input and weights, and $A$ the integer
    sum:

    $$y = s \left( m A + |m| B \right), \qquad m = \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}}, \qquad
    B = \mathrm{round} \left( \frac{\beta + (c - \mu) \, m}{|m| \, s} \right)$$

    In evaluation of a quantized network it rounds the bias that it will fold to onto the
    device's int32 grid: that of the MAC layer which owns it or, where none does, of the 1x1
    depthwise convolution that it is on the device. With `statistics="frozen"` training uses batch
    statistics and keeps the moving ones.

    Args:
      input_quantizer: name of the quantizer of its input, where no MAC layer owns it.
    """

    def __init__(self, *args: Any, input_quantizer: str | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.input_quantizer = input_quantizer
        self._input_step: Callable[[], Any] | None = None

    def connect(self, input_step: Callable[[], Any]) -> None:
        """Takes what gives the step of its input, where no MAC layer owns it."""
        self._input_step = input_step

    def evaluates_folded(self, training: bool | None) -> bool:
        """Whether a call computes with a rounded bias, in the present mode."""
        return not (training and self.trainable) and current_mode().weights == "assigned"

    def fold(self, factor: Any, shift: Any, step: Any, bias: Any = None) -> tuple[Any, Any]:
        """`folded_terms` of `factor * (this layer) + shift`.

        Args:
          factor, shift: of constants behind it, scalars or shape (channels,).
          step: of the accumulator, shape (channels,) or ().
          bias: of the MAC layer before it.
        """
        gamma, beta, mean, variance = self._parameters()
        return folded_terms(
            gamma * factor,
            beta * factor + shift,
            mean,
            variance,
            self.epsilon,
            ops.zeros_like(mean) if bias is None else bias,
            step,
        )

    def _parameters(self) -> tuple[Any, Any, Any, Any]:
        """Gamma, beta, mean and variance in use, shape (channels,)."""
        size = self.moving_mean.shape
        return (
            self.gamma if self.scale else ops.ones(size),
            self.beta if self.center else ops.zeros(size),
            self.moving_mean,
            self.moving_variance,
        )

    def _update_statistics(self, mean: Any, variance: Any) -> None:
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + batch * (1.0 - self.momentum))

    def call(
        self,
        inputs: Any,
        training: bool | None = None,
        mask: Any = None,
        bias: Any = None,
        step: Any = None,
    ) -> Any:
        """As Keras' layer; `bias`, not yet added, and `step` are those of the MAC layer before."""
        mode = current_mode()
        if step is None and self._input_step is not None:
            step = self._input_step() / AFFINE_INTEGER
        if step is not None and self.evaluates_folded(training):
            step = ops.stop_gradient(step)  # the grid of the bias, which the bias does not move
            scale, integers = self.fold(1.0, 0.0, step, bias)
            return inputs * scale + integers * ops.abs(scale) * step
        training = bool(training) and self.trainable  # Keras: a frozen batch norm evaluates
        if training and self._fusable(inputs, mask):
            return self._train_fused(inputs, update=mode.statistics == "own")
        if training and mode.statistics == "frozen":
            gamma, beta, _, _ = self._parameters()
            mean, variance = self._moments(inputs, mask)
            return ops.batch_normalization(
                inputs, mean, variance, self.axis, beta, gamma, self.epsilon
            )
        return self._normalize(inputs, training, mask)

    def _normalize(self, inputs: Any, training: bool, mask: Any) -> Any:
        return super().call(inputs, training=training, mask=mask)

    def _fusable(self, inputs: Any, mask: Any) -> bool:
        return (
            keras.backend.backend() == "tensorflow"
            and mask is None
            and not (self.renorm or self.synchronized)
            and self.axis in (-1, 3)
            and len(inputs.shape) == 4
            and inputs.dtype == "float32"
        )

    def _train_fused(self, inputs: Any, update: bool) -> Any:
        """Keras composes batch norm of elementwise ops; this is one kernel."""
        gamma, beta, _, _ = self._parameters()
        outputs, mean, variance = batch_norm(inputs, gamma, beta, self.epsilon)
        if update:
            self._update_statistics(mean, variance)
        return outputs

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"input_quantizer": self.input_quantizer}

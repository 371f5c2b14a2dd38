"""Batch normalization that evaluates as the device will: folded, its bias on the integer grid."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_metamix.layers.mac import QuantizedMac
from keras_metamix.layers.mode import current_mode

# A dead channel (scale near 0) still needs a positive scale and an int32 bias in the file.
SMALLEST_SCALE = 2.0**-24
LARGEST_BIAS_INTEGER = 2.0**30


def folded_terms(
    gamma: Any, beta: Any, mean: Any, variance: Any, epsilon: float, bias: Any, step: Any
) -> tuple[Any, Any]:
    """Batch norm as a channel scale and an integer bias.

    With v = step * accumulator, `gamma * (v + bias - mean) / sqrt(variance + epsilon) + beta`
    becomes `step * (scale * accumulator + |scale| * integer_bias)`.

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
    return scale, ops.round(total / (ops.abs(scale) * step))


@keras.saving.register_keras_serializable("keras_metamix")
class FoldableBatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization` that follows the quantization mode.

    In evaluation of a quantized network it rounds the bias that it will fold to onto the
    device's int32 grid; `producer`, the MAC layer before it, is set by the model that owns
    both. With `statistics="frozen"` training uses batch statistics and keeps the moving ones.
    """

    producer: QuantizedMac | None = None

    def fold(self) -> tuple[Any, Any]:
        """`folded_terms` of this layer and its producer."""
        if self.producer is None:
            raise ValueError(f"Batch norm {self.name!r} follows no MAC layer: it cannot be folded.")
        size = self.moving_mean.shape
        bias = self.producer.bias if self.producer.use_bias else ops.zeros(size)  # pyright: ignore
        return folded_terms(
            self.gamma if self.scale else ops.ones(size),
            self.beta if self.center else ops.zeros(size),
            self.moving_mean,
            self.moving_variance,
            self.epsilon,
            bias,
            self.producer.accumulator_step(),
        )

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        mode = current_mode()
        training = bool(training) and self.trainable  # Keras: a frozen batch norm evaluates
        if training and self._fusable(inputs, mask):
            return self._train_fused(inputs, update=mode.statistics == "own")
        if not training and mode.weights == "assigned" and self.producer is not None:
            scale, integers = self.fold()
            step = self.producer.accumulator_step()
            if self.producer.use_bias:  # pyright: ignore[reportAttributeAccessIssue]
                inputs = inputs - self.producer.bias  # pyright: ignore
            return inputs * scale + integers * ops.abs(scale) * step
        if training and mode.statistics == "frozen":
            mean, variance = self._moments(inputs, mask)
            return ops.batch_normalization(
                inputs, mean, variance, self.axis, self.beta, self.gamma, self.epsilon
            )
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
        """Keras composes batch norm of elementwise ops; TensorFlow has one kernel for it."""
        import tensorflow as tf

        size = self.moving_mean.shape
        outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            inputs,
            ops.convert_to_tensor(self.gamma) if self.scale else tf.ones(size),
            ops.convert_to_tensor(self.beta) if self.center else tf.zeros(size),
            epsilon=self.epsilon,
            is_training=True,
        )
        if update:
            count = tf.cast(tf.size(inputs) // size[0], tf.float32)
            variance *= (count - 1.0) / count  # the kernel's is unbiased, Keras' is not
            for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
                moving.assign(moving * self.momentum + batch * (1.0 - self.momentum))
        return outputs

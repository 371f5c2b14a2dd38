r"""Batch normalization of a training step, one kernel in each direction.

With the $N$ values of a channel, their mean $\mu$ and variance $\sigma^2$, and $\hat x = (x - \mu)
/ \sqrt{\sigma^2 + \epsilon}$:

$$y = \gamma \hat x + \beta, \qquad \frac{\partial L}{\partial \beta} = \sum \frac{\partial
L}{\partial y}, \qquad \frac{\partial L}{\partial \gamma} = \sum \frac{\partial L}{\partial y} \hat
x, \qquad \frac{\partial L}{\partial x} = \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}} \left(
\frac{\partial L}{\partial y} - \frac{1}{N} \frac{\partial L}{\partial \beta} - \frac{\hat x}{N}
\frac{\partial L}{\partial \gamma} \right)$$

(Ioffe and Szegedy, ICML 2015). TensorFlow's kernels compute the same. Where it calls cuDNN's or
oneDNN's (by default on CPUs with VNNI), those are as fast and need no compilation; its own is
slower, and is for images of few values, for which compiling does not pay.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from keras import ops

from keras_metamix.ops.fusion import fused
from keras_metamix.ops.rows import Rows


def batch_norm(x: Any, gamma: Any, beta: Any, epsilon: float) -> tuple[Any, Any, Any]:
    """Normalizes each channel by the statistics of the batch.

    Args:
      x: shape (batch, height, width, channels), float32.
      gamma, beta: shape (channels,).
      epsilon: added to the variance.

    Returns:
      The outputs, and mean and variance (of the population), shape (channels,), which are
      constants for gradients.
    """
    # custom_gradient refuses a variable; a reshape to its own shape reads it as a tensor.
    gamma, beta = ops.reshape(gamma, gamma.shape), ops.reshape(beta, beta.shape)
    if not Rows.of(x.shape).blocks or _library_has_it():
        return _by_tensorflow(x, gamma, beta, epsilon)
    forward, backward = _kernels(epsilon)

    @ops.custom_gradient
    def normalize(x, gamma, beta):
        outputs, mean, variance = forward(x, gamma, beta)

        def gradient(upstream, *_):
            return backward(upstream, x, gamma, mean, variance)

        return (outputs, mean, variance), gradient

    found: Any = normalize(x, gamma, beta)
    return found


@functools.cache
def _kernels(epsilon: float) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def forward(x, gamma, beta):
        view, count = Rows.of(x.shape), _count(x)
        rows, repeated = view.rows(x), view.repeated
        # A value of the channel is near its mean, which keeps squares small; none, in no batch.
        near = ops.sum(x[:1, 0, 0], axis=0)
        shift = repeated(near)
        first, second = view.channel_sums(
            lambda part: (part - shift, ops.square(part - shift)), rows
        )
        offset = first / count
        variance = ops.maximum(second / count - ops.square(offset), 0.0)
        mean = near + offset
        factor = gamma * ops.rsqrt(variance + epsilon)
        outputs = (rows - repeated(mean)) * repeated(factor) + repeated(beta)
        return ops.reshape(outputs, ops.shape(x)), mean, variance

    def backward(upstream, x, gamma, mean, variance):
        view, count = Rows.of(x.shape), _count(x)
        above, rows, repeated = view.rows(upstream), view.rows(x), view.repeated
        middle, inverse = repeated(mean), ops.rsqrt(variance + epsilon)
        dbeta, products = view.channel_sums(
            lambda above, part: (above, above * (part - middle)), above, rows
        )
        slope = repeated(ops.square(inverse) * products / count)
        dx = above - repeated(dbeta / count) - (rows - middle) * slope
        dx = ops.reshape(dx * repeated(gamma * inverse), ops.shape(x))
        return dx, products * inverse, dbeta

    return fused(forward), fused(backward)


def _library_has_it() -> bool:
    """Whether TensorFlow computes batch norm by cuDNN or oneDNN in this process."""
    import tensorflow as tf
    from tensorflow.python.util import _pywrap_util_port  # there is no public name

    return _pywrap_util_port.IsMklEnabled() or bool(tf.config.list_logical_devices("GPU"))


def _count(x: Any) -> Any:
    """Values of each channel."""
    return ops.cast(ops.size(x) // x.shape[-1], x.dtype)


def _by_tensorflow(x: Any, gamma: Any, beta: Any, epsilon: float) -> tuple[Any, Any, Any]:
    import tensorflow as tf

    outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
        x, gamma, beta, epsilon=epsilon, is_training=True
    )
    count = _count(x)
    return outputs, mean, variance * (count - 1.0) / count  # the kernel's is unbiased

r"""Nested integers: every lower bit-width of a tensor derives from its highest by one rule.

With $q$ the integers of $h$ bits, those of $b$ bits are, for $k = h - b$,

$$q_b = \mathrm{sign}(q) \, \min \left( \left\lfloor \frac{|q|}{2^k} + \frac{1}{2} \right\rfloor,
2^{b-1} - 1 \right)$$

which is $q / 2^k$ rounded half away from zero and kept in the narrow range of $b$ bits. A device
that holds $q$ computes them with an addition and a shift.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_metamix.ops.step_size import lsq_integers


def nested_integers(integers: Any, shift: Any, high: Any) -> Any:
    """The integers of fewer bits.

    Args:
      integers: of the highest bit-width, as floats.
      shift: how many bits fewer, a float.
      high: largest integer of the lower bit-width, 2^(b-1) - 1.
    """
    magnitude = ops.floor(ops.abs(integers) * ops.power(2.0, -shift) + 0.5)
    return ops.sign(integers) * ops.minimum(magnitude, high)


def lsq_nested(
    v: Any, highest_step: Any, highest: Any, step: Any, shift: Any, high: Any, gradient_scale: Any
) -> Any:
    """Nested integers of v times their own step; gradients reach v and that step.

    The gradient of v is LSQ's: straight through, where v is inside the highest bit-width's range.
    At shift 0 that of the step is LSQ's too; below, the integers do not depend on the step, so that
    it is exactly the integers.

    Args:
      v: values.
      highest_step, highest: step and largest integer of the highest bit-width.
      step: of the bit-width wanted, like `highest_step` of v's rank, 1 where it is shared.
      shift, high: see `nested_integers`.
      gradient_scale: factor of the step's gradient.
    """
    axes = tuple(i for i, n in enumerate(step.shape) if n == 1)
    highest_step = ops.stop_gradient(highest_step)

    @keras.ops.custom_gradient
    def quantize(v, step):
        levels = nested_integers(lsq_integers(v, highest_step, -highest, highest), shift, high)

        def gradient(upstream):
            u = v / highest_step
            inside = ops.less_equal(ops.abs(u), highest)
            dv = ops.where(inside, upstream, 0.0)
            through = ops.where(ops.logical_and(inside, ops.equal(shift, 0.0)), u, 0.0 * u)
            ds = ops.sum(upstream * (levels - through), axis=axes, keepdims=True)
            return dv, ds * gradient_scale

        return levels * step, gradient

    return quantize(ops.reshape(v, v.shape), step)

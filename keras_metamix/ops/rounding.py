"""Functions whose true gradient is zero or undefined, with the one that trains."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


@keras.ops.custom_gradient
def round_straight_through(x: Any) -> Any:
    """Rounds half to even; the gradient is the identity."""

    def gradient(upstream):
        return upstream

    return ops.round(x), gradient


@keras.ops.custom_gradient
def straight_through(x: Any, value: Any) -> Any:
    """`value`; the gradient is that of `x`, of the same shape."""

    def gradient(upstream):
        return upstream, ops.zeros_like(upstream)

    return ops.cast(value, x.dtype), gradient


@keras.ops.custom_gradient
def hard_selection(alpha: Any) -> Any:
    r"""The most probable candidate (MetaMix Eq. 5), with the gradient of the softmax.

    $$\mathrm{hs}(\alpha) = \mathrm{onehot}(\mathrm{argmax} \, \alpha), \qquad \frac{\partial
    \mathrm{hs}_i} {\partial \alpha_j} := p_i (\delta_{ij} - p_j), \qquad p =
    \mathrm{softmax}(\alpha)$$

    Args:
      alpha: architecture parameters, shape (..., candidates).
    """
    probabilities = ops.softmax(alpha, axis=-1)
    selected = ops.one_hot(ops.argmax(alpha, axis=-1), alpha.shape[-1], dtype=alpha.dtype)

    def gradient(upstream):
        inner = ops.sum(upstream * probabilities, axis=-1, keepdims=True)
        return probabilities * (upstream - inner)

    return selected, gradient

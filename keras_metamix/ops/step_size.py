r"""Learned step size quantization (LSQ) and its gradients (Esser et al., ICLR 2020; MetaMix).

With $u = v / s$ and levels from $l$ to $h$:

$$Q(v) = s \cdot \mathrm{round}(\mathrm{clip}(u, l, h))$$

$$\frac{\partial Q}{\partial v} = \begin{cases} 1 & l \le u \le h \\ 0 & \text{else} \end{cases},
\qquad \frac{\partial Q}{\partial s} = g \cdot \begin{cases} \mathrm{round}(u) - u & l \le u \le h
\\ l & u < l \\ h & u > h \end{cases}, \qquad g = \frac{1}{\sqrt{N h}}$$

summed over the $N$ values that share the step. Rounding is half to even, as on the device. The
gradients divide as the quantizer does: a tie that rounds the other way, or a value on the highest
level that counts as clipped, would be another function's.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_metamix.ops.fusion import fused
from keras_metamix.ops.picking import pick
from keras_metamix.ops.rows import WHOLE, Rows, Whole


def lsq_integers(v: Any, step: Any, low: Any, high: Any) -> Any:
    """The integers `round(clip(v / step, low, high))`, as floats; `step` broadcasts to `v`."""
    return ops.round(ops.clip(v / step, low, high))


def _capped(v: Any, cap: float) -> Any:
    return v if math.isinf(cap) else ops.minimum(v, cap)


def _residual(u: Any, low: Any, high: Any) -> tuple[Any, Any]:
    """Whether u = v / s is inside the clip range, and dq/ds before the gradient scale."""
    clipped = ops.clip(u, low, high)
    inside = ops.equal(u, clipped)
    return inside, ops.round(clipped) - ops.where(inside, u, 0.0)


def shifted_range(step: Any, low: Any, high: Any, minimum: float | None) -> tuple[Any, Any]:
    r"""The clip range moved to begin at `minimum`, with a level 0; as it is where that is None.

    With the minimum $m$, the step $s$ and the highest level $h$ the range moves by $z$ levels:

    $$z = \max \left( \mathrm{round} \left( \frac{m}{s} - \frac{1}{4} \right), -\frac{h + 1}{2}
    \right), \qquad z = 0 \; \text{where} \; \frac{m}{s} > -\frac{1}{2}$$

    A range that begins below 0 begins so far below the minimum that rounding on the way, by up to
    a quarter of a step, does not reach its end: the device has no activation that clips there.
    Where steps are so small that this took more than half of the range, it is half.
    """
    if minimum is None:
        return low, high
    lowest = minimum / step
    shift = ops.where(lowest > -0.5, ops.zeros_like(lowest), ops.round(lowest - 0.25))
    shift = ops.stop_gradient(ops.maximum(shift, -(high + 1) / 2))
    return low + shift, high + shift


def _candidate_functions(
    view: Rows | Whole, cap: float, minimum: float | None
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def chosen(steps, index, table):
        step, row = pick(steps, index), pick(table, index)
        low, high, scale = row if isinstance(row, np.ndarray) else ops.unstack(row, 3)
        return step, *shifted_range(step, low, high, minimum), scale

    def forward(v, steps, index, table):
        step, low, high, _ = chosen(steps, index, table)
        return lsq_integers(_capped(v, cap), step, low, high) * step

    def backward(upstream, v, steps, index, table):
        step, low, high, scale = chosen(steps, index, table)

        def parts(upstream, v):
            inside, residual = _residual(_capped(v, cap) / step, low, high)
            if not math.isinf(cap):
                inside = ops.logical_and(inside, ops.less(v, cap))
            return ops.where(inside, upstream, 0.0), upstream * residual

        dv, _ = parts(upstream, v)
        ds = view.sums(lambda *slices: parts(*slices)[1:], upstream, v)[0] * scale
        if steps.shape[0] == 1:
            return dv, ops.reshape(ds, (1,))
        return dv, ds * ops.one_hot(index, steps.shape[0], dtype=steps.dtype)

    return forward, backward


def _mixture_functions(
    view: Rows | Whole, cap: float
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def forward(v, probabilities, steps, lows, highs):
        v = _capped(v, cap)
        return sum(
            probabilities[b] * steps[b] * lsq_integers(v, steps[b], lows[b], highs[b])
            for b in range(steps.shape[0])
        )

    def backward(upstream, v, probabilities, steps, lows, highs):
        count = steps.shape[0]

        def units(v):
            return [_capped(v, cap) / steps[b] for b in range(count)]

        def products(upstream, v):
            return [
                upstream * ops.round(ops.clip(u, lows[b], highs[b])) for b, u in enumerate(units(v))
            ]

        weight = sum(
            ops.where(ops.equal(u, ops.clip(u, lows[b], highs[b])), probabilities[b], 0.0)
            for b, u in enumerate(units(v))
        )
        if not math.isinf(cap):
            weight = ops.where(ops.less(v, cap), weight, 0.0)
        return upstream * weight, ops.stack(view.sums(products, upstream, v)) * steps

    return forward, backward


@functools.cache
def _kernels(make: Callable[..., Any], view: Rows | Whole, *constants: Any) -> tuple[Any, ...]:
    """Forward and backward of `make`, of rows in a kernel each, or of whole tensors as they are."""
    functions = make(view, *constants)
    return functions if isinstance(view, Whole) else tuple(map(fused, functions))


def lsq(
    v: Any,
    steps: Any,
    index: Any,
    table: Any,
    cap: float = math.inf,
    minimum: float | None = None,
    fuse: bool = True,
) -> Any:
    """Quantizes a tensor with one of several step sizes; gradients reach v and that step.

    Args:
      v: values, any shape.
      steps: positive, shape (candidates,).
      index: which one; an integer or an int32 scalar tensor.
      table: shape (candidates, 3): lowest and highest integer, factor of the step's gradient. An
        array, and an integer as index, make fewer ops.
      cap: `min(v, cap)` is quantized (6.0: the upper half of a ReLU6; the lower half and a
        ReLU are a range that begins at 0).
      minimum: where the range begins, see `shifted_range`.
      fuse: whether each direction is one compiled kernel, a single pass over memory; what
        depends on the choice is inside, since a dozen tiny ops cost as much as a small tensor.
    """
    view = Rows.of(v.shape) if fuse else WHOLE
    forward, backward = _kernels(_candidate_functions, view, cap, minimum)
    if fuse:  # a kernel takes tensors, not variables
        index = ops.cast(ops.reshape(index, ()), "int32")
        table = ops.convert_to_tensor(table, v.dtype)
    elif not isinstance(index, int):
        index = ops.convert_to_tensor(index)  # read once: the gradient is of the same choice

    @keras.ops.custom_gradient
    def quantize(v, steps):
        rows = view.rows(v)

        def gradient(upstream):
            dv, ds = backward(view.rows(upstream), rows, steps, index, table)
            return view.tensor(dv, v), ds

        return view.tensor(forward(rows, steps, index, table), v), gradient

    return quantize(v, steps)


def lsq_per_channel(v: Any, step: Any, low: Any, high: Any, gradient_scale: Any = 1.0) -> Any:
    """`lsq` for small tensors with a step for each slice: `step` has v's rank, 1s elsewhere."""
    axes = tuple(i for i, n in enumerate(step.shape) if n == 1)

    @keras.ops.custom_gradient
    def quantize(v, step):
        def gradient(upstream):
            inside, residual = _residual(v / step, low, high)
            dv = ops.where(inside, upstream, 0.0)
            ds = ops.sum(upstream * residual, axis=axes, keepdims=True)
            return dv, ds * gradient_scale

        return lsq_integers(v, step, low, high) * step, gradient

    # custom_gradient refuses a variable; a reshape to its own shape reads it as a tensor.
    return quantize(ops.reshape(v, v.shape), step)


def lsq_mixture(
    v: Any,
    probabilities: Any,
    steps: Any,
    lows: Sequence[float] | Any,
    highs: Sequence[float] | Any,
    cap: float = math.inf,
    fuse: bool = True,
) -> Any:
    r"""The mixture of all candidates (MetaMix Eq. 2).

    $$Q(v) = \sum_b p_b \, Q_b(v), \qquad \frac{\partial Q}{\partial v} = \sum_b p_b \, [l_b \le v /
    s_b \le h_b], \qquad \frac{\partial Q}{\partial p_b} = Q_b(v)$$

    Gradients reach $v$ and $p$; the steps are constants.

    Args:
      v: values, any shape.
      probabilities, steps, lows, highs: shape (candidates,).
      cap, fuse: as in `lsq`.
    """
    view = Rows.of(v.shape) if fuse else WHOLE
    forward, backward = _kernels(_mixture_functions, view, cap)
    steps, lows, highs = (
        ops.stop_gradient(ops.convert_to_tensor(t, v.dtype)) for t in (steps, lows, highs)
    )

    @keras.ops.custom_gradient
    def mix(v, probabilities):
        rows = view.rows(v)

        def gradient(upstream):
            found = backward(view.rows(upstream), rows, probabilities, steps, lows, highs)
            return view.tensor(found[0], v), found[1]

        return view.tensor(forward(rows, probabilities, steps, lows, highs), v), gradient

    return mix(v, probabilities)

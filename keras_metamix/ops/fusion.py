"""Compiles a small elementwise function into one kernel.

On a CPU a quantizer is memory traffic: unfused, each of its dozen elementwise ops reads and
writes the activation once more. Whole models are never compiled so: XLA's convolutions are
several times slower there than the ones that TensorFlow calls.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras


def fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a function of tensors, written in `keras.ops`, without variables.

    Its result is a constant for gradients: a custom gradient surrounds it.
    """
    if keras.backend.backend() != "tensorflow":
        return function
    import tensorflow as tf

    kernels: dict[Any, Callable[..., Any]] = {}
    graphs: dict[Any, Callable[..., Any]] = {}

    def call(*tensors: Any) -> Any:
        # One tf.function for each signature: of one with many, TensorFlow warns of retracing. It
        # counts the traces of all that share a code object, which a partial has none of.
        signature = tuple((tuple(t.shape), t.dtype) for t in tensors)
        if signature not in kernels:
            own = functools.partial(function)
            kernels[signature] = tf.function(own, jit_compile=True, autograph=False)
        kernel = kernels[signature]
        if not tf.executing_eagerly():
            return kernel(*tensors)
        # Within a graph, as training calls it: for an eager call TensorFlow compiles it once more.
        if signature not in graphs:
            graphs[signature] = tf.function(functools.partial(kernel), autograph=False)
        return graphs[signature](*map(tf.stop_gradient, tensors))

    return call

"""Compiles a small elementwise function into one kernel.

On a CPU a quantizer is memory traffic: unfused, each of its dozen elementwise ops reads and
writes the activation once more. Whole models are never compiled so: XLA's convolutions are
several times slower there than the ones that TensorFlow calls.
"""

from __future__ import annotations

from collections.abc import Callable

import keras


def fused(function: Callable) -> Callable:
    """Decorates a function of tensors, written in `keras.ops`, without variables."""
    if keras.backend.backend() != "tensorflow":
        return function
    import tensorflow as tf

    return tf.function(function, jit_compile=True, autograph=False)

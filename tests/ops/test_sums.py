"""Sums by blocks against sums in float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_metamix.ops.sums import sums

# Sizes of an image that divide by 32, 16, 8, 4, by none of them, and small ones.
SHAPES = [
    (5, 16, 16, 32),
    (3, 12, 12, 29),
    (3, 14, 14, 22),
    (7, 10, 10, 41),
    (3, 71, 59),
    (1, 8192),
    (4, 3, 3, 5),
    (4,),
]


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_integrand_is_summed_over_all_values(shape, jit):
    generator = np.random.default_rng(0)
    a, b = (generator.normal(1, 1, shape).astype(np.float32) for _ in range(2))
    signature = [tf.TensorSpec((None, *shape[1:]))] * 2  # as in `fit`

    def integrals(a, b):
        return sums(lambda a, b: [a, a * b, keras.ops.round(b)], a, b)

    compute = tf.function(integrals, signature, jit_compile=True) if jit else integrals
    found = [float(value) for value in compute(tf.constant(a), tf.constant(b))]
    wide = [a.astype(float), a.astype(float) * b, np.round(b).astype(float)]
    np.testing.assert_allclose(found, [np.sum(v) for v in wide], rtol=2e-6)


def test_an_empty_batch_sums_to_zero():
    compute = tf.function(lambda a: sums(lambda a: [a], a), [tf.TensorSpec((None, 8192))])
    assert float(compute(tf.zeros((0, 8192)))[0]) == 0

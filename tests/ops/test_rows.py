"""Rows of tensors, and their sums by blocks against sums in float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_metamix.ops.rows import Rows

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

    view = Rows.of((None, *shape[1:]))

    def integrals(a, b):
        return view.sums(lambda a, b: [a, a * b, keras.ops.round(b)], view.rows(a), view.rows(b))

    compute = tf.function(integrals, signature, jit_compile=True) if jit else integrals
    found = [float(value) for value in compute(tf.constant(a), tf.constant(b))]
    wide = [a.astype(float), a.astype(float) * b, np.round(b).astype(float)]
    np.testing.assert_allclose(found, [np.sum(v) for v in wide], rtol=2e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_of_a_channel(shape):
    values = np.random.default_rng(0).normal(1, 1, shape).astype(np.float32)
    view = Rows.of((None, *shape[1:]))
    (found,) = view.channel_sums(lambda a: [a], view.rows(tf.constant(values)))
    channels = shape[-1] if len(shape) > 1 else 1
    expected = values.astype(float).reshape(-1, channels).sum(0)
    np.testing.assert_allclose(found, expected, rtol=2e-5)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_are_whole_pixels_and_become_the_tensor_again(shape, known):
    sizes = shape[1:] if known or len(shape) < 3 else (*([None] * (len(shape) - 2)), shape[-1])
    view, tensor = Rows.of((None, *sizes)), np.arange(np.prod(shape)).reshape(shape)
    assert view.width % view.channels == 0
    assert view.width >= 64 or view.width == np.prod(shape[1:]) or not known

    @tf.function(input_signature=[tf.TensorSpec((None, *sizes), tf.int64)])
    def there_and_back(values):
        rows = view.rows(values)
        return rows, view.tensor(rows, values)

    rows, back = there_and_back(tf.constant(tensor))
    np.testing.assert_array_equal(np.ravel(rows), np.ravel(tensor))
    np.testing.assert_array_equal(back, tensor)


def test_an_empty_batch_sums_to_zero():
    view = Rows.of((None, 8192))
    compute = tf.function(
        lambda a: view.sums(lambda a: [a], view.rows(a)), [tf.TensorSpec((None, 8192))]
    )
    assert float(compute(tf.zeros((0, 8192)))[0]) == 0

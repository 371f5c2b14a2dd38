"""Functions that are compiled into one kernel each."""

import logging

import numpy as np
import tensorflow as tf
from keras import ops

from keras_metamix.ops.fusion import fused


def test_many_shapes_make_no_warning_of_retracing():
    def double(x):
        return 2 * ops.round(x)

    records = []
    handler = logging.Handler()
    handler.emit = records.append
    tf.get_logger().addHandler(handler)
    kernel = fused(double)
    try:
        for count in range(1, 9):
            values = tf.fill((count,), 1.2)
            np.testing.assert_array_equal(kernel(values), np.full(count, 2.0))
    finally:
        tf.get_logger().removeHandler(handler)
    assert not records

"""Which training images are held out, so that training can be validated without the test images."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from keras_metamix.checks import require_number, shown

_KEY = (0x68656C64, 0x6F7574)  # any constant: the split is no part of a run's randomness


def hold_out(count: int, held: float) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the images to train on, and of those held out; both ascending, int64.

    An image's place alone decides, whatever the seed of a run is: weights that one run hands to
    another have not seen the images that either validates on. A larger `held` holds out the same
    images and more.

    Args:
      count: images there are.
      held: below 1 a share of them, from 1 on a number of them; 0: none.

    Raises:
      ValueError: neither, or no image would be left to train on.
    """
    require_number("validation", held, 0)
    if held >= 1 and held != int(held):
        raise ValueError(
            "validation: expected a share below 1 or a whole number of images, found "
            f"{shown(held)}."
        )
    size = round(count * held) if held < 1 else int(held)
    if size >= count:
        raise ValueError(
            f"validation: expected fewer than the {count:,} training images, found {size:,}."
        )
    numbers = tf.range(count, dtype=tf.int64)
    shuffled = tf.random.experimental.index_shuffle(
        numbers, tf.constant(_KEY, tf.int64), tf.constant(count - 1, tf.int64)
    ).numpy()
    return np.sort(shuffled[size:]), np.sort(shuffled[:size])

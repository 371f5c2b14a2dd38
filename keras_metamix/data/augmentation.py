"""Augmentation of single images: each has a seed, and what it gets depends on that alone.

A layer that draws from a generator with a state gives an image what depends on everything that was
drawn before it. Here the numbers are drawn from the image's seed (`tf.random.stateless_*`), and
RandAugment's operations, which are keras-cv's layers, only apply them. `keras.layers.RandAugment`
has no such seam: it draws one order of operations for a whole batch, and computes all eleven of
them for each that it applies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

_SPREAD = 0.15  # keras_cv.layers.RandAugment's own magnitude_stddev
_RATE = 10 / 11  # and its share of operations that are applied
_SOLARIZE_ADDITION = 110.0  # the most that its solarization adds
_ONE, _PIXELS = (1, 1), (1, 1, 1, 1)  # shapes of one image's number, as the layers take it
Draw = Callable[[tf.Tensor, float], Any]


def random_flip(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Mirrors an image (H, W, C) left to right with probability 1/2; `seed` has shape (2,)."""
    drawn = tf.random.stateless_uniform([1, 1], seed)
    return tf.ensure_shape(mirrored(image[tf.newaxis], drawn)[0], image.shape)


def mirrored(images: tf.Tensor, drawn: tf.Tensor) -> tf.Tensor:
    """Images (B, H, W, C), those mirrored left to right whose number of `drawn` (B, 1) is above
    1/2."""
    return tf.where(drawn[:, :, None, None] > 0.5, tf.image.flip_left_right(images), images)


def rand_augment(
    image: tf.Tensor, seed: tf.Tensor, operations: int, magnitude: float = 0.5
) -> tf.Tensor:
    """RandAugment (Cubuk et al., 2020) with keras-cv's ten operations and their ranges.

    Each of `operations` times one of the ten is taken at random and applied with probability
    10/11, as `keras_cv.layers.RandAugment` does.

    Args:
      image: float32 (H, W, 3), pixels 0 to 255.
      seed: shape (2,).
      operations: how many are applied, one after the other.
      magnitude: how strong they are, 0 to 1.
    """
    import keras_cv

    layers = keras_cv.layers.RandAugment.get_standard_policy((0, 255), magnitude, _SPREAD)
    policy = list(zip(layers, _DRAWS, strict=True))
    for number in range(operations):
        which, whether, how = tf.unstack(
            tf.random.experimental.stateless_split(
                tf.random.experimental.stateless_fold_in(seed, number), 3
            )
        )
        index = tf.random.stateless_uniform([], which, 0, len(policy), tf.int32)
        applied = tf.random.stateless_uniform([], whether) < _RATE
        branches = [_branch(layer, draw(how, magnitude), image) for layer, draw in policy]
        image = tf.switch_case(tf.where(applied, index, len(policy)), branches, lambda i=image: i)
    return image


def _branch(layer: Any, numbers: Any, image: tf.Tensor) -> Callable[[], tf.Tensor]:
    def apply() -> tf.Tensor:
        augmented = layer.augment_images(image[tf.newaxis], transformations=numbers)[0]
        return tf.ensure_shape(augmented, image.shape)

    return apply


def _pair(seed: tf.Tensor) -> list[tf.Tensor]:
    return tf.unstack(tf.random.experimental.stateless_split(seed, 2))


def _normal(seed: tf.Tensor, mean: float, limit: float, shape: tuple[int, ...]) -> tf.Tensor:
    """Around `mean * limit`, clipped to 0 to `limit`."""
    value = tf.random.stateless_normal(shape, seed, mean * limit, _SPREAD * limit)
    return tf.clip_by_value(value, 0.0, limit)


def _uniform(seed: tf.Tensor, middle: float, reach: float, shape: tuple[int, ...]) -> tf.Tensor:
    return tf.random.stateless_uniform(shape, seed, middle - reach, middle + reach)


def _solarization(seed: tf.Tensor, magnitude: float) -> dict[str, tf.Tensor]:
    addition, threshold = _pair(seed)
    return {
        "additions": _normal(addition, magnitude, _SOLARIZE_ADDITION, _PIXELS),
        "thresholds": _normal(threshold, 1 - magnitude, 255.0, _PIXELS),
    }


def _shear(seed: tf.Tensor, magnitude: float, axis: str) -> dict[str, tf.Tensor | None]:
    sign, size = _pair(seed)
    value = _normal(size, magnitude, 1.0, _ONE)
    value = tf.where(tf.random.stateless_uniform(_ONE, sign) < 0.5, -value, value)
    return {"shear_x": None, "shear_y": None, f"shear_{axis}": value}


def _translation(seed: tf.Tensor, magnitude: float, axis: str) -> dict[str, tf.Tensor]:
    still = dict.fromkeys(("width_translations", "height_translations"), tf.zeros(_ONE))
    return still | {f"{axis}_translations": _uniform(seed, 0.0, magnitude, _ONE)}


# What `augment_images` of each of RandAugment's layers takes for one image, in the policy's order.
_DRAWS: tuple[Draw, ...] = (
    lambda seed, magnitude: None,  # autocontrast
    lambda seed, magnitude: None,  # equalization
    _solarization,
    lambda seed, magnitude: _normal(seed, magnitude, 1.0, _PIXELS),  # loss of colour
    lambda seed, magnitude: _uniform(seed, 1.0, magnitude, _PIXELS),  # contrast
    lambda seed, magnitude: 255.0 * _uniform(seed, 0.0, magnitude, _PIXELS),  # brightness
    lambda seed, magnitude: _shear(seed, magnitude, "x"),
    lambda seed, magnitude: _shear(seed, magnitude, "y"),
    lambda seed, magnitude: _translation(seed, magnitude, "width"),
    lambda seed, magnitude: _translation(seed, magnitude, "height"),
)

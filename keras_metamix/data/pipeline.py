"""tf.data pipelines: shuffled and augmented training batches, plain evaluation batches."""

import numpy as np
import tensorflow as tf

from keras_metamix.checks import require_whole, shown

# Mean and standard deviation of the full Fashion-MNIST training set's pixels scaled to [0, 1].
MEAN = 0.2860
STD = 0.3530
PAD = 2


def normalize(images: np.ndarray | tf.Tensor) -> np.ndarray | tf.Tensor:
    """Returns float32 `(images - MEAN) / STD` of pixels in [0, 1], in the shape given.

    uint8 images (0-255) are divided by 255 first; float images are taken to be in [0, 1] already.
    A NumPy array gives a NumPy array, a tensor gives a tensor. Raises ValueError for other types.
    """
    if not hasattr(images, "dtype"):
        raise ValueError(f"expected uint8 or float images, found {shown(images)}")
    is_tensor = tf.is_tensor(images)
    dtype = np.dtype(getattr(images.dtype, "as_numpy_dtype", images.dtype))
    if dtype != np.uint8 and not np.issubdtype(dtype, np.floating):
        raise ValueError(f"expected uint8 or float images, found {dtype.name}")
    pixels = tf.cast(images, tf.float32) if is_tensor else images.astype(np.float32)
    if dtype == np.uint8:
        pixels = pixels / np.float32(255)
    return (pixels - np.float32(MEAN)) / np.float32(STD)


def training_dataset(
    images: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
    seed: int,
    augment: bool = True,
    num_classes: int = 10,
) -> tf.data.Dataset:
    """Returns batches for training: shuffled anew every epoch, incomplete last batch dropped.

    `images` is (N, H, W, C), uint8 in 0-255 or float in [0, 1]; `labels` is (N,), integers in
    [0, num_classes). Elements are `(images, labels)`: normalised float32 (batch_size, H, W, C)
    and int64 (batch_size,). With `augment` every image is mirrored with probability 1/2 and
    shifted by -2 to 2 pixels in each direction (uniformly; zero pixels move in), which is padding
    by 2 and cropping.

    Two datasets built with the same arguments give the same batches in their first, second, ...
    iteration, complete or not (if `tf.random.set_seed` is used, with the same global seed at
    building). Under tf.distribute, `fit` begins one more iteration before its first epoch.

    Raises ValueError if the arrays do not fit the above or hold fewer than `batch_size` images.
    """
    images, labels = _validate(images, labels, batch_size, num_classes)
    require_whole("seed", seed, -(2**63))
    if batch_size > len(images):
        raise ValueError(f"expected batch_size <= {len(images)} images, found {batch_size}")
    indices = tf.data.Dataset.range(len(images))
    indices = indices.shuffle(len(images), seed=seed, reshuffle_each_iteration=True)
    batches = _gather(indices.batch(batch_size, drop_remainder=True), images, labels)
    if augment:
        batches = _augment(batches, seed)
    return _in_order(batches)


def evaluation_dataset(
    images: np.ndarray, labels: np.ndarray, batch_size: int, num_classes: int = 10
) -> tf.data.Dataset:
    """Returns every image once, in order, normalised; the last batch may be smaller.

    Arrays, elements and errors are those of `training_dataset`.
    """
    images, labels = _validate(images, labels, batch_size, num_classes)
    return _in_order(_gather(tf.data.Dataset.range(len(images)).batch(batch_size), images, labels))


def _gather(indices: tf.data.Dataset, images: np.ndarray, labels: np.ndarray) -> tf.data.Dataset:
    """Turns batches of indices into normalised batches.

    Shuffling indices and fetching whole batches is twice as fast as shuffling single images.
    """
    all_images, all_labels = tf.constant(images), tf.constant(labels)

    def fetch(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return normalize(tf.gather(all_images, index)), tf.gather(all_labels, index)

    return indices.map(fetch, num_parallel_calls=tf.data.AUTOTUNE)


def _augment(batches: tf.data.Dataset, seed: int) -> tf.data.Dataset:
    """Mirrors and shifts each image; the random numbers depend on seed, epoch and batch alone.

    They are drawn here and handed to the keras-cv layer's batch method: the layer's own generator
    is stateful, so that parallel calls, prefetching and an iterator left half-way would change
    what a later epoch gets.
    """
    import keras_cv

    flip = keras_cv.layers.RandomFlip("horizontal", dtype="float32")
    seeds = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).batch(2)

    def transform(
        batch: tuple[tf.Tensor, tf.Tensor], seed_pair: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        images, labels = batch
        count = tf.shape(images)[0]
        flip_seed, shift_seed = tf.unstack(tf.random.experimental.stateless_split(seed_pair, 2))
        # The layer mirrors an axis where its number is above 1/2: vertically never.
        mirror = tf.random.stateless_uniform([count, 1], flip_seed)
        mirrored = flip.augment_images(
            images, {"flip_horizontals": mirror, "flip_verticals": tf.zeros_like(mirror)}
        )
        offsets = tf.random.stateless_uniform(
            [count, 2], shift_seed, minval=-PAD, maxval=PAD + 1, dtype=tf.int32
        )
        return tf.ensure_shape(_shift(mirrored, offsets), images.shape), labels

    return tf.data.Dataset.zip(batches, seeds).map(transform, num_parallel_calls=tf.data.AUTOTUNE)


def _shift(images: tf.Tensor, offsets: tf.Tensor) -> tf.Tensor:
    """Crops each image of (B, H, W, C) from its padded copy at int32 `offsets` (B, 2) as (x, y).

    keras_cv.layers.RandomCrop is not used: its offsets are not whole pixels, so that a quarter of
    its crops skip a row or a column, and its outermost positions come half as often.
    """
    dx, dy = tf.unstack(tf.cast(offsets, tf.float32), axis=1)
    zero, one = tf.zeros_like(dx), tf.ones_like(dx)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack([one, zero, dx, zero, one, dy, zero, zero], axis=1),
        output_shape=tf.shape(images)[1:3],
        fill_value=float(normalize(np.zeros(1, np.uint8))[0]),
        interpolation="NEAREST",
        fill_mode="CONSTANT",
    )


def _in_order(batches: tf.data.Dataset) -> tf.data.Dataset:
    options = tf.data.Options()
    options.deterministic = True
    return batches.with_options(options).prefetch(tf.data.AUTOTUNE)


def _validate(
    images: np.ndarray, labels: np.ndarray, batch_size: int, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the arrays with float images as float32 and labels as int64, or ValueError."""
    try:
        images, labels = np.asarray(images), np.asarray(labels)
    except ValueError as error:  # arrays of several shapes in a list
        raise ValueError(f"expected images and labels of one shape each: {error}") from error
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"expected batch_size >= 1, found {shown(batch_size)}")
    require_whole("num_classes", num_classes, 1)
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"expected images of shape (N, H, W, C), found shape {images.shape}")
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"expected labels of shape ({len(images)},), one per image, found shape {labels.shape}"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"expected integer labels, found {labels.dtype}")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"expected labels in 0 to {num_classes - 1}, found {labels.min()} to {labels.max()}"
        )
    if images.dtype != np.uint8:
        images = _validate_float(images)
    return images, labels.astype(np.int64)


def _validate_float(images: np.ndarray) -> np.ndarray:
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"expected uint8 or float images, found {images.dtype}")
    finite = np.isfinite(images)
    if not finite.all():
        raise ValueError(
            f"expected finite images, found {np.count_nonzero(~finite)} NaN or infinite values "
            f"in {np.count_nonzero(~finite.all((1, 2, 3)))} of {len(images)} images"
        )
    if images.min() < 0 or images.max() > 1:
        raise ValueError(
            f"expected float images in [0, 1], found {images.min():g} to {images.max():g}"
        )
    return images.astype(np.float32)

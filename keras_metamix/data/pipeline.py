"""tf.data pipelines: shuffled and augmented training batches, plain evaluation batches."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from keras_metamix.checks import require_whole, shown
from keras_metamix.data.augmentation import mirrored
from keras_metamix.data.order import ALL, Share, in_order, ordered

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


_BLACK = float(normalize(np.zeros(1, np.uint8))[0])


def training_dataset(
    images: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
    seed: int,
    augment: bool = True,
    num_classes: int = 10,
    start_step: int = 0,
    share: Share = ALL,
) -> tf.data.Dataset:
    """Batches for training, epoch after epoch without an end; give `fit` its `steps_per_epoch`.

    An epoch has `len(images) // batch_size` batches; the images that are over differ from epoch
    to epoch. Elements are `(images, labels)`: normalised float32 (batch_size, H, W, C) and int64
    (batch_size,), or (batch_size, H, W) where each pixel has a label. With `augment` every image is
    mirrored with probability 1/2 and shifted by -2 to 2 pixels in each direction (uniformly; zero
    pixels, of class 0, move in), which is padding by 2 and cropping; its pixels' labels move alike.

    Args:
      images: (N, H, W, C), uint8 in 0-255 or float in [0, 1].
      labels: (N,) or (N, H, W), integers in [0, num_classes).
      batch_size: at most N.
      seed: of order and augmentation. Equal arguments give equal batches.
      augment, num_classes: see above.
      start_step: number of the first batch, counted from the first epoch's begin.
      share: what of each batch is read, where several workers train.

    Raises:
      ValueError: the arrays do not fit the above, or `batch_size` or `start_step` is out of range.
    """
    images, labels = _validate(images, labels, batch_size, num_classes)
    fetch = _fetcher(images, labels)

    def batch(numbers: tf.Tensor, drawn: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        found, named = fetch(numbers)
        if not augment:
            return found, named
        if named.shape.rank == 1:
            return _augmented(found, drawn, _BLACK), named
        return _augmented(found, drawn, _BLACK), _augmented(named[..., None], drawn, 0.0)[..., 0]

    places = ordered(len(images), batch_size, seed, start_step, share)
    numbers = places.map(lambda number, seed: (number, tf.random.stateless_uniform([3], seed)))
    numbers = numbers.batch(share.batch_size(batch_size), drop_remainder=True)
    return in_order(numbers.map(batch, num_parallel_calls=tf.data.AUTOTUNE))


def evaluation_dataset(
    images: np.ndarray, labels: np.ndarray, batch_size: int, num_classes: int = 10
) -> tf.data.Dataset:
    """Returns every image once, in order, normalised; the last batch may be smaller.

    Arrays, elements and errors are those of `training_dataset`.
    """
    images, labels = _validate(images, labels, batch_size, num_classes)
    numbers = tf.data.Dataset.range(len(images)).batch(batch_size)
    return in_order(numbers.map(_fetcher(images, labels), num_parallel_calls=tf.data.AUTOTUNE))


def _fetcher(
    images: np.ndarray, labels: np.ndarray
) -> Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """Gives the normalised images and the labels of given numbers.

    Shuffling numbers and fetching whole batches is twice as fast as shuffling single images.
    """
    all_images, all_labels = tf.constant(images), tf.constant(labels)
    return lambda numbers: (
        normalize(tf.gather(all_images, numbers)),
        tf.cast(tf.gather(all_labels, numbers), tf.int64),
    )


def _augmented(images: tf.Tensor, drawn: tf.Tensor, border: float) -> tf.Tensor:
    """Mirrors and shifts each image by three numbers from 0 to 1, `drawn` (B, 3)."""
    offsets = tf.cast(drawn[:, 1:] * (2 * PAD + 1), tf.int32) - PAD
    return tf.ensure_shape(_shift(mirrored(images, drawn[:, :1]), offsets, border), images.shape)


def _shift(images: tf.Tensor, offsets: tf.Tensor, border: float) -> tf.Tensor:
    """Crops each image of (B, H, W, C) from its padded copy at int32 `offsets` (B, 2) as (x, y).

    What moves in has the value `border`.

    `keras.layers.RandomCrop` is not used: it draws one offset for all images of a batch.
    """
    dx, dy = tf.unstack(tf.cast(offsets, tf.float32), axis=1)
    zero, one = tf.zeros_like(dx), tf.ones_like(dx)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack([one, zero, dx, zero, one, dy, zero, zero], axis=1),
        output_shape=tf.shape(images)[1:3],
        fill_value=border,
        interpolation="NEAREST",
        fill_mode="CONSTANT",
    )


def _validate(
    images: np.ndarray, labels: np.ndarray, batch_size: int, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the arrays with float images as float32, or ValueError."""
    try:
        images, labels = np.asarray(images), np.asarray(labels)
    except ValueError as error:  # arrays of several shapes in a list
        raise ValueError(f"expected images and labels of one shape each: {error}") from error
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"expected batch_size >= 1, found {shown(batch_size)}")
    require_whole("num_classes", num_classes, 1)
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"expected images of shape (N, H, W, C), found shape {images.shape}")
    shape, each = ((f"({len(images)},)", "image"), (images.shape[:3], "pixel"))[labels.ndim == 3]
    if labels.shape not in (images.shape[:1], images.shape[:3]):
        raise ValueError(
            f"expected labels of shape {shape}, one per {each}, found shape {labels.shape}"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"expected integer labels, found {labels.dtype}")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"expected labels in 0 to {num_classes - 1}, found {labels.min()} to {labels.max()}"
        )
    if images.dtype != np.uint8:
        images = _validate_float(images)
    return images, labels


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

"""Normalisation, order, augmentation and validation of the input pipelines."""

import numpy as np
import pytest
import tensorflow as tf

from keras_metamix.data import (
    MEAN,
    STD,
    Share,
    evaluation_dataset,
    normalize,
    training_dataset,
)


def sample(count: int = 70, shape: tuple[int, ...] = (28, 28, 1)) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.RandomState(0)
    return random.randint(0, 256, (count, *shape)).astype(np.uint8), np.arange(count) % 10


def collect(dataset: tf.data.Dataset) -> tuple[np.ndarray, np.ndarray]:
    images, labels = zip(*dataset.as_numpy_iterator(), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def training(images, labels, batch_size, seed, steps, **settings):
    """`steps` batches as arrays."""
    return collect(training_dataset(images, labels, batch_size, seed, **settings).take(steps))


def windows(image: np.ndarray) -> np.ndarray:
    """All 25 crops of the padded image, then their mirror images: (50, H, W, C)."""
    height, width, _ = image.shape
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    crops = [padded[y : y + height, x : x + width] for y in range(5) for x in range(5)]
    return np.stack(crops + [crop[:, ::-1] for crop in crops])


@pytest.mark.parametrize("convert", [np.asarray, tf.constant], ids=["numpy", "tensor"])
def test_normalize(convert):
    pixels = np.array([0, 51, 255], np.uint8)
    expected = (np.array([0, 0.2, 1]) - MEAN) / STD
    for images in (pixels, pixels / 255, (pixels / 255).astype(np.float32)):
        result = normalize(convert(images))
        assert isinstance(result, np.ndarray) == (convert is np.asarray)
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="expected uint8 or float images, found int32"):
        normalize(convert(pixels.astype(np.int32)))


def test_evaluation_gives_everything_in_order():
    images, labels = sample()
    dataset = evaluation_dataset(images, labels, 32)
    assert [len(b) for _, b in dataset] == [32, 32, 6] and len(dataset) == 3
    got_images, got_labels = collect(dataset)
    np.testing.assert_allclose(got_images, normalize(images), atol=1e-6)
    np.testing.assert_array_equal(got_labels, labels)
    assert got_images.dtype == np.float32 and got_labels.dtype == np.int64


def test_training_shapes_and_pairs():
    images, labels = sample()
    dataset = training_dataset(images, labels, 32, seed=1, augment=False)
    assert dataset.cardinality() == tf.data.INFINITE_CARDINALITY
    assert dataset.element_spec[0].shape == (32, 28, 28, 1)
    got_images, got_labels = collect(dataset.take(2))
    assert got_images.dtype == np.float32 and got_labels.dtype == np.int64
    reference = {i.tobytes(): n for n, i in enumerate(images)}
    raw = np.rint((got_images * STD + MEAN) * 255).astype(np.uint8)
    positions = [reference[i.tobytes()] for i in raw]
    assert len(set(positions)) == 64
    np.testing.assert_array_equal(got_labels, labels[positions])


def test_an_epoch_has_every_image_once_where_batches_divide_them():
    images, labels = np.zeros((64, 8, 8, 1), np.uint8), np.arange(64) % 10
    images[:, 0, 0, 0] = np.arange(64)
    found = training(images, labels, 16, 3, 8, augment=False)[0][:, 0, 0, 0]
    numbers = np.rint((found * STD + MEAN) * 255).astype(int)
    first, second = numbers[:64], numbers[64:]
    assert sorted(first) == sorted(second) == list(range(64))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("augment", [False, True])
def test_epochs_differ_and_repeat_with_the_seed(augment):
    images, labels = sample(640)
    first, again = (training(images, labels, 64, 7, 20, augment=augment)[0] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first[:640], first[640:])
    other = training(images, labels, 64, 8, 10, augment=augment)[0]
    assert not np.array_equal(first[:640], other)


@pytest.mark.parametrize("start", [1, 9, 10, 25])
def test_a_start_step_gives_the_rest_of_the_same_batches(start):
    images, labels = sample(330)  # 10 batches an epoch, and 10 images over
    whole = training(images, labels, 32, 7, start + 3)
    rest = training(images, labels, 32, 7, 3, start_step=start)
    for ours, theirs in zip(rest, whole, strict=True):
        np.testing.assert_array_equal(ours, theirs[start * 32 :])


@pytest.mark.parametrize(("parts", "count"), [(2, 1), (4, 1), (4, 2)])
def test_the_shares_of_workers_make_up_the_global_batch(parts, count):
    """A worker of `count` replicas reads their pieces, one after the other."""
    images, labels = sample(100)
    whole = training(images, labels, 32, 7, 5, start_step=2)[0].reshape(5, 32, 28, 28, 1)
    pieces = []
    for first in range(0, parts, count):
        share = Share(parts, first, count)
        mine = training(images, labels, 32, 7, 5 * count, start_step=2, share=share)[0]
        pieces.append(mine.reshape(5, 32 // parts * count, 28, 28, 1))
    np.testing.assert_array_equal(np.concatenate(pieces, 1), whole)


def test_a_batch_that_replicas_cannot_divide_is_refused():
    with pytest.raises(ValueError, match=r"a multiple of 3 \(replicas\), found 32"):
        training_dataset(*sample(), 32, seed=0, share=Share(3, 0, 1))


@pytest.mark.parametrize("shape", [(28, 28, 1), (9, 12, 3), (96, 64, 3)])
def test_augmentation_is_mirrored_padded_crops_uniformly(shape):
    images, labels = sample(1, shape)
    count = 2000
    dataset = training_dataset(np.repeat(images, count, 0), np.repeat(labels, count), 500, seed=3)
    assert dataset.element_spec[0].shape == (500, *shape)
    raw = np.rint((collect(dataset.take(4))[0] * STD + MEAN) * 255).astype(np.uint8)
    known = {w.tobytes(): n for n, w in enumerate(windows(images[0]))}
    found = np.array([known.get(i.tobytes(), -1) for i in raw])
    assert (found >= 0).all(), f"{(found < 0).sum()} images are no crop of the padded image"
    counts = np.bincount(found, minlength=50)
    # Chi-squared with 49 degrees of freedom: above 94 once in 10,000.
    assert ((counts - count / 50) ** 2 / (count / 50)).sum() < 94


def test_float_images_equal_their_bytes():
    images, labels = sample()
    as_bytes = training(images, labels, 32, 1, 2)[0]
    as_floats = training(images / 255, labels, 32, 1, 2)[0]
    np.testing.assert_allclose(as_bytes, as_floats, atol=1e-6)


def broken(value: float) -> np.ndarray:
    images = np.zeros((4, 8, 8, 1), np.float32)
    images[1, 2, 3, 0] = value
    return images


LABELS = np.arange(4)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (broken(np.nan), LABELS, "finite images, found 1 NaN or infinite values in 1 of 4"),
        (broken(-np.inf), LABELS, "finite images, found 1 NaN or infinite"),
        (broken(255.0), LABELS, r"float images in \[0, 1\], found 0 to 255"),
        (broken(0)[..., 0], LABELS, r"shape \(N, H, W, C\), found shape \(4, 8, 8\)"),
        (broken(0)[:0], LABELS[:0], r"found shape \(0, 8, 8, 1\)"),
        (broken(0).astype(np.int64), LABELS, "uint8 or float images, found int64"),
        (broken(0), LABELS[:3], r"labels of shape \(4,\), one per image, found shape \(3,\)"),
        (broken(0), np.eye(4), r"labels of shape \(4,\), one per image, found shape \(4, 4\)"),
        (broken(0), LABELS / 2, "integer labels, found float64"),
        (broken(0), LABELS + 7, "labels in 0 to 9, found 7 to 10"),
        (broken(0), LABELS - 1, "labels in 0 to 9, found -1 to 2"),
    ],
)
@pytest.mark.parametrize("build", ["training", "evaluation"])
def test_wrong_arrays_are_refused(build, images, labels, message):
    with pytest.raises(ValueError, match=message):
        if build == "training":
            training_dataset(images, labels, 2, seed=0)
        else:
            evaluation_dataset(images, labels, 2)


def test_wrong_batch_sizes_are_refused():
    with pytest.raises(ValueError, match="batch_size: expected 1 to 4 images, found 5"):
        training_dataset(broken(0), LABELS, 5, seed=0)
    with pytest.raises(ValueError, match="start_step: expected 0 or more, found -1"):
        training_dataset(broken(0), LABELS, 2, seed=0, start_step=-1)
    with pytest.raises(ValueError, match="batch_size >= 1, found 0"):
        evaluation_dataset(broken(0), LABELS, 0)

"""Normalisation, order, augmentation and validation of the input pipelines."""

import numpy as np
import pytest
import tensorflow as tf

from keras_metamix.data import MEAN, STD, evaluation_dataset, normalize, training_dataset


def sample(count: int = 70, shape: tuple[int, ...] = (28, 28, 1)) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.RandomState(0)
    return random.randint(0, 256, (count, *shape)).astype(np.uint8), np.arange(count) % 10


def collect(dataset: tf.data.Dataset) -> tuple[np.ndarray, np.ndarray]:
    images, labels = zip(*dataset.as_numpy_iterator(), strict=True)
    return np.concatenate(images), np.concatenate(labels)


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
    assert len(dataset) == 2
    assert dataset.element_spec[0].shape == (32, 28, 28, 1)
    got_images, got_labels = collect(dataset)
    reference = {i.tobytes(): n for n, i in enumerate(images)}
    raw = np.rint((got_images * STD + MEAN) * 255).astype(np.uint8)
    positions = [reference[i.tobytes()] for i in raw]
    assert len(set(positions)) == 64
    np.testing.assert_array_equal(got_labels, labels[positions])


@pytest.mark.parametrize("augment", [False, True])
def test_epochs_differ_and_repeat_with_the_seed(augment):
    images, labels = sample(640)
    first, second = (training_dataset(images, labels, 64, 7, augment) for _ in range(2))
    epochs = [[collect(d)[0] for _ in range(2)] for d in (first, second)]
    np.testing.assert_array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[0][0], epochs[0][1])
    other = collect(training_dataset(images, labels, 64, 8, augment))[0]
    assert not np.array_equal(epochs[0][0], other)


def test_an_iterator_left_half_way_does_not_change_the_next_epoch():
    images, labels = sample(640)
    whole, half = (training_dataset(images, labels, 32, seed=7) for _ in range(2))
    collect(whole)
    collect(half.take(3))
    next(iter(half))
    collect(whole)
    np.testing.assert_array_equal(collect(whole)[0], collect(half)[0])


@pytest.mark.parametrize("shape", [(28, 28, 1), (9, 12, 3), (96, 64, 3)])
def test_augmentation_is_mirrored_padded_crops_uniformly(shape):
    images, labels = sample(1, shape)
    count = 2000
    dataset = training_dataset(np.repeat(images, count, 0), np.repeat(labels, count), 500, seed=3)
    assert dataset.element_spec[0].shape == (500, *shape)
    raw = np.rint((collect(dataset)[0] * STD + MEAN) * 255).astype(np.uint8)
    known = {w.tobytes(): n for n, w in enumerate(windows(images[0]))}
    found = np.array([known.get(i.tobytes(), -1) for i in raw])
    assert (found >= 0).all(), f"{(found < 0).sum()} images are no crop of the padded image"
    counts = np.bincount(found, minlength=50)
    # Chi-squared with 49 degrees of freedom: above 94 once in 10,000.
    assert ((counts - count / 50) ** 2 / (count / 50)).sum() < 94


def test_float_images_equal_their_bytes():
    images, labels = sample()
    as_bytes = collect(training_dataset(images, labels, 32, seed=1))[0]
    as_floats = collect(training_dataset(images / 255, labels, 32, seed=1))[0]
    np.testing.assert_allclose(as_bytes, as_floats, atol=1e-6)


def test_one_batch_trains_the_whole_set():
    images, labels = sample(16)
    assert len(list(training_dataset(images, labels, 16, seed=0))) == 1


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
    with pytest.raises(ValueError, match="batch_size <= 4 images, found 5"):
        training_dataset(broken(0), LABELS, 5, seed=0)
    with pytest.raises(ValueError, match="batch_size >= 1, found 0"):
        evaluation_dataset(broken(0), LABELS, 0)

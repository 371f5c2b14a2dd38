"""Scenes of garments: what lies where, and which garments they are made of."""

import numpy as np
import pytest

from keras_metamix import data
from keras_metamix.data import scenes

LABELS = np.arange(10)
SHADES = np.array([0, 232, 238, 244, 250])  # of each group, far from most grounds


@pytest.fixture(scope="module")
def squares():
    """A garment of each label that fills its image, in the shade of its group."""
    shades = SHADES[scenes.GROUPS].astype(np.uint8)
    return np.broadcast_to(shades[:, None, None, None], (10, 28, 28, 1))


def test_a_scene_depends_on_seed_and_number_alone(squares):
    images, masks = data.compose(squares, LABELS, 6, 48, seed=3)
    assert images.shape == (6, 48, 48, 1) and masks.shape == (6, 48, 48)
    assert images.dtype == masks.dtype == np.uint8
    for found, again in zip((images, masks), data.compose(squares, LABELS, 4, 48, 3), strict=True):
        np.testing.assert_array_equal(found[:4], again)
    assert len({image.tobytes() for image in images}) == 6
    assert not np.array_equal(data.compose(squares, LABELS, 6, 48, seed=4)[0], images)


def test_the_mask_is_where_the_garments_lie(squares):
    images, masks = data.compose(squares, LABELS, 60, 64)
    np.testing.assert_array_equal(images[..., 0][masks > 0], SHADES[masks[masks > 0]])
    assert {*np.unique(masks)} == {0, 1, 2, 3, 4}
    for image, mask in zip(images[..., 0], masks, strict=True):
        # Each garment is a square of 25 to 39 pixels: the last one is whole.
        sides = [np.ptp(np.flatnonzero(mask == g)) // 64 + 1 for g in np.unique(mask) if g]
        assert max(sides) >= 25 and 25**2 <= np.count_nonzero(mask) <= 3 * 39**2
        ground = image[mask == 0].astype(float)
        assert ground.std() > 3  # it is no plain colour


def test_black_around_a_garment_is_ground(squares):
    garments = squares.copy()
    garments[:, :, :14] = 0
    _, masks = data.compose(garments, LABELS, 40, 64)
    widths = [np.ptp(np.flatnonzero((m > 0).any(0))) + 1 for m in masks]
    assert min(widths) in range(12, 16)  # of one garment alone, half of 25 pixels or more


def test_real_garments_hide_on_cloth():
    """No threshold of brightness finds them."""
    garments, labels = data.load_extract()[0]
    images, masks = data.compose(garments, labels, 100, 64)
    right = [np.mean((images[..., 0] > t) == (masks > 0)) for t in range(0, 256, 8)]
    share = np.mean(masks > 0)
    assert 0.1 < share < 0.3 and max(right) < 1 - share + 0.05
    assert min(np.bincount(masks.ravel())) > 0.01 * masks.size


@pytest.mark.parametrize(
    ("labels", "size", "message"),
    [
        (LABELS, 39, "image_size: expected .* 40.*, found 39"),
        (np.where(LABELS == 8, 9, LABELS), 64, "expected some of the group 'bags', found none"),
    ],
)
def test_what_cannot_be_composed(squares, labels, size, message):
    with pytest.raises(ValueError, match=message):
        data.compose(squares, labels, 1, size)


def test_masks_move_as_their_images_do():
    """The image shows its own mask: black is class 0, and moves in at borders."""
    masks = np.random.default_rng(0).integers(0, 5, (8, 12, 10)).astype(np.uint8)
    images = (60 * masks)[..., None]
    batches = data.training_dataset(images, masks, 8, seed=1, num_classes=5)
    moved = 0
    for found, labels in batches.take(6).as_numpy_iterator():
        shown = np.rint((found[..., 0] * data.STD + data.MEAN) * 255 / 60)
        np.testing.assert_array_equal(shown, labels)
        assert labels.dtype == np.int64 and labels.shape == (8, 12, 10)
        known = {mask.tobytes() for mask in masks.astype(np.int64)}
        moved += sum(mask.tobytes() not in known for mask in labels)
    assert moved > 40  # of 48: few stay as they were
    plain = data.training_dataset(images, masks, 8, seed=1, augment=False, num_classes=5)
    for _, labels in plain.take(1).as_numpy_iterator():
        assert {m.tobytes() for m in labels} == known


def test_masks_of_another_size_are_refused():
    images = np.zeros((2, 8, 8, 1), np.uint8)
    with pytest.raises(
        ValueError, match=r"shape \(2, 8, 8\), one per pixel, found shape \(2, 8, 7\)"
    ):
        data.evaluation_dataset(images, np.zeros((2, 8, 7), int), 2)

"""Scenes for segmentation: garments of Fashion-MNIST on textured ground, and which pixel is what.

A scene is made of real images alone: its ground is the cloth of one garment, repeated as a mirrored
pattern under a gradient of light and some noise; on it lie one to three garments, of which later
ones may cover earlier ones.
"""

from __future__ import annotations

import numpy as np

from keras_metamix.checks import require_whole

NAME = "fashion_mnist_scenes"
CLASSES = ("ground", "tops", "trousers", "shoes", "bags")
# Of Fashion-MNIST's labels: T-shirt, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag,
# ankle boot. Dresses are among the tops.
GROUPS = np.array([1, 2, 1, 1, 1, 3, 1, 3, 4, 3])
MOST_GARMENTS = 3
_SCALES = 0.9, 1.4  # of a garment's 28 pixels
LEAST_SIZE = 40  # so that the largest fits
_FAINT = 24  # what is darker belongs to the black around a garment
_CLOTH = slice(8, 20)  # the middle of a garment, in both directions


def compose(
    images: np.ndarray, labels: np.ndarray, count: int, size: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Scenes of some garments; scene k is the same for any `count`.

    Args:
      images: the garments, uint8 (N, 28, 28, 1) as Fashion-MNIST has them.
      labels: theirs, (N,), 0 to 9; each of the four groups occurs, if there are scenes.
      count: how many scenes.
      size: their height and width in pixels, at least 40.
      seed: of all that is drawn.

    Returns:
      Images, uint8 (count, size, size, 1), and the class of each pixel as a number in `CLASSES`,
      uint8 (count, size, size).

    Raises:
      ValueError: a size below 40, fewer than no scenes, or a group without a garment; names it.
    """
    require_whole("count", count, 0)
    require_whole("image_size", size, LEAST_SIZE)
    groups = GROUPS[labels]
    members = [np.flatnonzero(groups == group) for group in range(1, len(CLASSES))]
    for name, found in zip(CLASSES[1:], members, strict=True):
        if count and not len(found):
            raise ValueError(f"labels: expected some of the group {name!r}, found none.")
    scenes = np.empty((count, size, size, 1), np.uint8)
    masks = np.zeros((count, size, size), np.uint8)
    for scene, mask, number in zip(scenes, masks, range(count), strict=True):
        generator = np.random.default_rng([seed, number])
        scene[..., 0] = _ground(images[generator.integers(len(images)), ..., 0], size, generator)
        for _ in range(generator.integers(1, MOST_GARMENTS + 1)):
            group = int(generator.integers(1, len(CLASSES)))
            garment = images[generator.choice(members[group - 1]), ..., 0]
            _lay(garment, group, scene[..., 0], mask, generator)
    return scenes, masks


def _ground(garment: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
    """The middle of a garment as a mirrored pattern, with a gradient and noise; (size, size)."""
    cloth = garment[_CLOTH, _CLOTH].astype(np.float64)
    cloth = (cloth - cloth.mean()) / (cloth.std() + 1)
    cloth = np.block([[cloth, cloth[:, ::-1]], [cloth[::-1], cloth[::-1, ::-1]]])
    cloth = _resized(cloth, round(len(cloth) * generator.uniform(1, 2.5)))
    repeats = -(-size // len(cloth))
    cloth = np.tile(cloth, (repeats, repeats))[:size, :size]
    slopes, axis = generator.uniform(-60, 60, 2), np.linspace(-0.5, 0.5, size)
    light = slopes[0] * axis[:, None] + slopes[1] * axis
    ground = generator.uniform(40, 190) + generator.uniform(8, 40) * cloth + light
    return np.clip(ground + generator.normal(0, 6, ground.shape), 0, 255).astype(np.uint8)


def _lay(
    garment: np.ndarray,
    group: int,
    scene: np.ndarray,
    mask: np.ndarray,
    generator: np.random.Generator,
) -> None:
    """Puts a garment, enlarged and perhaps mirrored, anywhere into a scene and its mask."""
    enlarged = _resized(garment.astype(np.float64), round(28 * generator.uniform(*_SCALES)))
    if generator.random() < 0.5:
        enlarged = enlarged[:, ::-1]
    top, left = generator.integers(0, len(scene) - len(enlarged) + 1, 2)
    place = slice(top, top + len(enlarged)), slice(left, left + len(enlarged))
    inside = enlarged >= _FAINT
    scene[place][inside] = enlarged[inside]
    mask[place][inside] = group


def _resized(square: np.ndarray, size: int) -> np.ndarray:
    """A square image in another size, bilinear, its outer pixels at the outer pixels."""
    places = np.linspace(0, len(square) - 1, size)
    low = np.minimum(places.astype(int), len(square) - 2)
    share = places - low
    rows = square[low] * (1 - share)[:, None] + square[low + 1] * share[:, None]
    return rows[:, low] * (1 - share) + rows[:, low + 1] * share

"""Twenty labelled ImageNet photographs out of foolbox's wheel, as EfficientNet-Lite0 reads them."""

from __future__ import annotations

import dataclasses
import io
import zipfile
from pathlib import Path

import numpy as np
from efficientnet_lite0_model import INPUT_SHAPE
from PIL import Image
from wheels import Wheel

PICTURES = Wheel(
    "foolbox",
    "3.3.4",
    "foolbox-3.3.4-py3-none-any.whl",
    "11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb",
)
CROPS = 2  # of each calibration picture
CROP_FRACTION = 0.875  # the evaluation's central crop: 224 of 256


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Photographs as the network takes them, with their ImageNet classes.

    Attributes:
      images: shape (pictures, 224, 224, 3), the central crop of each.
      labels: shape (pictures,).
      held_out: shape (pictures,), whether a picture took no part in calibration.
      calibration: shape (crops, 224, 224, 3), random crops of the others.
    """

    images: np.ndarray
    labels: np.ndarray
    held_out: np.ndarray
    calibration: np.ndarray


def read_pictures(folder: Path) -> Pictures:
    """foolbox's twenty ImageNet pictures; every other one is for calibration."""
    with PICTURES.open(folder) as archive:
        names = sorted(n for n in archive.namelist() if n.startswith("foolbox/data/imagenet_"))
        pictures = [_decode(archive, name) for name in names]
    # imagenet_NUMBER_CLASS.jpg
    labels = np.array([int(Path(name).stem.split("_")[2]) for name in names])
    held_out = np.arange(len(names)) % 2 == 1
    rng = np.random.default_rng(0)
    crops = [
        _random_crop(picture, rng)
        for picture, held in zip(pictures, held_out, strict=True)
        if not held
        for _ in range(CROPS)
    ]
    central = [_central_crop(picture) for picture in pictures]
    return Pictures(np.stack(central), labels, held_out, np.stack(crops))


def _decode(archive: zipfile.ZipFile, name: str) -> Image.Image:
    return Image.open(io.BytesIO(archive.read(name))).convert("RGB")


def _central_crop(picture: Image.Image) -> np.ndarray:
    side = min(picture.size) * CROP_FRACTION
    return _crop(picture, (picture.width - side) / 2, (picture.height - side) / 2, side)


def _random_crop(picture: Image.Image, rng: np.random.Generator) -> np.ndarray:
    side = min(picture.size) * rng.uniform(0.6, 1.0)
    left, top = rng.uniform(0, picture.width - side), rng.uniform(0, picture.height - side)
    pixels = _crop(picture, left, top, side)
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels


def _crop(picture: Image.Image, left: float, top: float, side: float) -> np.ndarray:
    """A square as the network takes it; (x - 127) / 128 is what it was trained with."""
    box = (left, top, left + side, top + side)
    pixels = picture.resize(INPUT_SHAPE[:2], Image.Resampling.BICUBIC, box=box)
    return (np.asarray(pixels, np.float32) - 127.0) / 128.0

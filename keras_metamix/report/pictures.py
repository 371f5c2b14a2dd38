"""Pictures as text in `metrics.json`: images side by side, as a PNG in base64."""

from __future__ import annotations

import base64
import binascii
import io

import numpy as np
from matplotlib import image


def encoded(images: np.ndarray) -> str:
    """Images of one size side by side; uint8 (images, height, width, 1 or 3)."""
    pixels = np.concatenate([*images], axis=1)
    file = io.BytesIO()
    image.imsave(file, np.broadcast_to(pixels, (*pixels.shape[:2], 3)).copy(), format="png")
    return base64.b64encode(file.getvalue()).decode("ascii")


def decoded(text: str) -> np.ndarray:
    """What `encoded` wrote: uint8 (height, images x width, 3).

    Raises:
      ValueError: no PNG in base64.
    """
    try:
        pixels = image.imread(io.BytesIO(base64.b64decode(text, validate=True)), format="png")
    except (binascii.Error, OSError, SyntaxError, ValueError) as error:
        raise ValueError("expected a PNG in base64, found something else.") from error
    if pixels.ndim != 3:
        raise ValueError("expected a PNG in colours, found one in grey.")
    return np.rint(pixels[..., :3] * 255).astype(np.uint8)

"""A folded network rounds as the kernels of its file's target do."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import keras

from keras_metamix.layers.integer import in_fixed_point
from metamix_tflite.targets import Target


@contextlib.contextmanager
def rounded_for(target: Target, folded: keras.Model) -> Iterator[None]:
    """A folded network computes as a target's kernels do within.

    A warning names the layers whose arithmetic there is not known: they compute as XNNPACK.
    """
    if not target.fixed_point:
        yield
        return
    with in_fixed_point(folded) as unknown:
        if unknown:
            warnings.warn(
                f"Layers {', '.join(map(repr, unknown))}: how the kernels of target "
                f"{target.name!r} round them is not known: outputs may differ from the golden ones "
                "by a step or more. metamix-benchmark --device=micro measures it.",
                stacklevel=4,
            )
        yield

"""ImageNet weights of published Keras models, copied into the zoo's networks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras

IMAGENET_CLASSES = 1000


def check_weights_argument(
    weights: str | None,
    input_shape: tuple[int, int, int],
    classes: int,
    width: float,
    published: Sequence[float],
) -> None:
    """Checks that ImageNet weights exist for the network that is asked for.

    Args:
      weights: None (nothing else is checked) or "imagenet".
      input_shape, classes, width: the network's.
      published: the widths that there are weights of.

    Raises:
      ValueError: names the argument, what was expected and what was found.
    """
    if weights is None:
        return
    if weights != "imagenet":
        raise ValueError(f"weights: expected None or 'imagenet', found {weights!r}.")
    if classes != IMAGENET_CLASSES:
        raise ValueError(
            f"classes: expected {IMAGENET_CLASSES} with weights='imagenet', found {classes}."
        )
    if input_shape[-1] != 3:
        raise ValueError(
            "input_shape: expected three channels (RGB) with weights='imagenet', "
            f"found {input_shape}."
        )
    if width not in published:
        raise ValueError(
            f"width: expected one of {[*published]} with weights='imagenet', found {width}."
        )


@contextlib.contextmanager
def loading(source: str, remedy: str) -> Iterator[None]:
    """Any failure to fetch weights becomes one error that says what to do.

    Raises:
      OSError: names `source`, the cause and `remedy`.
    """
    try:
        yield
    except Exception as error:  # the downloaders raise plain Exceptions
        cause = " ".join(str(error).split())
        raise OSError(
            f"The ImageNet weights of {source} could not be loaded ({cause}). To go on: {remedy}"
        ) from error


def load_application(
    model: keras.Model, application: str, input_shape: tuple[int, int, int], width: float
) -> None:
    """Copies the weights of a model of `keras.applications`, layer by layer in network order.

    Args:
      model: the network, built with 1000 classes.
      application: the function's name in `keras.applications`.
      input_shape: one that there are weights for; no weight depends on it.
      width: its `alpha`.

    Raises:
      OSError: the download failed.
      ValueError: the networks differ; names the layers.
    """
    remedy = (
        "connect to the internet once (Keras keeps the file), or build the network with "
        "weights=None and use `load_weights` on a file that you have."
    )
    with loading(f"keras.applications.{application}", remedy):
        source = getattr(keras.applications, application)(
            input_shape=input_shape, alpha=width, include_top=True, weights="imagenet"
        )
    ours, theirs = ([x for x in m.layers if x.weights] for m in (model, source))
    if len(ours) != len(theirs):
        raise ValueError(
            f"{model.name}: expected {len(ours)} layers with weights in "
            f"keras.applications.{application}, found {len(theirs)}."
        )
    copy_weights(zip(ours, theirs, strict=True))


def copy_weights(pairs: Iterable[tuple[Any, Any]]) -> None:
    """Sets each first layer's weights to the second's.

    Raises:
      ValueError: their shapes differ; names both layers.
    """
    for ours, theirs in pairs:
        expected = [tuple(w.shape) for w in ours.weights]
        found = [tuple(w.shape) for w in theirs.weights]
        if expected != found:
            raise ValueError(
                f"Layer {ours.name!r}: expected weights of shapes {expected}, "
                f"found {found} in layer {theirs.name!r}."
            )
        ours.set_weights(theirs.get_weights())

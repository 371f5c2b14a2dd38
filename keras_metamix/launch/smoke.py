"""Shrinks a recipe until it runs in one to two minutes on two CPU cores."""

from __future__ import annotations

from collections.abc import Callable

from ml_collections import ConfigDict

from keras_metamix.data.imagenet_sample import NAME

ARGUMENT = "smoke"


def apply_argument(
    config: ConfigDict, argument: str, shrink: Callable[[ConfigDict], ConfigDict] | None = None
) -> ConfigDict:
    """What a recipe's `get_config(argument)` returns: the recipe, or with "smoke" a tiny one.

    The smoke run takes every step of the recipe. What it trains is worth nothing.

    Args:
      config: of the recipe.
      argument: what follows the file's name.
      shrink: makes it tiny; default: an ImageNet recipe, which then runs on JPEGs that the project
        draws (`data.imagenet_sample`).

    Raises:
      ValueError: another argument.
    """
    if argument not in ("", ARGUMENT):
        raise ValueError(
            f"config argument: expected {ARGUMENT!r}, as in FILE.py:{ARGUMENT}, or none, "
            f"found {argument!r}."
        )
    return (shrink or _shrink)(config) if argument else config


def _shrink(config: ConfigDict) -> ConfigDict:
    config.title += " (smoke)"
    config.data.name, config.data.dir = NAME, "runs/imagenet_sample"
    config.data.image_size, config.data.sample, config.data.validation = 48, (18, 16), 2.0
    # As after loading pretrained weights, no float training. Batch norm has two steps to learn what
    # those would bring: it has to forget at once the variances of 1 that it begins with.
    config.model.width, config.model.weights, config.model.momentum = 0.1, None, 0.01
    config.train.batch_size = 8
    if "mixer" in config:
        config.mixer.stage_epochs, config.mixer.images, config.mixer.front = (1, 1, 1), 16, 0
    else:
        config.train.epochs = 3
        # The paper's budgets are those of 224 x 224 pixels.
        config.search.target_bops, config.search.target_ratio = None, 0.95
    # Most of the time goes into building graphs: Adam's is larger, and so are those of weight decay
    # and clipping, and each phase would have one of its own to validate with.
    config.train.optimizer, config.train.weight_decay, config.train.clip_norm = "sgd", 0.0, 0.0
    config.train.validate_every, config.train.optimize_graphs = 3, False
    config.export.runs, config.export.test_images = 10, 16
    return config

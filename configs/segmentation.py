"""A mixed-precision U-Net that segments scenes of garments, in minutes on two CPU cores.

    metamix-train --config=configs/segmentation.py --workdir=runs/segmentation

The scenes are made of the Fashion-MNIST extract that the package holds. A tiny run of the same:

    metamix-train --config=configs/segmentation.py:smoke --workdir=runs/smoke

Schedules and learning rates are ours. docs/config.md lists all fields; each is a flag.
"""

from ml_collections import ConfigDict

from keras_metamix.launch.config import new_config
from keras_metamix.launch.smoke import apply_argument


def get_config(argument: str = "") -> ConfigDict:
    config = new_config("metamix")
    config.title = "segmentation"
    config.seed = 0

    config.data.name = "fashion_mnist_scenes"
    config.data.sample = (2200, 500)  # scenes to train and validate on, and to test on
    config.data.image_size = 64
    config.data.augment = True
    config.data.validation = 200  # of the former

    config.model.name = "small_unet"
    config.model.width = 8
    config.model.depth = 4

    config.space.activation_bits = (8, 4, 3)
    config.space.weight_bits = 4  # or several to search, or "same"
    config.space.edge_bits = 8
    config.space.stream_bits = 8

    config.float.epochs = 12
    config.float.learning_rate = 4e-3

    config.search.target_bops = None  # none given: target_ratio decides
    config.search.target_ratio = 0.9  # of what A4W4 everywhere, ends 8/8, costs
    config.search.meta_epochs = 1
    config.search.search_epochs = 1
    config.search.cost_strength = 8.0

    config.train.batch_size = 32
    config.train.epochs = 6  # search included
    config.train.learning_rate = 2e-3
    config.train.weight_decay = 0.0
    config.train.uniform = True  # a uniform A4W4 network beside, for as many epochs

    config.export.target = "cpu"
    config.export.threads = 1
    config.export.runs = 200
    return apply_argument(config, argument, _shrink)


def _shrink(config: ConfigDict) -> ConfigDict:
    """Every step of the run, on a few scenes."""
    config.title += " (smoke)"
    config.data.sample, config.data.image_size, config.data.validation = (72, 16), 48, 8
    config.model.width, config.model.depth = 4, 2
    config.float.epochs, config.train.epochs, config.train.batch_size = 1, 3, 16
    config.train.optimize_graphs, config.export.runs = False, 10
    return config

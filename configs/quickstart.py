"""A mixed-precision network for Fashion-MNIST in minutes on two CPU cores.

    metamix-train --config=configs/quickstart.py --workdir=runs/quickstart

The data is an extract of 10,000 + 2,000 images that the package holds; the full set:

    metamix-train --config=configs/quickstart.py --config.data.name=fashion_mnist

Schedules and learning rates are ours: the papers train ImageNet networks. docs/config.md lists all
fields; each is a flag.
"""

from ml_collections import ConfigDict

from keras_metamix.launch.config import new_config


def get_config() -> ConfigDict:
    config = new_config("metamix")
    config.title = "quickstart"
    config.seed = 0

    config.data.name = "fashion_mnist_extract"  # or "fashion_mnist": all 60,000 + 10,000 images
    config.data.augment = True
    config.data.validation = 0.1  # held out of training: a share, or a number of images; 0: none

    config.model.name = "small_resnet"
    config.model.width = 16
    config.model.stem_strides = 2

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

    config.train.batch_size = 128
    config.train.epochs = 8  # search included
    config.train.learning_rate = 1e-3
    config.train.weight_decay = 0.0
    config.train.uniform = True  # a uniform A4W4 network beside, for as many epochs

    config.export.target = "cpu"
    config.export.threads = 1
    config.export.runs = 200
    return config

"""One network for Fashion-MNIST that runs at 4, 3 and 2 bits, and mixtures, on two CPU cores.

    metamix-train --config=configs/bitmixer_quickstart.py --workdir=runs/bitmixer

The data is an extract of 10,000 + 2,000 images that the package holds; the full set:

    metamix-train --config=configs/bitmixer_quickstart.py --config.data.name=fashion_mnist

Schedules and learning rates are ours: the paper trains ImageNet networks. docs/config.md lists all
fields; each is a flag.
"""

from ml_collections import ConfigDict

from keras_metamix.launch.config import new_config


def get_config() -> ConfigDict:
    config = new_config("bitmixer")
    config.title = "Bit-Mixer quickstart"
    config.seed = 0

    config.data.name = "fashion_mnist_extract"  # or "fashion_mnist": all 60,000 + 10,000 images
    config.data.augment = True
    config.data.validation = 0.1  # held out of training: a share, or a number of images; 0: none

    config.model.name = "small_resnet"
    config.model.width = 16
    config.model.stem_strides = 2

    config.space.activation_bits = (4, 3, 2)
    config.space.weight_bits = "same"  # as its layer's activations, nested
    config.space.edge_bits = 8
    config.space.stream_bits = 8

    config.float.epochs = 12
    config.float.learning_rate = 4e-3

    config.mixer.batch_norm = "feeding"  # or "following", "switchable", "shared"
    config.mixer.stage_epochs = (4, 10, 20)
    config.mixer.in_place_distillation = 0.0
    # Signatures of the file, and their budgets: from 0, the fewest bits everywhere, to 1, the most.
    config.mixer.operating_points = ConfigDict({"full": 1.0, "balanced": 0.5, "eco": 0.2})

    config.train.batch_size = 128
    config.train.learning_rate = 2e-3
    config.train.weight_decay = 0.0

    config.export.target = "cpu"
    config.export.threads = 1
    config.export.runs = 200
    return config

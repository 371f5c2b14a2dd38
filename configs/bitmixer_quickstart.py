"""One network for Fashion-MNIST that runs at 4, 3 and 2 bits, and mixtures, on two CPU cores.

    metamix-train --config=configs/bitmixer_quickstart.py --workdir=runs/bitmixer

The data is an extract of 10,000 + 2,000 images that the package holds; the full set:

    metamix-train --config=configs/bitmixer_quickstart.py --config.data.name=fashion_mnist

Schedules and learning rates are ours: the paper trains ImageNet networks.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.title = "Bit-Mixer quickstart"
    config.seed = 0
    config.method = "bitmixer"
    config.distribute = ""  # or "mirrored", "multi_worker", "tpu": see docs/long_runs.md

    config.data = ConfigDict()
    config.data.name = "fashion_mnist_extract"  # or "fashion_mnist": all 60,000 + 10,000 images
    config.data.dir = ""  # where TFDS keeps the full set; "": its default
    config.data.augment = True
    config.data.validation = 0.1  # held out of training: a share, or a number of images; 0: none

    config.model = ConfigDict()
    config.model.name = "small_resnet"
    config.model.width = 16
    config.model.stem_strides = 2

    config.space = ConfigDict()
    config.space.activation_bits = (4, 3, 2)
    config.space.weight_bits = "same"  # as its layer's activations, nested
    config.space.edge_bits = 8
    config.space.stream_bits = 8

    config.float = ConfigDict()
    config.float.epochs = 12
    config.float.learning_rate = 4e-3

    config.mixer = ConfigDict()
    config.mixer.batch_norm = "feeding"  # or "following", "switchable", "shared"
    config.mixer.stage_epochs = (4, 10, 20)
    config.mixer.in_place_distillation = 0.0
    # Signatures of the file, and their budgets: from 0, the fewest bits everywhere, to 1, the most.
    config.mixer.operating_points = ConfigDict({"full": 1.0, "balanced": 0.5, "eco": 0.2})
    config.mixer.latency_table = ""  # of metamix-profile: the budgets are of latency, not of BOPs

    config.train = ConfigDict()
    config.train.batch_size = 128
    config.train.learning_rate = 2e-3
    config.train.weight_decay = 0.0

    config.checkpoint = ConfigDict()
    config.checkpoint.steps = 0  # between two checkpoints; 0: by minutes alone
    config.checkpoint.minutes = 5.0

    config.export = ConfigDict()
    config.export.weight_container = "fast"
    config.export.threads = 1
    config.export.runs = 200
    return config

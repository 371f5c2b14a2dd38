"""Bit-Mixer for ResNet-18 on ImageNet (Bulat and Tzimiropoulos, ICCV 2021).

    metamix-train --config=configs/bitmixer_resnet18.py --workdir=runs/bitmixer_resnet18 \
        --config.data.dir=/path/to/tensorflow_datasets

The same code on images that the project draws, in two minutes:

    metamix-train --config=configs/bitmixer_resnet18.py:smoke --workdir=runs/smoke

Published: bit-widths 4, 3 and 2, the three stages, 160 epochs in total. Everything else is
ours. The recipe has not been run to its end: that takes a GPU, days, and ImageNet as TFDS prepares
it.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from keras_metamix.launch.config import new_config
from keras_metamix.launch.smoke import apply_argument


def get_config(argument: str = "") -> ConfigDict:
    config = new_config("bitmixer")
    config.title = "Bit-Mixer ResNet-18"
    config.seed = 0

    config.data.name = "imagenet2012"
    config.data.validation = 10_000  # ours: images held out of training
    config.data.image_size = 224
    config.data.pixels = "standardized"  # as the pretrained weights want them
    config.data.augment = True  # random crop and mirroring
    config.data.randaugment = 0
    config.data.magnitude = 0.5  # of RandAugment, where it is on

    config.model.name = "resnet18"
    config.model.width = 1.0
    config.model.weights = placeholder(str)
    config.model.weights = "imagenet"  # of keras-hub, which has to be installed; downloaded once

    config.space.activation_bits = (4, 3, 2)
    config.space.weight_bits = "same"  # as its layer's activations, nested
    config.space.edge_bits = 8
    config.space.stream_bits = 8

    config.float.epochs = 0  # pretrained
    config.float.learning_rate = 5e-4  # where epochs are more than 0

    config.mixer.batch_norm = "feeding"  # or "following", "switchable", "shared"
    config.mixer.stage_epochs = (40, 40, 80)
    config.mixer.in_place_distillation = 0.5
    # Signatures of the file, and their budgets: from 0, the fewest bits everywhere, to 1, the most.
    config.mixer.operating_points = ConfigDict({"full": 1.0, "balanced": 0.5, "eco": 0.2})

    config.train.batch_size = 256
    config.train.optimizer = "adam"
    config.train.learning_rate = 5e-4  # cosine
    config.train.weight_decay = 5e-6  # of kernels alone
    config.train.clip_norm = 10.0

    config.export.target = "cpu"
    config.export.threads = 1
    config.export.runs = 200
    return apply_argument(config, argument)

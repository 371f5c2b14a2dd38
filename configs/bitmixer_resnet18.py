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

from keras_metamix.launch.smoke import apply_argument


def get_config(argument: str = "") -> ConfigDict:
    config = ConfigDict()
    config.title = "Bit-Mixer ResNet-18"
    config.seed = 0
    config.method = "bitmixer"
    config.distribute = ""  # or "mirrored", "multi_worker", "tpu": see docs/long_runs.md

    config.data = ConfigDict()
    config.data.name = "imagenet2012"
    config.data.dir = ""  # TFDS's data folder; "": its default
    config.data.index_dir = ""  # where the records' positions are kept; "": beside the records
    config.data.sample = (16, 16)  # images of the smoke run
    config.data.validation = 10_000.0  # ours: images held out of training
    config.data.image_size = 224
    config.data.pixels = "standardized"  # as the pretrained weights want them
    config.data.augment = True  # random crop and mirroring
    config.data.randaugment = 0
    config.data.magnitude = 0.5  # of RandAugment, where it is on

    config.model = ConfigDict()
    config.model.name = "resnet18"
    config.model.width = 1.0
    config.model.weights = placeholder(str)
    config.model.weights = "imagenet"  # of keras-hub, which has to be installed; downloaded once

    config.space = ConfigDict()
    config.space.activation_bits = (4, 3, 2)
    config.space.weight_bits = "same"  # as its layer's activations, nested
    config.space.edge_bits = 8
    config.space.stream_bits = 8

    config.float = ConfigDict()
    config.float.epochs = 0  # pretrained
    config.float.learning_rate = 5e-4  # where epochs are more than 0
    config.float.weights = ""

    config.mixer = ConfigDict()
    config.mixer.batch_norm = "feeding"  # or "following", "switchable", "shared"
    config.mixer.stage_epochs = (40, 40, 80)
    config.mixer.in_place_distillation = 0.5
    # Signatures of the file, and their budgets: from 0, the fewest bits everywhere, to 1, the most.
    config.mixer.operating_points = ConfigDict({"full": 1.0, "balanced": 0.5, "eco": 0.2})
    config.mixer.latency_table = ""  # of metamix-profile: the budgets are of latency, not of BOPs

    config.train = ConfigDict()
    config.train.batch_size = 256
    config.train.optimizer = "adam"
    config.train.learning_rate = 5e-4  # cosine
    config.train.weight_decay = 5e-6  # of kernels alone
    config.train.clip_norm = 10.0
    config.train.label_smoothing = 0.0

    config.checkpoint = ConfigDict()
    config.checkpoint.steps = 0  # between two checkpoints; 0: by minutes alone
    config.checkpoint.minutes = 5.0

    config.export = ConfigDict()
    config.export.weight_container = "fast"
    config.export.threads = 1
    config.export.runs = 200
    config.export.test_images = 1000
    return apply_argument(config, argument)

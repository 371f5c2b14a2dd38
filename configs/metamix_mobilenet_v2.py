"""MetaMix for MobileNetV2 on ImageNet, as in Table 1 of the paper (Kim et al., AAAI 2024).

    metamix-train --config=configs/metamix_mobilenet_v2.py --workdir=runs/mobilenet_v2 \
        --config.data.dir=/path/to/tensorflow_datasets

The same code on images that the project draws, in two minutes:

    metamix-train --config=configs/metamix_mobilenet_v2.py:smoke --workdir=runs/smoke

Values marked "ours" are not published; those marked "v3" are published for MobileNetV3 alone and
taken from there. The recipe has not been run to its end: that takes a GPU, days, and ImageNet as
TFDS prepares it.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from keras_metamix.launch.config import new_config
from keras_metamix.launch.smoke import apply_argument


def get_config(argument: str = "") -> ConfigDict:
    config = new_config("metamix")
    config.title = "MetaMix MobileNetV2"
    config.seed = 0  # ours

    config.data.name = "imagenet2012"
    config.data.validation = 10_000  # ours: images held out of training
    config.data.image_size = 224
    config.data.pixels = "minus_one_to_one"  # as the pretrained weights want them
    config.data.augment = True  # ours: random crop and mirroring
    config.data.randaugment = 0  # ours
    config.data.magnitude = 0.5  # ours: of RandAugment, where it is on

    config.model.name = "mobilenet_v2"
    config.model.width = 1.0
    config.model.weights = placeholder(str)
    config.model.weights = "imagenet"  # of keras.applications, downloaded once

    config.space.activation_bits = (8, 4, 3)
    config.space.weight_bits = 4  # or several to search, or "same"
    config.space.edge_bits = 8
    config.space.stream_bits = 8  # ours: the paper leaves sums and pooled features in float

    config.float.epochs = 0  # pretrained
    config.float.learning_rate = 5e-4  # ours, where epochs are more than 0

    config.search.target_bops = 5.28e9  # published: 72.39 % at 5.28 G (A4/W4 is 5.39 G)
    config.search.target_ratio = 0.9  # unused where target_bops is given
    config.search.meta_epochs = 1
    config.search.search_epochs = 1
    config.search.cost = "paper"  # Eq. 4, in 1e9 BOPs
    config.search.cost_strength = 1.0  # lambda
    config.search.learning_rate = 1e-4  # v3: Adam for alpha, betas 0.5, 0.999, decay 1e-3

    config.train.batch_size = 256  # v3
    config.train.epochs = 140  # search included
    config.train.optimizer = "adam"  # v3
    config.train.selection_learning_rate = 1e-4  # v3
    config.train.learning_rate = 5e-4  # v3; cosine
    config.train.weight_decay = 5e-6  # v3: of kernels alone; ours: decoupled, as Keras does it
    config.train.clip_norm = 10.0  # v3
    config.train.label_smoothing = 0.0  # ours
    config.train.ema = 0.0  # ours: no average of weights
    # The paper distils from "a bigger teacher" that it does not name: give a .keras file whose
    # pixels are as above. "float" is the float network itself.
    config.train.teacher = ""
    config.train.distillation = 0.5  # ours
    config.train.uniform = False  # ours: a uniform A4W4 network beside doubles the time

    config.export.target = "cpu"
    config.export.threads = 1
    config.export.runs = 200
    return apply_argument(config, argument)

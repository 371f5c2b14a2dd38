"""MetaMix for ResNet-18 with searched weight bits: pairs of 6, 4, 2 bits, as in the supplement.

    metamix-train --config=configs/metamix_pairs_642.py --workdir=runs/pairs_642 \
        --config.data.dir=/path/to/tensorflow_datasets

With `:smoke` behind the file's name the same code runs on images that the project draws.

Published: 72.08 % at 31.1 G BOPs, beside 71.65 % at 31.0 G where activations alone are searched.
All that is not named here is of metamix_resnet18.py. Not run to its end, as that one.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from keras_metamix.launch.smoke import apply_argument

_ACTIVATIONS_ALONE = Path(__file__).with_name("metamix_resnet18.py")


def get_config(argument: str = "") -> ConfigDict:
    config = runpy.run_path(str(_ACTIVATIONS_ALONE))["get_config"]()
    config.title = "MetaMix ResNet-18, pairs of 6, 4, 2 bits"
    config.space.activation_bits = (6, 4, 2)
    config.space.weight_bits = (6, 4, 2)
    config.search.target_bops = 31.1e9
    config.search.meta_weights = "float"  # Table 1; what it is for pairs is not published
    return apply_argument(config, argument)

"""MetaMix for ResNet-18 with searched weight bits: pairs of 8, 4, 2 bits, as in the supplement.

    metamix-train --config=configs/metamix_pairs_842.py --workdir=runs/pairs_842 \
        --config.data.dir=/path/to/tensorflow_datasets

With `:smoke` behind the file's name the same code runs on images that the project draws.

Published: 71.80 % at 30.3 G BOPs, beside 71.49 % at 30.1 G where activations alone are searched.
All that is not named here is of metamix_resnet18.py. Not run to its end, as that one.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

from keras_metamix.launch.smoke import apply_argument

_ACTIVATIONS_ALONE = Path(__file__).with_name("metamix_resnet18.py")


def get_config(argument: str = "") -> ConfigDict:
    config = runpy.run_path(str(_ACTIVATIONS_ALONE))["get_config"]()
    config.title = "MetaMix ResNet-18, pairs of 8, 4, 2 bits"
    config.space.activation_bits = (8, 4, 2)
    config.space.weight_bits = (8, 4, 2)
    config.search.target_bops = 30.3e9
    config.search.meta_weights = "float"  # Table 1; what it is for pairs is not published
    return apply_argument(config, argument)

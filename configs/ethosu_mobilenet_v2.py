"""Weight bits for an Ethos-U NPU, under a budget of its time: MobileNetV2 0.35 at 96 x 96.

    metamix-train --config=configs/ethosu_mobilenet_v2.py --workdir=runs/ethosu_mobilenet_v2
    metamix-benchmark --compare=runs/ethosu_mobilenet_v2 --accelerator=ethos-u55-256

The network that vendors of microcontrollers show, as configs/ethosu.py has the quickstart's. It is
trained from random weights on the extract of Fashion-MNIST, enlarged, since that is what the
project has; its activations, and so its cycles, are those of 96 x 96 images all the same.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

_ETHOSU = Path(__file__).with_name("ethosu.py")


def get_config() -> ConfigDict:
    config = runpy.run_path(str(_ETHOSU))["get_config"]()
    config.title = "MobileNetV2 0.35, 96x96, Ethos-U55-256"

    config.data.image_size = 96

    config.model = ConfigDict(
        {"name": "mobilenet_v2", "width": 0.35, "momentum": 0.9}  # of batch norm: a short schedule
    )

    config.search.budgets = (1.06, 0.93)  # of what 4-bit weights take, 2-bit ones take 0.87
    config.search.point_epochs = 1

    config.float.epochs = 10
    config.train.epochs = 6  # search included
    return config

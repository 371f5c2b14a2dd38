"""Fewer bytes at the same accuracy: three files of one search, beside other ways to 8 bits.

    metamix-train --config=configs/demo.py --workdir=runs/demo

`make demo` runs it, in four to seven minutes on two CPU cores. A small MobileNet on the extract of
Fashion-MNIST that the package holds; weights of 8, 4 or 2 bits are searched under three budgets
of bytes, from one meta-state. They are compared with the float network, what TensorFlow's
converter makes of it, and uniform 4-bit weights, trained for as long.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

_QUICKSTART = Path(__file__).with_name("quickstart.py")


def get_config() -> ConfigDict:
    config = runpy.run_path(str(_QUICKSTART))["get_config"]()
    config.title = "demo"

    config.model.name = "small_mobilenet"
    config.model.width = 16

    config.space.activation_bits = (8,)  # fewer save no byte
    config.space.weight_bits = (8, 4, 2)

    config.search.budget = "size"
    config.search.target_ratio = 1.0  # of the bytes that 4-bit weights everywhere take
    config.search.budgets = (1.2, 0.87)  # times this budget: two further files
    config.search.point_epochs = 1

    config.float.epochs = 8
    config.train.epochs = 6  # search included

    config.export.stock = True
    config.export.accelerator = "ethos-u55-256"
    return config

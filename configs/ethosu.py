"""Weight bits for an Ethos-U NPU, under a budget of its time: the quickstart's network.

    metamix-train --config=configs/ethosu.py --workdir=runs/ethosu
    metamix-benchmark --compare=runs/ethosu --accelerator=ethos-u55-256

Vela, Arm's compiler, prices the layers of the trained float network (`pip install
'keras-metamix[ethosu]'`), which it compresses; no NPU is needed, and none is run. Three files come
of the one search, for three budgets, and one with uniform 4-bit weights. docs/devices/ethosu.md
has what was found.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

_QUICKSTART = Path(__file__).with_name("quickstart.py")


def get_config() -> ConfigDict:
    config = runpy.run_path(str(_QUICKSTART))["get_config"]()
    config.title = "Ethos-U55-256"

    config.space.activation_bits = (8,)  # fewer buy nothing there
    config.space.weight_bits = (8, 4, 3, 2)

    config.search.accelerator = "ethos-u55-256"
    config.search.target_ratio = 1.0  # of the time that 4-bit weights everywhere take
    config.search.budgets = (1.2, 0.8)  # times this budget: two further files
    config.search.point_epochs = 2

    config.export.weight_container = "int8"
    return config

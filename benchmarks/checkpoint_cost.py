"""What a checkpoint costs: the time of a write, and its share of a run at the default interval.

    python benchmarks/checkpoint_cost.py [--json FILE]

The networks are MetaMixModels with Adam for the weights and for the alphas, every variable of which
is written. A step between two checkpoints does nothing more than look at the clock.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import keras

import keras_metamix as kmm
from keras_metamix import zoo
from keras_metamix.launch.checkpoints import Checkpoints
from keras_metamix.launch.config import Checkpoint

NETWORKS = {
    "small_resnet, 28 x 28": lambda: zoo.small_resnet((28, 28, 1), 10),
    "mobilenet_v2, 224 x 224": lambda: zoo.mobilenet_v2((224, 224, 3), 1000),
}
_WRITES = 7


def measure(network: keras.Model) -> dict[str, Any]:
    """Median seconds of a write, bytes written, and the share of the default interval."""
    model = kmm.MetaMixModel.from_float(network)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder), model, [], epoch_steps=100)
        seconds = []
        for step in range(1, _WRITES + 1):
            checkpoints.step = step
            start = time.perf_counter()
            checkpoints.write()
            seconds.append(time.perf_counter() - start)
        size = sum(f.stat().st_size for f in Path(folder).glob(f"step-{_WRITES:09d}*"))
    interval = 60 * Checkpoint().minutes
    median = statistics.median(seconds)
    return {
        "parameters": network.count_params(),
        "seconds": median,
        "bytes": size,
        "share": median / interval,
        "shortest_interval_below_3_percent_s": median / 0.03,
    }


def main() -> None:
    """Measures each network and prints a line for it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    results = {}
    for name, make in NETWORKS.items():
        found = results[name] = measure(make())
        print(
            f"{name}: {found['seconds'] * 1e3:.0f} ms for {found['bytes'] / 1e6:.1f} MB, "
            f"{found['share']:.4%} of the time at one in five minutes; below 3 % from "
            f"{found['shortest_interval_below_3_percent_s']:.1f} s on"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Writes what docs/devices/web.md measures: networks as stock int8 and as ours, for a browser.

    python benchmarks/web_files.py FOLDER [--only=NAME,...]
    metamix-benchmark FOLDER/NAME_*.tflite --device=web

Of each network three files with float32 ends and a batch of one: NAME_a_stock.tflite, int8 by
TensorFlow's converter, NAME_b_int8.tflite and NAME_c_fast.tflite, ours with 4-bit weights (8 bits
in the first and the last layer) in the containers of these names. Weights are random: how long a
file takes does not depend on what its network is good for.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

import keras_metamix as kmm
import metamix_tflite as mt
from keras_metamix import zoo
from keras_metamix.files import require_folder, written_whole
from keras_metamix.launch.comparison.stock_converter import int8_file

IMAGES = 8  # of the calibration


@dataclasses.dataclass(frozen=True)
class Kind:
    """A network of the zoo, and its images' shape."""

    network: str
    shape: tuple[int, int, int]


KINDS = {
    "small_resnet_28": Kind("small_resnet", (28, 28, 1)),
    "mobilenet_v2_96": Kind("mobilenet_v2", (96, 96, 3)),
    "mobilenet_v2_224": Kind("mobilenet_v2", (224, 224, 3)),
    "resnet18_224": Kind("resnet18", (224, 224, 3)),
}


def files(kind: Kind) -> dict[str, bytes]:
    """The three files of a network by the end of their names."""
    keras.utils.set_random_seed(0)
    source = getattr(zoo, kind.network)(kind.shape)
    images = np.random.default_rng(0).normal(size=(IMAGES, *kind.shape)).astype(np.float32)
    kmm.reestimate_batch_norm(source, images)
    # LiteRT.js runs no file whose batch is not fixed.
    image = keras.Input(batch_shape=(1, *kind.shape), name="image")
    made = {"a_stock": int8_file(keras.Model(image, source(image)), images)}
    model = kmm.QuantizedModel.from_float(source, activation_bits=8, weight_bits=4)
    kmm.calibrate(model, images)
    for end, container in (("b_int8", "int8"), ("c_fast", "fast")):
        made[end] = mt.convert(model, weight_container=container)
        mt.verify(made[end])
    return made


def main() -> None:
    """Writes the files that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--only", default=",".join(KINDS), help="of these, with commas between")
    flags = parser.parse_args()
    names = flags.only.split(",")
    try:
        if unknown := sorted(set(names) - set(KINDS)):
            raise ValueError(f"--only: expected some of {[*KINDS]}, found {unknown}.")
        require_folder("FOLDER", flags.folder)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    flags.folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        for end, flat in files(KINDS[name]).items():
            path = flags.folder / f"{name}_{end}.tflite"
            with written_whole(path) as temporary:
                temporary.write_bytes(flat)
            print(f"{path}: {len(flat):,} bytes", flush=True)
        keras.backend.clear_session()


if __name__ == "__main__":
    main()

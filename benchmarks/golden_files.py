"""Writes exact files of several kinds, for replays by other runtimes and on devices.

    python benchmarks/golden_files.py FOLDER [--only=NAME,...]

Nothing is trained: weights are random, batch norms have the statistics of a few images, step sizes
are calibrated on them and each layer gets random bits of 8, 4, 3 and 2 for both. Whether a runtime
gives the integers that Keras computed does not depend on what the network is good for.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

import keras_metamix as kmm
import metamix_tflite as mt
from keras_metamix import zoo
from keras_metamix.files import require_folder, written_whole
from metamix_tflite.read.golden_inputs import golden_codes
from metamix_tflite.read.metadata import MOST_GOLDEN

BITS = (8, 4, 3, 2)
IMAGES = 8  # of the calibration


@dataclasses.dataclass(frozen=True)
class Kind:
    """A file: a network of the zoo, its images' shape, and what `convert` is told."""

    network: str
    shape: tuple[int, int, int] = (28, 28, 1)
    container: str = "fast"
    io: str = "float32"
    points: bool = False  # a Bit-Mixer with operating points


KINDS = {
    "small_resnet": Kind("small_resnet"),
    "small_resnet_smallest": Kind("small_resnet", container="smallest"),
    "small_resnet_int8": Kind("small_resnet", container="int8", io="int8"),
    "small_mobilenet_int8": Kind("small_mobilenet", io="int8"),
    "small_mobilenet_smallest": Kind("small_mobilenet", container="smallest"),
    "bitmixer_points": Kind("small_resnet", points=True),
    "mobilenet_v2_96": Kind("mobilenet_v2", (96, 96, 3)),
    "mobilenet_v2_96_int8": Kind("mobilenet_v2", (96, 96, 3), "int8", "int8"),
    "mobilenet_v2_224": Kind("mobilenet_v2", (224, 224, 3)),
    "mobilenet_v3_96": Kind("mobilenet_v3_large", (96, 96, 3)),
    "mobilenet_v3_224_int8": Kind("mobilenet_v3_large", (224, 224, 3), io="int8"),
}


def convert(kind: Kind, seed: int = 0) -> bytes:
    """The file of a kind, as bytes; the same seed gives the same network and bits."""
    keras.utils.set_random_seed(seed)
    float_model = getattr(zoo, kind.network)(kind.shape)
    # Not the inputs that the file is replayed with: those have the first numbers.
    codes = [golden_codes(kind.shape, MOST_GOLDEN + number) for number in range(IMAGES)]
    images = (np.concatenate(codes) / 64).astype(np.float32)
    kmm.reestimate_batch_norm(float_model, images)
    rng = np.random.default_rng(seed)
    options: dict[str, Any] = {"weight_container": kind.container, "io": kind.io}
    if kind.points:
        mixer = kmm.BitMixerModel.from_float(float_model, kmm.SearchSpace((4, 3, 2), "same"))
        kmm.calibrate(mixer, images)
        mixer.stage = "layer_wise"
        high = mixer.uniform_bits(4)
        drawn = {name: int(rng.choice((4, 3, 2))) for name in high.weight_bits}
        drawn |= {name: bits for name, bits in high.weight_bits.items() if bits == 8}
        points = {"high": high, "drawn": kmm.BitAssignment(drawn, drawn)}
        return mt.convert(mixer, operating_points=points, **options)
    model = kmm.MetaMixModel.from_float(float_model, kmm.SearchSpace(BITS, BITS))
    kmm.calibrate(model, images)
    layers = model.mac_layers
    model.set_bits(
        kmm.BitAssignment(
            {x.name: int(rng.choice(x.input_quantizer.candidates)) for x in layers},
            {x.name: int(rng.choice(x.weight_quantizer.candidates)) for x in layers},
        )
    )
    return mt.convert(model, **options)


def write_files(folder: Path, names: Sequence[str] = tuple(KINDS)) -> list[Path]:
    """Writes the files of some kinds, verified, and returns their paths.

    Raises:
      ValueError: an unknown kind.
      OSError: the folder cannot be written to.
    """
    if unknown := sorted(set(names) - set(KINDS)):
        raise ValueError(f"--only: expected some of {[*KINDS]}, found {unknown}.")
    require_folder("FOLDER", folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in names:
        flat = convert(KINDS[name])
        mt.verify(flat)
        with written_whole(folder / f"{name}.tflite") as temporary:
            temporary.write_bytes(flat)
        paths.append(folder / f"{name}.tflite")
        keras.backend.clear_session()
    return paths


def main() -> None:
    """Writes the files that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--only", default=",".join(KINDS), help="of these, with commas between")
    flags = parser.parse_args()
    try:
        for path in write_files(flags.folder, flags.only.split(",")):
            print(f"{path}: {path.stat().st_size:,} bytes")
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()

"""Instructions of an inference on emulated ARM CPUs, by container: for docs/devices/arm64.md.

    python benchmarks/arm64_instructions.py [--cpus=CPU,...] [--files=NAME,...] [--json=FILE]

The network is the quickstart's ResNet, untrained, with weights of 4 bits (8 at its edges) in each
container, and of 2 in "fast", as INT2: how many instructions run does not depend on the values.
`stock int8` and `float` are what TensorFlow's converter makes of it. A file takes half a minute of
CPU time on each CPU.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

import keras_metamix as kmm
import metamix_tflite as mt
from keras_metamix.launch.comparison import stock_converter
from keras_metamix.zoo.small import small_resnet
from metamix_tflite.containers import CONTAINERS
from metamix_tflite.devices import measure
from metamix_tflite.devices.arm64_cpu import CPUS

FLOAT, STOCK = "float", "stock int8"
OURS = {name: (name, 4) for name in CONTAINERS}  # container, weight bits
OURS["fast with 2 bits"] = "fast", 2
IMAGES = 32  # of the calibration


def files_of(names: Sequence[str]) -> dict[str, bytes]:
    """The small ResNet as float, as the stock converter's int8, and as OURS."""
    keras.utils.set_random_seed(0)
    source = small_resnet()
    images = np.random.default_rng(0).normal(size=(IMAGES, *source.input_shape[1:])).astype("f")
    files = {
        FLOAT: lambda: stock_converter.float_file(source),
        STOCK: lambda: stock_converter.int8_file(source, images),
    }

    def ours(container: str, bits: int) -> bytes:
        model = kmm.QuantizedModel.from_float(source, activation_bits=8, weight_bits=bits)
        kmm.calibrate(model, images)
        return mt.convert(model, weight_container=container, golden=0)  # nothing to replay

    files |= {name: lambda file=file: ours(*file) for name, file in OURS.items()}
    return {name: files[name]() for name in names}


def table(counts: dict[str, dict[str, int]], cpus: Sequence[str]) -> str:
    """Markdown: a row for each file, a column for each CPU, in millions and over stock int8's."""
    lines = ["| file |" + "".join(f" {cpu} |" for cpu in cpus), "| --- |" + " ---: |" * len(cpus)]
    for name, found in counts.items():
        cells = []
        for cpu in cpus:
            base = counts.get(STOCK, {}).get(cpu)
            share = f" ({found[cpu] / base:.2f})" if base else ""
            cells.append(f" {found[cpu] / 1e6:.2f} M{share} |")
        lines.append(f"| {name} |" + "".join(cells))
    return "\n".join(lines)


def main() -> None:
    """Prints the table."""
    known = (FLOAT, STOCK, *OURS)
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cpus", default=",".join(CPUS), help="by commas; default all")
    parser.add_argument("--files", default=",".join(known), help="by commas; default all")
    parser.add_argument("--json", type=Path, help="where to write the counts")
    arguments = parser.parse_args()
    names, cpus = arguments.files.split(","), arguments.cpus.split(",")
    if set(names) - set(known):
        parser.error(f"--files: expected some of {', '.join(known)}, found {names}.")
    counts: dict[str, dict[str, int]] = {}
    for name, flat in files_of(names).items():
        rows = measure("arm64", {name: flat}, cpus=cpus, instructions=True).rows
        counts[name] = {str(row["cpu"]): int(row["instructions"] or 0) for row in rows}
        print(name, len(flat), counts[name], flush=True)
    print(table(counts, cpus))
    if arguments.json:
        arguments.json.write_text(json.dumps(counts, indent=2) + "\n")


if __name__ == "__main__":
    main()

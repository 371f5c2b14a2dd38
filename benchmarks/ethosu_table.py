"""What a table of Vela's estimates predicts of mixed assignments, against what Vela compiles.

    python benchmarks/ethosu_table.py [--assignments=4] [--weight_bits=8,4,3,2]

Prints the table of docs/devices/ethosu.md: the quickstart's ResNet-8 and MobileNetV2 0.35 at 96
pixels, untrained, on three accelerators. Needs Vela (`pip install 'keras-metamix[ethosu]'`).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from pathlib import Path

import keras
import numpy as np

import keras_metamix as kmm
import metamix_tflite as mt
from keras_metamix import zoo
from keras_metamix.launch import profile
from metamix_tflite.devices import ethosu

ACCELERATORS = ("ethos-u55-256", "ethos-u65-256", "ethos-u85-256")
NETWORKS = {
    "ResNet-8 of the quickstart": lambda: zoo.small_resnet((28, 28, 1), stem_strides=2),
    "MobileNetV2 0.35, 96x96": lambda: zoo.mobilenet_v2((96, 96, 3), 100, 0.35),
}


def mixed_files(
    source: keras.Model, weight_bits: tuple[int, ...], count: int
) -> list[tuple[kmm.BitAssignment, bytes]]:
    """Random assignments of a network, and a file of each."""
    model = kmm.MetaMixModel.from_float(source, kmm.SearchSpace(8, weight_bits))
    rng = np.random.default_rng(0)
    kmm.calibrate(model, rng.normal(size=(8, *source.input_shape[1:])).astype(np.float32))
    found = []
    for _ in range(count):
        weight = {
            cost.name: 8 if cost.edge else int(rng.choice(weight_bits))
            for cost in kmm.layer_costs(source)
        }
        bits = kmm.BitAssignment(dict.fromkeys(weight, 8), weight)
        model.set_bits(bits)
        found.append((bits, mt.convert(model, "ethosu", golden=0)))
    return found


def profiled(source: Path, accelerator: str, weight_bits: tuple[int, ...]) -> tuple[str, Path]:
    """What `metamix-profile` prints, and its table."""
    output = source.with_name(f"{accelerator}.json")
    flags = [str(source), f"--output={output}", "--device=ethosu", f"--accelerator={accelerator}"]
    flags += [f"--weight_bits={','.join(map(str, weight_bits))}", "--overwrite"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        profile.main(profile.parse_flags(["metamix-profile", *flags]))
    return printed.getvalue(), output


def main() -> None:
    """Prints a row for each network and accelerator."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--assignments", type=int, default=4)
    parser.add_argument("--weight_bits", default="8,4,3,2")
    options = parser.parse_args()
    weight_bits = tuple(int(bits) for bits in options.weight_bits.split(","))
    for name, build in NETWORKS.items():
        keras.utils.set_random_seed(0)
        source = build()
        costs, files = (
            kmm.layer_costs(source),
            mixed_files(source, weight_bits, options.assignments),
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "float.keras")
            source.save(path)
            for accelerator in ACCELERATORS:
                printed, output = profiled(path, accelerator, weight_bits)
                table = kmm.LatencyTable.load(output)
                vela = ethosu.compiler(ethosu.Options(accelerator))
                times, stored = [], []
                for bits, flat in files:
                    compiled = vela.compile(name, flat)
                    us = table.predict(costs, bits)
                    pairs = {n: (bits[n].activation, bits[n].weight) for n in bits.weight_bits}
                    times.append(abs(us / compiled.microseconds - 1))
                    stored.append(abs(table.predict_file(pairs)[1] / compiled.read_only_bytes - 1))
                uniform = [line.split()[1] for line in printed.splitlines() if " cycles, " in line]
                print(
                    f"| {name}, {accelerator.removeprefix('ethos-')} | {'; '.join(uniform)} "
                    f"| {100 * max(times):.2f} % | {100 * max(stored):.2f} % |",
                    flush=True,
                )


if __name__ == "__main__":
    main()

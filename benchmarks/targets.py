"""One network's file for each target beside stock int8: bytes, time here, golden outputs.

    python benchmarks/targets.py [--network=mobilenet_v2] [--size=224] [--share=0.45] [--runs=100]

MobileNetV2 with activations of 8 bits and weights of 4 and 2, also in the first and the last layer
(`edge_weight_bits=4`). MetaMix searches the bits, for a file for "cpu" of at most `--share` of the
bytes of TensorFlow's int8 file, in one pass of bit-meta and one of bit-search over `--images` that
the project draws: enough for bytes and time, which hardly depend on weights, and not for accuracy,
of which this says nothing. Files take turns, one inference each; what is
counted is the CPU's time of the one thread, which other work on the machine lengthens less than the
clock's, and a ratio is the median of those of each turn to the stock file's. What XNNPACK does not
run all of is not timed.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

import keras_metamix as kmm
import metamix_tflite as mt
from keras_metamix import zoo
from keras_metamix.data import imagenet_sample
from keras_metamix.launch.comparison.stock_converter import int8_file
from metamix_tflite.read.files import read_file
from metamix_tflite.run.latency import random_inputs
from metamix_tflite.run.runner import Runner
from metamix_tflite.targets import TARGETS
from metamix_tflite.verification.kernels import kernels_of

STOCK = "stock int8"
BATCH = 8
TIMED = (STOCK, "cpu", "cpu, int4", "arm")


def drawn(count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of `imagenet_sample` with pixels in [-1, 1] and their labels."""
    generator = np.random.default_rng(0)
    labels = np.arange(count) % imagenet_sample.DRAWN
    images = [
        keras.ops.image.resize(imagenet_sample.draw(label, generator), (size, size))
        for label in labels
    ]
    return np.stack(images).astype(np.float32) / 127.5 - 1, labels


def make_files(arguments: argparse.Namespace) -> dict[str, bytes]:
    """The stock file and one for each target, verified, and one for "cpu" without INT2."""
    keras.utils.set_random_seed(0)
    float_model = getattr(zoo, arguments.network)((arguments.size, arguments.size, 3))
    images, labels = drawn(arguments.images, arguments.size)
    kmm.reestimate_batch_norm(float_model, images)
    files = {STOCK: int8_file(float_model, images)}
    limit = arguments.share * len(files[STOCK])
    model = kmm.MetaMixModel.from_float(
        float_model, kmm.SearchSpace((8,), (4, 2), edge_weight_bits=4)
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    search = kmm.MetaMixCallback(kmm.Size(limit), meta_epochs=1, search_epochs=1)
    model.fit(images, labels, batch_size=BATCH, epochs=2, callbacks=[search], verbose=2)
    bits = model.bit_assignment
    counts = {b: [*bits.weight_bits.values()].count(b) for b in (4, 2)}
    print(f"{arguments.network}, {arguments.size} pixels: layers by weight bits {counts}")
    for name in TARGETS:
        if name in arguments.targets:
            files[name] = mt.convert(model, name, golden=arguments.golden)
    files["cpu, int4"] = mt.convert(model, "cpu", "int4", golden=arguments.golden)
    for name, flat in files.items():
        if name != STOCK:
            mt.verify(flat, bits)
    return files


def ratios(files: dict[str, bytes], runs: int) -> dict[str, tuple[float, float]]:
    """Median CPU microseconds of a file, and the median of its ratios to the stock file's turn."""
    runners = {name: Runner(flat) for name, flat in files.items()}
    inputs = {name: random_inputs(runner.input_details) for name, runner in runners.items()}
    times: dict[str, list[float]] = {name: [] for name in runners}
    for turn in range(runs + 5):
        for name, runner in runners.items():
            start = time.thread_time()
            runner.invoke(*inputs[name])
            if turn >= 5:
                times[name].append((time.thread_time() - start) * 1e6)
    stock = np.array(times[STOCK])
    return {
        name: (float(np.median(found)), float(np.median(np.array(found) / stock)))
        for name, found in times.items()
    }


def main() -> None:
    """Makes the files, measures them and prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--network", default="mobilenet_v2", help="of keras_metamix.zoo")
    parser.add_argument("--size", type=int, default=224, help="pixels")
    parser.add_argument("--share", type=float, default=0.45, help="of the stock file's bytes")
    parser.add_argument("--images", type=int, default=32, help="of the search")
    parser.add_argument("--golden", type=int, default=2, help="golden inputs of each file")
    parser.add_argument("--runs", type=int, default=100, help="turns")
    parser.add_argument("--targets", nargs="*", choices=[*TARGETS], default=[*TARGETS])
    arguments = parser.parse_args()
    files = make_files(arguments)
    ours = {name: flat for name, flat in files.items() if name != STOCK}
    graphs = {name: read_file(flat) for name, flat in ours.items()}
    timed = [name for name in files if name in TIMED]
    found = ratios({name: files[name] for name in timed}, arguments.runs)
    print("| file | container, io | bytes | over stock | CPU us | over stock | golden values |")
    print("| --- | --- | ---: | ---: | ---: | ---: | --- |")
    for name, flat in files.items():
        told, golden = "", ""
        if name in graphs:
            told = ", ".join(graphs[name].metadata[key] for key in ("weight_container", "io"))
            if arguments.golden:
                (report,) = mt.replay(flat).values()
                golden = f"{report.differing} of {report.values} differ"
        cells = [name, told, f"{len(flat):,}", f"{len(flat) / len(files[STOCK]):.3f}"]
        cells += [f"{found[name][0]:,.0f}", f"{found[name][1]:.3f}"] if name in found else ["", ""]
        print(f"| {' | '.join([*cells, golden])} |", flush=True)
    for name, graph in graphs.items():
        print(f"{name}: {'; '.join(kernels_of(graph)) or 'no CPU runs it'}")


if __name__ == "__main__":
    main()

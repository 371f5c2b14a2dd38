"""One file of several operating points beside a file for each: size, memory, latency, switching.

LiteRT's interpreter loads it, and CompiledModel without and with a cache of packed weights.

    python benchmarks/operating_points.py [--model=mobilenet_v2] [--bits=4,3,2] [--json=FILE]

The points are the lowest bit-widths, highest and lowest layer by layer in turn, and the highest, of
a Bit-Mixer that nobody trained: what is measured does not depend on the values of its weights, but
for batch norms whose trained scales differ in sign between points, which share fewer weights.

Memory is the resident set of a process of its own for each way of loading, after an inference of
each point, less that of a process that has made the input and loaded nothing; for a CompiledModel
less that of one that has started its runtime. Load is the median CPU time of loading a
file again in one process, the ways in turn.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

import metamix_tflite as mt
from metamix_tflite.run.compiled import start_runtime
from metamix_tflite.run.latency import random_inputs

# The file of all points in a CompiledModel, by the cache that it is given.
CACHES = {"compiled": None, "compiled_memory": ":memory", "compiled_folder": "packed"}
WAYS = ("nothing", "one_point", "one_file", "separate_files", "runtime", *CACHES)
SHARED = "all.tflite"
LOADS = 10


def parse_flags() -> argparse.Namespace:
    """Parses the command line; --way is for the processes that this one starts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", default="mobilenet_v2", help="network of keras_metamix.zoo")
    add("--bits", default="4,3,2", help="candidate bit-widths")
    add("--runs", type=int, default=50, help="timed inferences")
    add("--json", type=Path, help="where to write the figures")
    add("--way", choices=WAYS, help=argparse.SUPPRESS)
    add("--folder", type=Path, help=argparse.SUPPRESS)
    add("--shape", type=int, nargs="*", help=argparse.SUPPRESS)
    return parser.parse_args()


def write_files(model_name: str, candidates: tuple[int, ...], folder: Path) -> None:
    """Writes the file of all points, and one for each point."""
    import keras

    import keras_metamix as kmm
    from keras_metamix import zoo

    keras.utils.set_random_seed(0)
    space = kmm.SearchSpace(candidates, "same")
    model = kmm.BitMixerModel.from_float(getattr(zoo, model_name)(), space)
    shape = model.network.inputs[0].shape[1:]
    kmm.calibrate(model, np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32))
    model.stage = "layer_wise"
    high, low = max(candidates), min(candidates)
    points = {"low": model.uniform_bits(low), "high": model.uniform_bits(high)}
    names = [layer.name for layer in model.mac_layers]
    mixed = {n: points["low" if i % 2 else "high"].weight_bits[n] for i, n in enumerate(names)}
    points["mixed"] = kmm.BitAssignment(mixed, mixed)
    flat = mt.convert(model, operating_points=points)
    mt.verify(flat, points)
    (folder / SHARED).write_bytes(flat)
    for name, bits in points.items():
        model.set_bits(bits)
        (folder / f"{name}.tflite").write_bytes(mt.convert(model))


def separate_files(folder: Path) -> list[Path]:
    """The files of one point each."""
    return sorted(path for path in folder.glob("*.tflite") if path.name != SHARED)


def load(way: str, folder: Path) -> list[Callable[..., object]]:
    """Loads one way; the functions run an inference of each point."""
    if way == "nothing":
        return []
    if way == "runtime":
        start_runtime()
        return []
    if way == "one_file" or way in CACHES:
        engine = "interpreter" if way == "one_file" else "compiled"
        cache = CACHES.get(way)
        if cache == "packed":
            cache = folder / cache
            cache.mkdir(exist_ok=True)
        flat = (folder / SHARED).read_bytes()
        runner = mt.OperatingPointRunner(flat, engine=engine, weight_cache=cache)
        return [functools.partial(run_point, runner, point.name) for point in runner.points]
    paths = separate_files(folder)[: 1 if way == "one_point" else None]
    return [mt.Runner(path.read_bytes()).invoke for path in paths]


def run_point(runner: mt.OperatingPointRunner, name: str, *inputs: np.ndarray) -> None:
    """One inference of a point."""
    runner.select(name)
    runner.invoke(*inputs)


def resident_bytes() -> int:
    """VmRSS of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (found,) = [line for line in lines if line.startswith("VmRSS:")]
    return int(found.split()[1]) * 1024


def resident_of(way: str, folder: Path, shape: Sequence[int]) -> int:
    """VmRSS of a process that loads one way and runs each of its points."""
    command = [sys.executable, __file__, f"--way={way}", f"--folder={folder}", "--shape"]
    command += [str(n) for n in shape]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(result.stdout.splitlines()[-1])


def median_us(function: Callable[[], object], runs: int) -> float:
    """Median time of a call."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        function()
        times.append((time.perf_counter() - start) * 1e6)
    return float(np.median(times))


def load_us(folder: Path) -> dict[str, float]:
    """Median CPU time of loading, by way; after the first time."""
    times: dict[str, list[float]] = {way: [] for way in ("one_point", "one_file", *CACHES)}
    for _ in range(1 + LOADS):
        for way, found in times.items():
            start = time.process_time()
            load(way, folder)
            found.append((time.process_time() - start) * 1e6)
    return {way: float(np.median(found[1:])) for way, found in times.items()}


def switch_us(runner: mt.OperatingPointRunner, runs: int) -> dict[str, float]:
    """Median time of an inference of the first point that follows itself, or another point."""
    inputs = random_inputs(runner.input_details)
    first, *others = [point.name for point in runner.points]
    times: dict[str, list[float]] = {"same": [], "other": []}
    for number in range(runs):
        turns = (first, times["same"]), (others[number % len(others)], times["other"])
        for before, found in turns:
            run_point(runner, before, *inputs)
            start = time.perf_counter()
            run_point(runner, first, *inputs)
            found.append((time.perf_counter() - start) * 1e6)
    return {name: float(np.median(found)) for name, found in times.items()}


def measure(folder: Path, runs: int) -> dict[str, object]:
    """All figures: bytes and microseconds."""
    flat = (folder / SHARED).read_bytes()
    parts = {path.stem: path.stat().st_size for path in separate_files(folder)}
    runner = mt.OperatingPointRunner(flat)
    shape = runner.input_details[0]["shape"]
    load(WAYS[-1], folder)  # packs the weights into the folder
    memory = {way: resident_of(way, folder, shape) for way in WAYS}
    base = {way: memory["runtime" if way in CACHES else "nothing"] for way in WAYS}
    runner.measure(runs)
    switch = switch_us(runner, runs)
    return {
        "file_bytes": len(flat),
        "separate_bytes": parts,
        "separate_bytes_sum": sum(parts.values()),
        "resident_bytes": {w: memory[w] - base[w] for w in WAYS[1:]},
        "load_us": load_us(folder),
        "bops": {point.name: point.bops for point in runner.points},
        "latency_us": {point.name: point.latency_us for point in runner.points},
        "inference_after_same_us": switch["same"],
        "inference_after_other_us": switch["other"],
        "select_us": median_us(lambda: runner.select(runner.selected.name), runs),
    }


def main() -> None:
    """Measures, prints and writes the figures."""
    flags = parse_flags()
    if flags.way:
        inputs = random_inputs([{"dtype": np.float32, "shape": flags.shape}])
        points = load(flags.way, flags.folder)
        for run in points:
            run(*inputs)
        print(resident_bytes())
        return
    candidates = tuple(int(b) for b in flags.bits.split(","))
    with tempfile.TemporaryDirectory() as name:
        write_files(flags.model, candidates, Path(name))
        figures = {"model": flags.model, "bits": candidates, **measure(Path(name), flags.runs)}
    for key, value in figures.items():
        rows = value.items() if isinstance(value, dict) else [("", value)]
        for row, number in rows:
            text = f"{number:,.1f}" if isinstance(number, float) else f"{number}"
            print(f"{key:26} {row:16} {text:>14}")
    if flags.json:
        flags.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""How well sums of a latency table predict whole files, and what a search makes of them.

    python benchmarks/latency_table.py [--json=FILE] [--parts=prediction,search]

"prediction": MobileNetV2 at 224 pixels, untrained: the table of its operators against whole files
of uniform bits and of random ones from {8, 4}. Whole files are timed as the operators are, without
the copies of inputs and outputs, and with them, as `metamix-benchmark` does.

"search": the quickstart's ResNet-8 and a small MobileNetV2, on 2,000 images of the extract, a few
epochs: bits found against BOPs, then against a latency half-way from the fastest assignment to what
these take.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

import keras_metamix as kmm
import metamix_tflite as mt
from keras_metamix import data, zoo
from keras_metamix.launch import profile
from keras_metamix.launch.results import today
from metamix_tflite.run.latency import benchmark_all, run_times
from metamix_tflite.write.operator_files import operator_files

BITS = (8, 4)
SPACE = kmm.SearchSpace(activation_bits=(8, 4, 3), weight_bits=(8, 4))
NETWORKS = {
    "small_resnet": lambda: zoo.small_resnet(width=16, stem_strides=2),
    "small_mobilenet": lambda: zoo.small_mobilenet(stem_strides=2),
}


def parse_flags() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--json", type=Path, help="where to write the figures")
    add("--parts", default="prediction,search", help="of prediction,search")
    add("--runs", type=int, default=50, help="timed inferences")
    add("--assignments", type=int, default=6, help="random ones")
    return parser.parse_args()


def table_of(model: keras.Model, folder: str, runs: int, **bits: tuple[int, ...]) -> Path:
    """The table of a model, measured by the command."""
    place, table = Path(folder, "float.keras"), Path(folder, f"{model.name}.json")
    model.save(place)
    flags = [f"--{name}={','.join(map(str, found))}" for name, found in bits.items()]
    command = ["profile", str(place), f"--output={table}", f"--runs={runs}", *flags]
    profile.main(profile.parse_flags(command))
    return table


def random_bits(model: keras.Model, seed: int) -> kmm.BitAssignment:
    """8 or 4 bits for each layer's activation and weights; 8 at the ends."""
    generator = np.random.default_rng(seed)
    costs = kmm.layer_costs(model)
    activation, weight = (
        {c.name: 8 if c.edge else int(generator.choice(BITS)) for c in costs} for _ in range(2)
    )
    return kmm.BitAssignment(activation, weight)


def prediction(folder: str, runs: int, assignments: int) -> dict[str, Any]:
    """Predicted and measured microseconds of MobileNetV2's files."""
    keras.utils.set_random_seed(0)
    model = zoo.mobilenet_v2(weights=None)
    path = table_of(model, folder, runs, activation_bits=BITS, weight_bits=BITS)
    kernels, table = json.loads(path.read_text())["kernels"], kmm.LatencyTable.load(path)
    chosen = {
        f"A{a}W{w}": kmm.uniform_assignment(model, a, w) for a, w in itertools.product(BITS, BITS)
    }
    chosen |= {f"random {seed}": random_bits(model, seed) for seed in range(assignments)}
    quantized = kmm.MetaMixModel.from_float(model, kmm.SearchSpace(BITS, BITS))
    image = np.random.default_rng(0).normal(size=(1, 224, 224, 3)).astype(np.float32)
    kmm.calibrate(quantized, image)
    files, unknown = {}, 0
    for name, bits in chosen.items():
        quantized.set_bits(bits)
        files[name] = mt.convert(quantized, golden=0)
        unknown += sum(file.kernel not in kernels for file in operator_files(files[name]))
    alone, copied = run_times(files, runs=runs), benchmark_all(files, runs=runs)
    rows = [
        {
            "bits": name,
            "predicted_us": (predicted := table.predict(kmm.layer_costs(model), bits)),
            "measured_us": alone[name],
            "error": predicted / alone[name] - 1,
            "with_copies_us": copied[name].median_us,
        }
        for name, bits in chosen.items()
    ]
    return {
        "origin": table.origin,
        "operators": len(kernels),
        "operators_outside_the_table": unknown,
        "fixed_us": table.fixed_us,
        "rows": rows,
        "largest_error": max(abs(row["error"]) for row in rows),
    }


def search(name: str, folder: str, runs: int) -> dict[str, Any]:
    """What the searches against BOPs and against latency choose of a network, and its files."""
    (images, labels), (test_images, test_labels) = data.load_extract()
    train = np.asarray(data.normalize(images[:2000])), labels[:2000]
    test = np.asarray(data.normalize(test_images)), test_labels
    keras.utils.set_random_seed(0)
    model = NETWORKS[name]()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(4e-3), loss, metrics=["accuracy"])
    model.fit(*train, batch_size=64, epochs=3, verbose=0)
    table = kmm.LatencyTable.load(
        table_of(model, folder, runs, activation_bits=SPACE.activation_bits, weight_bits=BITS)
    )

    def searched(**target: Any) -> kmm.MetaMixModel:
        keras.utils.set_random_seed(0)
        found = kmm.MetaMixModel.from_float(model, SPACE)
        found.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
        callback = kmm.MetaMixCallback(search_epochs=2, verbose=0, **target)
        found.fit(*train, batch_size=64, epochs=5, callbacks=[callback], verbose=0)
        return found

    by_bops = searched(target_bops=0.9 * kmm.bops(model, kmm.uniform_assignment(model, 4, 8)))
    costs = kmm.Latency(table, share=1.0).priced(by_bops)
    fastest, slowest = costs.least, costs.most
    target = (fastest + costs.total(by_bops.bit_assignment)) / 2
    by_latency = searched(budget=kmm.Latency(table, target))
    models = {"bops": by_bops, "latency": by_latency}
    files = {found: mt.convert(m) for found, m in models.items()}
    for found, flat in files.items():
        mt.verify(flat, models[found].bit_assignment)
    times = run_times(files, runs=4 * runs)
    return {
        "fastest_us": fastest,
        "slowest_us": slowest,
        "target_us": target,
        "same_bits": by_bops.bit_assignment == by_latency.bit_assignment,
        "searches": {
            found: _choice(m, costs.total(m.bit_assignment), times[found], len(files[found]), test)
            for found, m in models.items()
        },
    }


def _choice(
    model: kmm.MetaMixModel, predicted: float, measured: float, size: int, test: Any
) -> dict[str, Any]:
    bits = model.bit_assignment
    return {
        "predicted_us": predicted,
        "measured_us": measured,
        "bops": kmm.bops(model, bits),
        "average_bits": kmm.average_bits(kmm.layer_costs(model), bits),
        "file_bytes": size,
        "accuracy": model.evaluate(*test, verbose=0, return_dict=True)["accuracy"],
        "activation_bits": dict(bits.activation_bits),
        "weight_bits": dict(bits.weight_bits),
    }


def _print(figures: Mapping[str, Any], above: str = "") -> None:
    for key, value in figures.items():
        if isinstance(value, Mapping) and not key.endswith("_bits"):
            _print(value, f"{above}{key}.")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            for row in value:
                print(f"{above}{key}: {row}")
        else:
            print(f"{above}{key}: {value}")


def main() -> None:
    """Measures, prints and writes the figures."""
    flags = parse_flags()
    figures: dict[str, Any] = {"date": today()}
    with tempfile.TemporaryDirectory() as folder:
        if "prediction" in flags.parts:
            figures["prediction"] = prediction(folder, flags.runs, flags.assignments)
        if "search" in flags.parts:
            figures["search"] = {name: search(name, folder, flags.runs) for name in NETWORKS}
    _print(figures)
    if flags.json:
        flags.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()

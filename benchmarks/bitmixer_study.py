"""Does transitional batch norm earn its keep? Trains Bit-Mixer's variants and measures each at many
bit-widths, without fine-tuning:

    python benchmarks/bitmixer_study.py --seeds 3 --output docs/bitmixer_study

Writes OUTPUT.json, OUTPUT.md and OUTPUT.png. A variant that the JSON file has already is not
trained again, so that an interrupted study goes on. Of each seed, from the same float weights and
for as many epochs each:

- "feeding", "following": transitional batch norm in its two readings;
- "switchable": one batch-norm set for each bit-width; "shared": one set;
- "re-estimated": the shared one, its statistics estimated anew for each assignment measured;
- "individual": a network trained for one uniform bit-width alone.

Each is measured on the test images at the uniform bit-widths and at random layer-wise assignments,
the same for all.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

import keras_metamix as kmm
from keras_metamix.files import written_whole
from keras_metamix.launch.config import complete
from keras_metamix.launch.datasets import load_data
from keras_metamix.launch.optimization import compile_model, cosine
from keras_metamix.launch.session import Session
from keras_metamix.launch.training import (
    float_network,
    search_space,
    train_float,
    train_mixer,
    train_uniform,
)
from keras_metamix.layers.mode import quantization_mode
from keras_metamix.report import style

TRAINED = ("feeding", "following", "switchable", "shared")
VARIANTS = (*TRAINED, "re-estimated")
STATISTICS_IMAGES = 1024  # of the training data, for the re-estimated variant


def main() -> None:
    """Runs what the study lacks, and writes it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=Path("configs/bitmixer_quickstart.py"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--stage_epochs", type=int, nargs=3, help="default: the config's")
    parser.add_argument("--width", type=int, help="of the network; default: the config's")
    parser.add_argument("--assignments", type=int, default=200, help="random ones; default: 200")
    parser.add_argument("--output", type=Path, default=Path("runs/bitmixer_study"))
    arguments = parser.parse_args()
    config = _config(arguments)
    file = arguments.output.with_suffix(".json")
    study = {"config": config.to_dict(), "assignments": arguments.assignments, "seeds": {}}
    study = json.loads(json.dumps(study))
    if file.is_file():
        found = json.loads(file.read_text())
        if any(found[key] != study[key] for key in ("config", "assignments")):
            raise SystemExit(f"{file}: is of another config; name another --output, or remove it.")
        study = found
    for seed in range(arguments.seeds):
        _run_seed(config, seed, study, file)
    _write(arguments.output, study)


def _config(arguments: argparse.Namespace) -> Any:
    spec = importlib.util.spec_from_file_location("config", arguments.config)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    if arguments.stage_epochs:
        config.mixer.stage_epochs = tuple(arguments.stage_epochs)
    if arguments.width:
        config.model.width = arguments.width
    return complete(config)


def _run_seed(config: Any, seed: int, study: dict[str, Any], file: Path) -> None:
    """Trains and measures what the study does not have of a seed yet."""
    results = study["seeds"].setdefault(str(seed), {})
    wanted = {*VARIANTS, "individual", "float"}
    if wanted <= set(results):
        return
    config = dataclasses.replace(config, seed=seed)
    keras.utils.set_random_seed(seed)
    data = load_data(config)
    session = Session(config, data)
    model = train_float(session, float_network(config, data))
    results["float"] = float(model.evaluate(data.test, verbose=0, return_dict=True)["accuracy"])
    for reading in TRAINED:
        names = [reading, "re-estimated"] if reading == "shared" else [reading]
        if set(names) <= set(results):
            continue
        section = dataclasses.replace(config.mixer, batch_norm=reading)
        session.config = dataclasses.replace(config, mixer=section)
        mixer, _ = train_mixer(session, model)
        for name in names:
            results[name] = _measure(mixer, data, study["assignments"], name)
            print(f"seed {seed}, {name}: {_line(results[name])}", flush=True)
        _save(file, study)
    if "individual" not in results:
        uniform = {}
        for bits in search_space(config).activation_bits:
            alone = _alone(session, model, bits)
            found = alone.evaluate(data.test, verbose=0, return_dict=True)
            uniform[str(bits)] = float(found["accuracy"])
        results["individual"] = {"uniform": uniform}
        print(f"seed {seed}, individual: {uniform}", flush=True)
        _save(file, study)


def _alone(session: Any, float_model: keras.Model, bits: int) -> Any:
    """The network, trained at one bit-width for as many epochs."""
    config, epochs = session.config, sum(session.config.mixer.stage_epochs)

    def ready(model: Any) -> None:
        rate = cosine(config.train.learning_rate, epochs * session.data.steps)
        compile_model(model, config, rate)

    return train_uniform(session, float_model, bits, epochs, ready)


def _measure(mixer: Any, data: Any, assignments: int, name: str) -> dict[str, Any]:
    """Test accuracy of a trained model at the uniform and the random assignments."""
    images, labels = tf.constant(data.test_images), tf.constant(data.test_labels, "int64")

    @tf.function
    def accuracy() -> Any:
        found = tf.argmax(mixer(images, training=False), -1)
        return tf.reduce_mean(tf.cast(tf.equal(found, labels), "float32"))

    estimate = _estimator(mixer, data) if name == "re-estimated" else lambda: None
    costs = kmm.layer_costs(mixer.network)
    candidates = mixer.space.activation_bits

    def at(bits: Any) -> float:
        mixer.set_bits(bits)
        estimate()
        return float(accuracy())

    norms = [x for x in mixer.network.layers if isinstance(x, keras.layers.BatchNormalization)]
    kept = [norm.get_weights() for norm in norms]
    uniform = {str(bits): at(mixer.uniform_bits(bits)) for bits in candidates}
    generator = np.random.default_rng(0)
    found, averages = [], []
    for _ in range(assignments):
        bits = _random_bits(mixer, generator)
        found.append(at(bits))
        averages.append(kmm.average_bits(costs, bits)[0])
    for norm, weights in zip(norms, kept, strict=True):
        norm.set_weights(weights)
    return {"uniform": uniform, "random": found, "average_bits": averages}


def _random_bits(mixer: Any, generator: np.random.Generator) -> kmm.BitAssignment:
    uniform = mixer.uniform_bits(mixer.space.activation_bits[0])
    activations, weights = dict(uniform.activation_bits), dict(uniform.weight_bits)
    for layer in mixer.mac_layers:
        if layer.input_quantizer.choice.searched:
            bits = int(generator.choice(layer.input_quantizer.candidates))
            activations[layer.name] = bits
            weights[layer.name] = bits if layer.tied else weights[layer.name]
    return kmm.BitAssignment(activations, weights)


def _estimator(mixer: Any, data: Any) -> Any:
    """A function that replaces the batch-norm statistics by those of one large batch."""
    batches = data.train.unbatch().batch(STATISTICS_IMAGES).take(1)
    images = next(iter(batches))[0]
    norms = [x for x in mixer.network.layers if isinstance(x, keras.layers.BatchNormalization)]

    @tf.function
    def estimate() -> None:
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 0.0
        with quantization_mode(mixer.evaluation_mode()):
            mixer(images, training=True)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum

    return estimate


def _gaps(result: dict[str, Any]) -> np.ndarray:
    """Accuracy of each random assignment less that of uniform bits, between whose bit-widths it is
    interpolated at the same average of activation bits."""
    bits = sorted(map(int, result["uniform"]))
    uniform = np.interp(result["average_bits"], bits, [result["uniform"][str(b)] for b in bits])
    return np.asarray(result["random"]) - uniform


def _line(result: dict[str, Any]) -> str:
    found = 100 * np.asarray(result["random"])
    uniform = "  ".join(f"{bits} bits {100 * v:.2f}" for bits, v in result["uniform"].items())
    return (
        f"{uniform}  random mean {found.mean():.2f}  5th percentile {np.percentile(found, 5):.2f}  "
        f"worst {found.min():.2f}  median gap to uniform {100 * np.median(_gaps(result)):+.2f}"
    )


def _save(file: Path, study: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(file) as temporary:
        temporary.write_text(json.dumps(study) + "\n")


def _write(output: Path, study: dict[str, Any]) -> None:
    """The table and the picture of a finished study."""
    seeds = list(study["seeds"].values())
    bits = list(seeds[0]["feeding"]["uniform"])
    head = [*(f"{b} bits" for b in bits), "random: mean", "5th percentile", "worst", "median gap"]
    rows = ["| | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
    for name in VARIANTS:
        columns = [[100 * s[name]["uniform"][b] for s in seeds] for b in bits]
        for reduce in (np.mean, lambda x: np.percentile(x, 5), np.min):
            columns.append([100 * float(reduce(s[name]["random"])) for s in seeds])
        columns.append([100 * float(np.median(_gaps(s[name]))) for s in seeds])
        rows.append(f"| {name} | " + " | ".join(map(_cell, columns)) + " |")
    alone = [_cell([100 * s["individual"]["uniform"][b] for s in seeds]) for b in bits]
    rows.append("| individual | " + " | ".join(alone) + " | | | | |")
    page = [
        f"Test accuracy in percent, mean and standard deviation of {len(seeds)} seeds; float: "
        f"{_cell([100 * s['float'] for s in seeds])}. Random: {study['assignments']} layer-wise "
        "assignments. Gap: to uniform bits of the same average, interpolated.",
        "",
        *rows,
        "",
    ]
    with written_whole(output.with_suffix(".md")) as temporary:
        temporary.write_text("\n".join(page))
    with written_whole(output.with_suffix(".png")) as temporary:
        _picture(seeds, bits).savefig(temporary, format="png")
    print("\n".join(page))


def _cell(values: list[float]) -> str:
    return f"{np.mean(values):.2f} ± {np.std(values):.2f}"


def _picture(seeds: list[dict[str, Any]], bits: list[str]) -> Figure:
    figure = Figure(figsize=(style.WIDTH, 4.2), dpi=100, layout="constrained")
    axis = figure.subplots()
    found = [np.concatenate([100 * np.asarray(s[v]["random"]) for s in seeds]) for v in VARIANTS]
    axis.boxplot(
        found, whis=(5, 95), widths=0.5, showfliers=True, flierprops={"markersize": 2},
        medianprops={"color": style.INK}, label="random assignments, 5th to 95th percentile",
    )  # fmt: skip
    places = np.arange(1, len(VARIANTS) + 1)
    for b in bits:
        level = [np.mean([100 * s[v]["uniform"][b] for s in seeds]) for v in VARIANTS]
        alone = np.mean([100 * s["individual"]["uniform"][b] for s in seeds])
        colour = style.bit_colour(int(b))
        axis.scatter(places + 0.34, level, marker="_", s=220, color=colour, label=f"uniform {b}")
        axis.axhline(alone, color=colour, linestyle=":", linewidth=1, label=f"trained alone, {b}")
    axis.set_xticks(places, VARIANTS)
    style.finish(axis, ylabel="test accuracy, percent")
    figure.legend(loc="outside right upper", **style.LEGEND)
    return figure


if __name__ == "__main__":
    main()

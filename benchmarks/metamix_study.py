"""Does MetaMix's search earn its keep? Trains what it is compared with, at equal cost and epochs:

    python benchmarks/metamix_study.py --networks mobilenet --seeds 0 1 2 3 4

Writes OUTPUT.json, OUTPUT.md and OUTPUT_*.png. What the JSON file has already is not trained again,
so that the study goes on after any interruption, in as many sessions as it takes; several
processes may share it, each with seeds of its own. `--page` writes page and pictures of what there
is. Trained networks are kept in `--work`; without that folder those that are needed are trained
again.

Of each network and seed a float network is trained on 55,000 images of Fashion-MNIST. From it,
under each budget, a MetaMix selection (half a pass over the images of bit-meta, half a pass of
bit-search) and then, for each choice of bits, one pass of weight training from the very same
meta-state:

- "metamix": the bits that the search chose; "random 0" to "random 4": drawn at random, at the
  same cost; "sensitivity": `kmm.sensitivity` on the float network and on the meta-state, and
  the knapsack; "hessian": HAWQ-V2's traces of the float network, and the knapsack.
- "moving": a search of the same length whose meta-state moves (Fig. 7a); "joint": one without a
  meta-state, as DNAS and EdMIPS have it. Each trains on from its own weights.
- "uniform A4W4" and so on, and "float": trained as long, from the float network, by the same
  learning rates. "sensitivity, no meta-state": the float network's choice, trained likewise.

Batch norms of the quantized networks are re-estimated from 32 training batches at the end, as
`MetaMixCallback` does. The 5,000 images that are held out of training choose nothing; the 10,000
test images are read once by each trained network. Sensitivity reads 2,000 training images.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import functools
import json
import os
import runpy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from joint_search import JointSearchModel
from metamix_study_page import write_page

import keras_metamix as kmm
from keras_metamix import zoo
from keras_metamix.batches import image_batches
from keras_metamix.calibration import calibrate
from keras_metamix.cost import PricedBudget, select
from keras_metamix.files import written_whole
from keras_metamix.launch.config import complete
from keras_metamix.launch.datasets import load_data
from keras_metamix.launch.optimization import compile_model, cosine
from keras_metamix.metamix.schedule import SelectionThenCosine

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.py"  # data and optimizer
NETWORKS: dict[str, Callable[[], keras.Model]] = {
    "mobilenet": lambda: zoo.small_mobilenet(width=8),
    "resnet": lambda: zoo.small_resnet(width=8, stem_strides=2),
    "deep": lambda: zoo.mobilenet_v2((28, 28, 1), 10, width=0.35, momentum=0.9),
}
BATCH, VALIDATION = 128, 5000
FLOAT_PASSES, FLOAT_RATE = 6, 4e-3
SELECTION_RATE, RATE = 1e-3, 1e-3
SENSITIVITY_IMAGES, HESSIAN_IMAGES, RANDOM = 2000, 1024, 5


@dataclasses.dataclass(frozen=True)
class Setting:
    """A search space and a budget.

    Attributes:
      space: the candidates.
      of: the uniform bits (activations, weights) whose cost is the measure.
      share: of their cost that a network may cost.
      unit: "BOPs", or "bytes" of packed weights.
      uniform: the uniform bits that stand beside, whatever they cost.
    """

    space: kmm.SearchSpace
    of: tuple[int, int]
    share: float
    unit: str
    uniform: tuple[tuple[int, int], ...]

    def budget(self, model: kmm.MetaMixModel) -> PricedBudget:
        """The budget, priced for a model."""
        full = kmm.Bops(share=1.0)
        if self.unit == "bytes":
            layers = kmm.layer_costs(model)
            table = {
                layer.name: {
                    (a, w): layer.weights * w / 8
                    for a, w in model.cost_table.candidates[layer.name]
                }
                for layer in layers
            }
            full = kmm.Priced(table, share=1.0)
        priced = full.priced(model)
        limit = self.share * priced.total(kmm.uniform_assignment(model, *self.of))
        return dataclasses.replace(priced, limit=limit)

    def given(self, model: kmm.MetaMixModel) -> Any:
        """The budget as `MetaMixCallback` and `select_bits` take it."""
        priced = self.budget(model)
        if self.unit == "BOPs":
            return kmm.Bops(priced.limit)
        return kmm.Priced(priced.prices, priced.limit)


SETTINGS = {
    "A842": Setting(kmm.SearchSpace((8, 4, 2), 4), (4, 4), 0.65, "BOPs", ((4, 4), (2, 4))),
    "A843": Setting(kmm.SearchSpace((8, 4, 3), 4), (4, 4), 0.85, "BOPs", ((3, 4),)),
    "W8432": Setting(kmm.SearchSpace(8, (8, 4, 3, 2)), (8, 8), 0.32, "bytes", ((8, 3), (8, 2))),
}


def main() -> None:
    """Runs what the study lacks, and writes it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=[*NETWORKS], default=["mobilenet"])
    parser.add_argument("--settings", nargs="+", choices=[*SETTINGS], default=[*SETTINGS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--arms", nargs="+", help="default: all; names, or how they begin")
    parser.add_argument("--data", default="fashion_mnist", help="or fashion_mnist_extract")
    parser.add_argument("--passes", type=float, default=1.0, help="of weight training")
    parser.add_argument("--work", type=Path, default=Path("runs/metamix_study"))
    parser.add_argument("--output", type=Path, default=Path("docs/metamix_study"))
    parser.add_argument("--page", action="store_true", help="write the page of what there is")
    given = parser.parse_args()
    file = given.output.with_suffix(".json")
    arguments = {"data": given.data, "passes": given.passes, "batch": BATCH, "version": 2}
    study = {"arguments": arguments, "results": {}}
    if file.is_file():
        study = json.loads(file.read_text())
        if study["arguments"] != arguments:
            raise SystemExit(f"{file}: is of {study['arguments']}: name another --output.")
    if not given.page:
        for seed in given.seeds:
            for network in given.networks:
                _Seed(given, study, file, network, seed).run()
    write_page(given.output, study)


def _add(file: Path, arguments: Any, at: tuple[str, ...], found: dict[str, Any]) -> None:
    """Adds a result to the file, which other processes add to as well."""
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        study = {"arguments": arguments, "results": {}}
        if file.is_file():
            study = json.loads(file.read_text())
        into = study["results"]
        for key in at[:-1]:
            into = into.setdefault(key, {})
        into[at[-1]] = found[at[-1]]
        with written_whole(file) as temporary:
            temporary.write_text(json.dumps(study, indent=1) + "\n")
    finally:
        os.close(folder)  # which unlocks it


def _config(data: str, seed: int) -> Any:
    config = runpy.run_path(str(QUICKSTART))["get_config"]()
    config.seed = seed
    config.data.name, config.data.augment, config.data.validation = data, False, VALIDATION
    config.train.batch_size = BATCH
    return complete(config)


class _Seed:
    """A network and a seed, and what is trained of it."""

    def __init__(self, given: Any, study: Any, file: Path, network: str, seed: int) -> None:
        self.given, self.study, self.file = given, study, file
        self.network, self.seed = network, seed
        self.config = _config(given.data, seed)
        self.data = load_data(self.config)
        self.steps = self.data.steps  # of a pass
        self.half = self.steps // 2
        self.training = round(given.passes * self.steps)
        self.folder = given.work / f"{network}-{seed}"
        self.folder.mkdir(parents=True, exist_ok=True)

    # --- what is wanted ---------------------------------------------------------------------

    def run(self) -> None:
        """Trains what is not there yet, what matters most first."""
        self._note("float", "float network", lambda: {"accuracy": self._float_accuracy()})
        for name in self.given.settings:
            self._selection_arms(name, SETTINGS[name])
        for name in self.given.settings:
            for activation, weight in SETTINGS[name].uniform:
                self._note(
                    "uniform",
                    f"uniform A{activation}W{weight}",
                    functools.partial(self._uniform, name, activation, weight),
                )
        self._note("float", "float, trained on", self._float_on)

    def _selection_arms(self, name: str, setting: Setting) -> None:
        choose: dict[str, Callable[[Any], kmm.BitAssignment]] = {
            "metamix": lambda model: kmm.select_bits(model, setting.given(model)),
            "random 0": lambda model: self._random(setting, model, 0),
            "sensitivity, meta-state": lambda _: self._by(name, setting, "meta-state"),
            "sensitivity, float network": lambda _: self._by(name, setting, "float"),
            "hessian": lambda model: self._by_hessian(setting, model),
            **{
                f"random {n}": lambda model, n=n: self._random(setting, model, n)
                for n in range(1, RANDOM)
            },
        }
        for arm, bits in choose.items():
            train = functools.partial(self._train_on, name, setting, "metamix", bits)
            self._note(name, arm, train)
        self._note(
            name, "sensitivity, no meta-state", functools.partial(self._from_float, name, setting)
        )
        for kind in ("moving", "joint"):
            searched = choose["metamix"]
            train = functools.partial(self._train_on, name, setting, kind, searched)
            self._note(name, kind, train)

    def _note(self, group: str, arm: str, train: Callable[[], dict[str, Any]]) -> None:
        """Runs an arm unless its result is there, and saves it."""
        wanted = self.given.arms
        if wanted and not any(arm.startswith(w) for w in wanted) and group != "float":
            return
        results = self.study["results"].setdefault(self.network, {}).setdefault(group, {})
        found = results.setdefault(str(self.seed), {})
        if arm in found:
            return
        began, cpu = time.monotonic(), time.process_time()
        found[arm] = train()
        found[arm]["seconds"] = round(time.monotonic() - began, 1)
        found[arm]["cpu_seconds"] = round(time.process_time() - cpu, 1)
        print(
            f"{self.network} {self.seed} {group} {arm}: {100 * found[arm]['accuracy']:.2f} % "
            f"in {found[arm]['seconds']:.0f} s",
            flush=True,
        )
        _add(self.file, self.study["arguments"], (self.network, group, str(self.seed), arm), found)

    # --- float ------------------------------------------------------------------------------

    @functools.cached_property
    def float_model(self) -> keras.Model:
        """The trained float network."""
        keras.utils.set_random_seed(self.seed)
        model, file = NETWORKS[self.network](), self.folder / "float.weights.h5"
        if file.is_file():
            model.load_weights(file)
            compile_model(model, self.config, RATE)
            return model
        fast = kmm.fast_float(model)
        compile_model(fast, self.config, cosine(FLOAT_RATE, FLOAT_PASSES * self.steps))
        self._fit(fast, FLOAT_PASSES * self.steps)
        model.set_weights(fast.get_weights())
        compile_model(model, self.config, RATE)
        model.save_weights(file)
        return model

    def _float_accuracy(self) -> float:
        return self._tested(self.float_model)["accuracy"]

    def _float_on(self) -> dict[str, Any]:
        """The float network, trained for as many steps as the others."""
        model = keras.models.clone_model(self.float_model)
        model.set_weights(self.float_model.get_weights())
        fast = kmm.fast_float(model)
        compile_model(fast, self.config, _trained_on(self.half, self.training))
        self._fit(fast, 2 * self.half + self.training)
        return self._tested(fast)

    # --- selections -------------------------------------------------------------------------

    def _selected(self, name: str, setting: Setting, kind: str) -> kmm.MetaMixModel:
        """The model at the end of its search, with the bits not yet chosen."""
        file = self.folder / f"{name}-{kind}.npz"
        model = self._ready(name, kind)
        if not file.is_file():
            self._begin(model)
            callback = kmm.MetaMixCallback(
                setting.given(model),
                meta_epochs=int(kind != "joint"),
                search_epochs=1 if kind != "joint" else 2,
                statistics_batches=0,
                statistics_data=self.data.train,
                verbose=0,
            )
            keep = _KeepSearched()
            self._fit(model, self.half, 2, keep, callback)
            np.savez(file, *keep.values)
        with np.load(file) as values:
            _restore(model, [values[key] for key in values.files])
        return model

    def _ready(self, name: str, kind: str) -> kmm.MetaMixModel:
        return _ready(self.network, name, kind, self.given.data, self.half, self.training)

    def _begin(self, model: kmm.MetaMixModel) -> None:
        """Readies a model for training from the float network, as if it had just been made."""
        keras.utils.set_random_seed(self.seed)
        fresh = type(model).from_float(self.float_model, model.space)
        for images in image_batches(self.data.train, 1):
            calibrate(fresh, images)
        _restore(model, [v.numpy() for v in fresh.weights])

    def _random(self, setting: Setting, model: Any, number: int) -> kmm.BitAssignment:
        """Bits of random scores, which use as much of the budget as the search's."""
        priced = setting.budget(model)
        generator = np.random.default_rng([self.seed, number])
        scores = {
            name: dict(zip(pairs, generator.normal(size=len(pairs)), strict=True))
            for name, pairs in priced.choices.items()
        }
        return select(scores, [priced])

    def _by(self, name: str, setting: Setting, start: str) -> kmm.BitAssignment:
        """The knapsack of the sensitivities of the float network or of the meta-state."""
        if start == "float":
            model = self._ready(name, "metamix")
            self._begin(model)
        else:
            model = self._selected(name, setting, "metamix")
        scores = kmm.sensitivity(model, self._images(SENSITIVITY_IMAGES), verbose=0)
        return kmm.select_bits(model, setting.given(model), scores)

    def _by_hessian(self, setting: Setting, model: kmm.MetaMixModel) -> kmm.BitAssignment:
        """The knapsack of HAWQ-V2: mean trace times what quantization changes of the weights.

        Where activations are searched, a layer's bits follow its weights' curvature all the same.
        """
        seen = self._images(HESSIAN_IMAGES)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        traces = kmm.hessian_trace(self.float_model, seen, loss, batch_size=BATCH)
        floats = {layer.name: layer for layer in self.float_model.layers}
        part = 1 if setting.unit == "bytes" else 0
        scores = {
            name: {
                pair: -traces[name].average * _perturbation(floats[name].kernel.numpy(), pair[part])
                for pair in pairs
            }
            for name, pairs in model.cost_table.choices.items()
        }
        return kmm.select_bits(model, setting.given(model), scores)

    def _images(self, count: int) -> tuple[Any, Any]:
        return next(iter(self.data.train.unbatch().batch(count)))

    # --- weight training --------------------------------------------------------------------

    def _train_on(self, name: str, setting: Setting, kind: str, choose: Any) -> dict[str, Any]:
        """Weight training at some bits from a selection's end; equal bits are trained once."""
        bits = choose(self._selected(name, setting, kind))
        model = self._ready(name, "weights")
        priced = setting.budget(model)
        found = {"cost": priced.total(bits) / priced.limit, "bits": _to_text(bits), "start": kind}
        for other in self.study["results"][self.network][name][str(self.seed)].values():
            if (other["start"], other["bits"]) == (kind, found["bits"]):
                return {**other, "again": True}
        source = self._selected(name, setting, kind)
        _restore(model, [v.numpy() for v in source.weights])
        return {**found, **self._at(model, bits, self.training)}

    def _from_float(self, name: str, setting: Setting) -> dict[str, Any]:
        arms = self.study["results"][self.network][name][str(self.seed)]
        known = arms.get("sensitivity, float network")
        bits = _read(known["bits"]) if known else self._by(name, setting, "float")
        model = self._ready(name, "from float")
        self._begin(model)
        priced = setting.budget(model)
        found = {
            "cost": priced.total(bits) / priced.limit,
            "bits": _to_text(bits),
            "start": "float",
        }
        return {**found, **self._at(model, bits, 2 * self.half + self.training)}

    def _uniform(self, name: str, activation: int, weight: int) -> dict[str, Any]:
        model = self._ready(name, "from float")
        bits = kmm.uniform_assignment(model, activation, weight)
        self._begin(model)
        found = {"bops": kmm.bops(model, bits), "bits": _to_text(bits), "start": "float"}
        return {**found, **self._at(model, bits, 2 * self.half + self.training)}

    def _at(self, model: kmm.MetaMixModel, bits: Any, steps: int) -> dict[str, Any]:
        model.set_bits(bits)
        kmm.prepare_weight_training(model, self.data.train, 32)
        self._fit(model, steps)
        kmm.reestimate_batch_norm(model, self.data.train)
        return self._tested(model)

    def _fit(self, model: Any, steps: int, epochs: int = 1, *callbacks: Any) -> None:
        keras.utils.set_random_seed(self.seed)
        model.fit(
            self.data.train,
            epochs=epochs,
            steps_per_epoch=steps,
            shuffle=False,  # the data set shuffles
            verbose=0,
            callbacks=[*callbacks],
        )

    def _tested(self, model: Any) -> dict[str, Any]:
        found = model.evaluate(self.data.test, verbose=0, return_dict=True)
        return {key: float(found[key]) for key in ("accuracy", "loss")}


class _KeepSearched(keras.callbacks.Callback):
    """Keeps a model's variables at the end of each epoch: before the bits are chosen."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.values = [v.numpy() for v in self.model.weights]


@functools.cache
def _ready(
    network: str, name: str, kind: str, data: str, half: int, training: int
) -> kmm.MetaMixModel:
    """A compiled model, made once for all seeds: to trace its steps takes longer than an arm's fit.

    Args:
      network, name: of NETWORKS and SETTINGS.
      kind: "metamix", "moving", "joint": of a selection; "weights": of weight training; "from
        float": of as many steps as both.
      data: the name of the images.
      half, training: steps of half a selection, and of weight training.
    """
    of = JointSearchModel if kind in ("moving", "joint") else kmm.MetaMixModel
    model = of.from_float(NETWORKS[network](), SETTINGS[name].space)
    rates = {"weights": cosine(RATE, training), "from float": _trained_on(half, training)}
    if of is JointSearchModel:
        model.kind = kind
    compile_model(model, _config(data, 0), rates.get(kind, SELECTION_RATE))
    return model


def _restore(model: kmm.MetaMixModel, values: list[np.ndarray]) -> None:
    """Gives a model its weights, and its optimizers none of their past."""
    for variable, value in zip(model.weights, values, strict=True):
        variable.assign(value)
    for optimizer, _ in model.optimizers():
        for variable in optimizer.variables:
            if variable.path.endswith("learning_rate"):
                continue
            variable.assign(np.zeros(variable.shape, variable.dtype))


def _perturbation(kernel: np.ndarray, bits: int) -> float:
    """The squared change of a kernel that is rounded to some bits, with a step for each channel."""
    kernel = kernel if kernel.shape[-1] > 1 else np.swapaxes(kernel, -1, -2)  # depthwise
    step = np.abs(kernel).max(axis=tuple(range(kernel.ndim - 1))) / (2 ** (bits - 1) - 1)
    step = np.maximum(step, 1e-12)
    return float(np.sum(np.square(np.rint(kernel / step) * step - kernel)))


def _trained_on(half: int, training: int) -> Any:
    """The rates of a network that is trained on for as long as selection and weight training."""
    return SelectionThenCosine(SELECTION_RATE, 2 * half, RATE, 2 * half + training, 0.01)


def _to_text(bits: kmm.BitAssignment) -> dict[str, str]:
    return {name: f"A{bits[name].activation}W{bits[name].weight}" for name in bits.activation_bits}


def _read(written: dict[str, str]) -> kmm.BitAssignment:
    pairs = {name: text[1:].split("W") for name, text in written.items()}
    return kmm.BitAssignment(
        {name: int(a) for name, (a, _) in pairs.items()},
        {name: int(w) for name, (_, w) in pairs.items()},
    )


if __name__ == "__main__":
    main()

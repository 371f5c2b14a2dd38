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
- "split": `MetaMixCallback(meta="split")`, whose bit-meta steps take about half of the time;
  trains on from its own meta-state.
- "moving": a search of the same length whose meta-state moves (Fig. 7a); "joint": one without a
  meta-state, as DNAS and EdMIPS have it. Both train weights in the search too, which MetaMix does
  not, and train on from their own. "bits of moving", "bits of joint", "bits of split": their
  bits, trained from MetaMix's meta-state, which compares the bits alone.
- "uniform A4W4" and so on, and "float": trained as long, from the float network, by the same
  learning rates. "sensitivity, no meta-state": the float network's choice, trained likewise.

Batch norms of the quantized networks are re-estimated from 32 training batches at the end, as
`MetaMixCallback` does. The 5,000 images that are held out of training choose nothing; the 10,000
test images are read once by each trained network. Sensitivity reads 2,000 training images.
"""

from __future__ import annotations

import argparse
import fcntl
import functools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metamix_study_choices import by_chance, by_hessian, by_sensitivity
from metamix_study_page import write_page
from metamix_study_settings import NETWORKS, SETTINGS, Setting
from metamix_study_training import BATCH, Training, restore

import keras_metamix as kmm
from keras_metamix.files import written_whole

RANDOM = 5  # assignments of each seed and budget


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
                _Arms(given, study, file, network, seed).run()
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


class _Arms:
    """What is compared of a network and a seed."""

    def __init__(self, given: Any, study: Any, file: Path, network: str, seed: int) -> None:
        self.given, self.study, self.file = given, study, file
        self.network, self.seed = network, seed
        self.training = Training(network, seed, given.data, given.passes, given.work)

    def run(self) -> None:
        """Trains what is not there yet, what matters most first."""
        self._note("float", "float network", self._float)
        for name in self.given.settings:
            self._of_setting(name, SETTINGS[name])
        for name in self.given.settings:
            for activation, weight in SETTINGS[name].uniform:
                self._note(
                    "uniform",
                    f"uniform A{activation}W{weight}",
                    functools.partial(self._uniform, name, activation, weight),
                )
        self._note("float", "float, trained on", self.training.float_on)

    def _of_setting(self, name: str, setting: Setting) -> None:
        choose: dict[str, Callable[[Any], kmm.BitAssignment]] = {
            "metamix": lambda model: kmm.select_bits(model, setting.given(model)),
            "random 0": lambda model: by_chance(setting, model, self.seed, 0),
            "sensitivity, meta-state": lambda model: by_sensitivity(self.training, setting, model),
            "sensitivity, float network": lambda _: self._by_float(name, setting),
            "hessian": lambda model: by_hessian(self.training, setting, model),
            **{
                f"random {n}": lambda model, n=n: by_chance(setting, model, self.seed, n)
                for n in range(1, RANDOM)
            },
        }
        for arm, bits in choose.items():
            train = functools.partial(self._from_search, name, setting, "metamix", bits)
            self._note(name, arm, train)
        self._note(
            name, "sensitivity, no meta-state", functools.partial(self._no_search, name, setting)
        )
        for kind in ("split", "moving", "joint"):
            train = functools.partial(self._from_search, name, setting, kind, choose["metamix"])
            self._note(name, kind, train)
            train = functools.partial(self._bits_of, name, setting, kind)
            self._note(name, f"bits of {kind}", train)

    def _note(self, group: str, arm: str, train: Callable[[], dict[str, Any]]) -> None:
        """Runs an arm unless its result is there, and saves it."""
        wanted = self.given.arms
        if wanted and not any(arm.startswith(w) for w in wanted) and group != "float":
            return
        results = self.study["results"].setdefault(self.network, {}).setdefault(group, {})
        found = results.setdefault(str(self.seed), {})
        if arm in found:
            return
        began, cpu, searched = time.monotonic(), time.process_time(), self.training.searching
        found[arm] = train()
        searching = self.training.searching - searched
        found[arm]["seconds"] = round(time.monotonic() - began, 1)
        found[arm]["cpu_seconds"] = round(time.process_time() - cpu - searching, 1)
        if searching:  # else it was there already
            found[arm]["search_cpu_seconds"] = round(searching, 1)
        print(
            f"{self.network} {self.seed} {group} {arm}: {100 * found[arm]['accuracy']:.2f} % "
            f"in {found[arm]['seconds']:.0f} s",
            flush=True,
        )
        _add(self.file, self.study["arguments"], (self.network, group, str(self.seed), arm), found)

    def _float(self) -> dict[str, Any]:
        return {"accuracy": self.training.tested(self.training.float_model)["accuracy"]}

    def _by_float(self, name: str, setting: Setting) -> kmm.BitAssignment:
        model = self.training.ready(name, "metamix")
        self.training.begin(model)
        return by_sensitivity(self.training, setting, model)

    def _from_search(self, name: str, setting: Setting, kind: str, choose: Any) -> dict[str, Any]:
        """Weight training at some bits from a search's end; equal bits are trained once."""
        bits = choose(self.training.selected(name, kind))
        model = self.training.ready(name, "weights")
        found = _found(setting, model, bits, kind)
        for other in self.study["results"][self.network][name][str(self.seed)].values():
            if (other["start"], other["bits"]) == (kind, found["bits"]):
                return {**other, "again": True}
        source = self.training.selected(name, kind)
        restore(model, [v.numpy() for v in source.weights])
        return {**found, **self.training.at_bits(model, bits, self.training.training)}

    def _bits_of(self, name: str, setting: Setting, kind: str) -> dict[str, Any]:
        """The bits of another search, trained from MetaMix's meta-state."""
        known = self.study["results"][self.network][name][str(self.seed)].get(kind)
        if known:
            bits = _read(known["bits"])
        else:
            searched = self.training.selected(name, kind)
            bits = kmm.select_bits(searched, setting.given(searched))
        return self._from_search(name, setting, "metamix", lambda _: bits)

    def _no_search(self, name: str, setting: Setting) -> dict[str, Any]:
        """The float network's choice, trained from there for as long as the others."""
        arms = self.study["results"][self.network][name][str(self.seed)]
        known = arms.get("sensitivity, float network")
        bits = _read(known["bits"]) if known else self._by_float(name, setting)
        model = self.training.ready(name, "from float")
        return _found(setting, model, bits, "float") | self._trained_from_float(model, bits)

    def _uniform(self, name: str, activation: int, weight: int) -> dict[str, Any]:
        model = self.training.ready(name, "from float")
        bits = kmm.uniform_assignment(model, activation, weight)
        found = {"bops": kmm.bops(model, bits), "bits": _to_text(bits), "start": "float"}
        return found | self._trained_from_float(model, bits)

    def _trained_from_float(self, model: kmm.MetaMixModel, bits: Any) -> dict[str, float]:
        of = self.training
        of.begin(model)
        return of.at_bits(model, bits, 2 * of.half + of.training)


def _found(
    setting: Setting, model: kmm.MetaMixModel, bits: kmm.BitAssignment, start: str
) -> dict[str, Any]:
    priced = setting.budget(model)
    return {"cost": priced.total(bits) / priced.limit, "bits": _to_text(bits), "start": start}


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

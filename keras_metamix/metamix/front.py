"""Many budgets from one meta-state: a search's bits for each, with or without further training."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_metamix.assignment import BitAssignment
from keras_metamix.checks import require_whole, shown
from keras_metamix.cost import as_budgets
from keras_metamix.files import written_whole
from keras_metamix.metamix.model import MetaMixModel
from keras_metamix.metamix.search import prepare_weight_training, require_metamix, select_bits
from keras_metamix.network_model import optimizers_of
from keras_metamix.points import OperatingPoint
from keras_metamix.statistics import reestimate_batch_norm

FILE = "front.json"
_BATCHES = 16  # of the training data, that estimate batch norm's statistics of a point


def trace_front(
    model: MetaMixModel,
    data: Any,
    budgets: Sequence[Any],
    train: Any,
    epochs: int = 0,
    steps_per_epoch: int | None = None,
    folder: Path | None = None,
    batches: int = _BATCHES,
    verbose: int = 1,
) -> list[OperatingPoint]:
    """The operating point of each budget, in their order; the model stays as it is.

    Points are made from the dearest to the cheapest. Without training all of them have the model's
    weights, and step sizes and batch norm of their own; with training each one begins with the
    weights of the one before.

    Args:
      model: a MetaMixModel whose bits were searched, compiled.
      data: what is evaluated: what `model.evaluate` takes as `x`, or `(images, labels)`.
      budgets: see `select_bits`; several parts of one in a tuple or list.
      train: the training data, as `data`.
      epochs: of weight training of each point.
      steps_per_epoch: of training data without an end.
      folder: keeps each point as a .keras file beside `front.json`, and is gone on with.
      batches: of the training data, that estimate batch norm's statistics.
      verbose: 1 prints a line for each point.

    Raises:
      TypeError, ValueError: see `select_bits`; a folder of another front, names it.
    """
    require_metamix(model)
    require_whole("epochs", epochs)
    chosen = select_bits(model, [tuple(as_budgets(budget)) for budget in budgets])
    costs = [
        as_budgets(budget)[0].priced(model).total(bits)
        for budget, bits in zip(budgets, chosen, strict=True)
    ]
    kept = _Kept(folder, epochs)
    variables = [*model.variables, *_of_optimizers(model)]
    before = [np.array(keras.ops.convert_to_numpy(v)) for v in variables]
    phase = model.phase
    points: dict[int, OperatingPoint] = {}
    try:
        for number in sorted(range(len(chosen)), key=lambda n: -costs[n]):
            point = kept.point(number, chosen[number])
            if point is None:
                if not epochs:
                    _restore(variables, before)
                point = OperatingPoint(chosen[number], costs[number], {}, epochs=epochs)
                point = _made(model, data, point, train, steps_per_epoch, batches)
                point = kept.keep(number, point, model)
            elif epochs:
                model.load_weights(point.file)
            points[number] = point
            if verbose:
                text = ", ".join(f"{name} {value:.4f}" for name, value in point.metrics.items())
                trained = f" and {epochs} epochs of training" if epochs else ""
                print(
                    f"[MetaMix] point of {shown(budgets[number])}: {text}; "
                    f"{point.images:,} training images read{trained}",
                    flush=True,
                )
    finally:
        model.phase = phase
        _restore(variables, before)
    return [points[number] for number in range(len(chosen))]


def _made(
    model: MetaMixModel,
    data: Any,
    point: OperatingPoint,
    train: Any,
    steps: int | None,
    batches: int,
) -> OperatingPoint:
    """A point, once the model is at its bits, trained and evaluated."""
    model.set_bits(point.bits)
    images = prepare_weight_training(model, train, batches)
    if point.epochs:
        several = isinstance(train, tuple)
        settings: Any = {"epochs": point.epochs, "steps_per_epoch": steps, "verbose": 0}
        model.fit(*(train if several else (train,)), shuffle=several, **settings)
        images += reestimate_batch_norm(model, train, batches)
    arrays = data if isinstance(data, tuple) else (data,)
    found: Any = model.evaluate(*arrays, verbose=0, return_dict=True)
    if not np.isfinite(found.get("loss", np.nan)):
        raise ValueError(
            f"data: expected images and labels that give a finite loss, found {shown(found)}."
        )
    metrics = {name: float(value) for name, value in found.items()}
    return dataclasses.replace(point, metrics=metrics, images=images)


def _of_optimizers(model: MetaMixModel) -> list[Any]:
    """What the model's optimizers count and average."""
    made = (optimizer for optimizer, _ in optimizers_of(model) if optimizer is not None)
    return [variable for optimizer in made for variable in optimizer.variables]


def _restore(variables: list[Any], values: list[np.ndarray]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


class _Kept:
    """The points that a folder keeps.

    Args:
      folder: None keeps none.
      epochs: of training, in which all points are alike.
    """

    def __init__(self, folder: Path | None, epochs: int):
        self.folder, self.epochs = folder, epochs
        self._known: dict[str, Any] = {}
        if folder is not None and (folder / FILE).is_file():
            self._known = json.loads((folder / FILE).read_text())

    def point(self, number: int, bits: BitAssignment) -> OperatingPoint | None:
        """A point that was made before; None if it was not.

        Raises:
          ValueError: the folder has one of other bits, or trained otherwise.
        """
        found = self._known.get(str(number))
        if found is None or self.folder is None:
            return None
        point = OperatingPoint(**found | {"bits": BitAssignment(**found["bits"])})
        if point.bits != bits or point.epochs != self.epochs:
            raise ValueError(
                f"{self.folder / FILE}: expected point {number} of this search, trained for "
                f"{self.epochs} epochs, found one of other bits or {point.epochs} epochs: name "
                "another folder, or remove this one."
            )
        return point

    def keep(self, number: int, point: OperatingPoint, model: MetaMixModel) -> OperatingPoint:
        """Writes a point and the model at its bits."""
        if self.folder is None:
            return point
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"point-{number}.keras"
        with written_whole(file) as temporary:
            model.save(temporary)
        point = dataclasses.replace(point, file=str(file))
        self._known[str(number)] = dataclasses.asdict(point)
        with written_whole(self.folder / FILE) as temporary:
            temporary.write_text(json.dumps(self._known, indent=1) + "\n")
        return point

"""The Pareto front of a trained network, whichever method chooses its bits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keras_metamix.bitmixer.model import BitMixerModel
from keras_metamix.bitmixer.operating_points import Method, choose_points, uniform_points
from keras_metamix.checks import found_model
from keras_metamix.cost import as_budgets
from keras_metamix.metamix.front import trace_front
from keras_metamix.metamix.model import MetaMixModel
from keras_metamix.points import (
    OperatingPoint,
    cost_axis,
    even_budgets,
    plot_front,
    unbeaten,
)


def pareto_front(
    model: MetaMixModel | BitMixerModel,
    data: Any,
    budgets: int | Sequence[Any] = 8,
    method: Method = "solver",
    plot: str | os.PathLike[str] | None = None,
    verbose: int = 1,
    *,
    train: Any = None,
    epochs: int = 0,
    steps_per_epoch: int | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> list[OperatingPoint]:
    """Operating points from the cheapest to the best, none of which another one beats.

    Of a MetaMixModel one search gives the bits for all budgets. A point that is not trained reads
    some batches for step sizes and batch norm (`OperatingPoint.images`), and nothing else. The
    model stays as it is.

    Args:
      model: a BitMixerModel, trained, or a MetaMixModel whose bits were searched; compiled.
      data: what is evaluated: what `model.evaluate` takes as `x`, or `(images, labels)`.
      budgets: how many budgets of BOPs, evenly from the fewest bits to the most, or the budgets
        themselves, of one kind: `[Size(share=s) for s in (0, 0.5, 1)]`. What has several parts, all
        of which are met, is a list or tuple itself.
      method: of a Bit-Mixer, see `choose_bits`.
      plot: a PNG to write, of the points' accuracy on `data` over their cost, a Bit-Mixer's beside
        its uniform bit-widths; the model has to be compiled with metrics=["accuracy"] then.
      verbose: 1 prints what is done.
      train: of a MetaMixModel: the training data, as `data`.
      epochs: of a MetaMixModel: weight training of each point with the model's optimizer, from the
        dearest to the cheapest, each beginning with the weights of the one before.
      steps_per_epoch: of training data without an end.
      folder: of a MetaMixModel: keeps each point as a .keras file, and `front.json`; a front that
        was interrupted goes on there, with the first point that it lacks.

    Raises:
      TypeError: another model.
      ValueError: see `choose_bits` and `select_bits`; no training data; no accuracy to plot.
    """
    given = even_budgets(budgets)
    uniform = {}
    if isinstance(model, MetaMixModel):
        if train is None:
            raise ValueError(
                "train: expected the training data, which set step sizes and batch norm of each "
                "point of a MetaMixModel; found none."
            )
        where = None if folder is None else Path(folder)
        points = trace_front(
            model, data, given, train, epochs, steps_per_epoch, where, verbose=verbose
        )
    elif isinstance(model, BitMixerModel):
        if epochs or folder is not None:
            raise ValueError(
                "epochs, folder: expected none for a BitMixerModel, which is trained at all bits."
            )
        named = {str(number): budget for number, budget in enumerate(given)}
        points = [*choose_points(model, data, named, method, verbose).values()]
    else:
        raise TypeError(f"Expected a MetaMixModel or BitMixerModel, found {found_model(model)}.")
    front = unbeaten(points)
    if plot is not None:
        (budget, *_) = as_budgets(given[0])
        if isinstance(model, BitMixerModel):
            uniform = uniform_points(model, data, budget)
        plot_front(plot, front, uniform, cost_axis(budget))
    return front

"""MetaMix's search once its scores are learned: which bits they choose, and what follows."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from keras_metamix.calibration import (
    SEARCHED,
    calibrate_streams,
    calibrate_weights,
    reestimate_batch_norm,
)
from keras_metamix.checks import require_whole
from keras_metamix.cost import Scores, as_budgets, select
from keras_metamix.layers.bit_choice import BitChoice
from keras_metamix.layers.mode import quantization_mode
from keras_metamix.metamix.model import MetaMixModel
from keras_metamix.training import restart_averages, training_batches


def select_bits(model: MetaMixModel, budget: Any) -> Any:
    """The bits that a search chooses under a budget; nothing is trained, the model stays as it is.

    The assignment of the highest log-probability that meets the budget and uses at least 97 % of
    it, see `cost.select`. What the search learned stays in the model, also through weight training:
    one search gives the bits for any number of budgets.

    Args:
      model: a MetaMixModel whose bits were searched.
      budget: Bops, Size, Latency or Priced, or a number of BOPs; a tuple of them is one budget, of
        which all parts are met. A list gives a list of assignments, one for each of its budgets.

    Returns:
      A BitAssignment, or a list of them. `model.set_bits` takes one, and
      `prepare_weight_training` readies the model for it.

    Raises:
      TypeError, ValueError: no budget, or one that no assignment meets; names the range.
      ValueError: nothing was searched yet.
    """
    require_metamix(model)
    if model.phase == "bit_meta":
        raise ValueError(
            "select_bits: expected a model whose bits were searched, found phase 'bit_meta': let "
            "fit with MetaMixCallback get through its search_epochs."
        )
    if isinstance(budget, list):
        return [select_bits(model, one) for one in budget]
    priced = [part.priced(model) for part in as_budgets(budget)]
    return select(candidate_scores(model), priced)


def prepare_weight_training(
    model: MetaMixModel, data: Any = None, batches: int = 32, batch_size: int | None = None
) -> None:
    """Enters weight training at the bits assigned: step sizes, then batch norm.

    Weight steps are set from the kernels, those of streams from images, and batch norm's
    statistics are estimated anew for the network as it is quantized.

    Args:
      model: a MetaMixModel, at the bits of `set_bits`.
      data: images, or what `fit` takes as `x`; None within a `fit`: what it trains on.
      batches: how many of its batches estimate batch norm's statistics; 0 leaves these.
      batch_size: of arrays; default 32.

    Raises:
      TypeError: another model, or data that cannot be read twice.
    """
    require_metamix(model)
    require_whole("batches", batches)
    calibrate_weights(model.network, model.weight_rule)
    calibrate_streams(model.network, training_batches(model, data, SEARCHED, batch_size))
    model.phase = "weight_training"
    with quantization_mode(model.evaluation_mode()):
        reestimate_batch_norm(model.network, training_batches(model, data, batches, batch_size))
    restart_averages(model)


def candidate_scores(model: MetaMixModel) -> Scores:
    """Log-probability of every pair of bit-widths that each MAC layer may take."""
    return {
        layer.name: layer_scores(layer.input_quantizer.choice, layer.weight_quantizer.choice)
        for layer in model.mac_layers
    }


def layer_scores(activation: BitChoice, weight: BitChoice) -> dict[tuple[int, int], float]:
    """Log-probability of every candidate pair of a MAC layer.

    Args:
      activation, weight: its choices; the same one where weights take the activation's bit-width.
    """
    scores = activation.log_probabilities()
    if weight is activation:
        pairs = [(bits, bits) for bits in activation.candidates]
        return dict(zip(pairs, map(float, scores), strict=True))
    pairs = itertools.product(activation.candidates, weight.candidates)
    sums = np.add.outer(scores, weight.log_probabilities()).ravel()
    return dict(zip(pairs, map(float, sums), strict=True))


def require_metamix(model: object) -> None:
    """Raises TypeError unless a model is a MetaMixModel."""
    if not isinstance(model, MetaMixModel):
        raise TypeError(
            f"expected a MetaMixModel (see MetaMixModel.from_float), found {type(model).__name__}."
        )

"""The end of MetaMix's search: the bits that its scores choose, and the way to weight training."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_metamix.batches import count_images, readable
from keras_metamix.calibration import (
    SEARCHED,
    calibrate_streams,
    calibrate_weights,
)
from keras_metamix.checks import found_model, require_whole
from keras_metamix.cost import Scores, as_budgets, select
from keras_metamix.layers.bit_choice import ALPHA_STDDEV, BitChoice
from keras_metamix.metamix.model import MetaMixModel
from keras_metamix.statistics import reestimate_batch_norm
from keras_metamix.training import restart_averages, training_batches

_UNMOVED = 10 * ALPHA_STDDEV  # no alpha starts as far from 0


def select_bits(model: MetaMixModel, budget: Any, scores: Scores | None = None) -> Any:
    r"""The bits that a search chooses under a budget, without training or changing the model.

    They are the most probable assignment that meets the budget and uses at least 97 % of it, see
    `cost.select`. With the probabilities $p$ of each layer's activation and weight bits, the cost
    $C$ and the limit $T$ (weights that take the bits of their activation count once):

    $$\max_{a, w} \sum_l \ln p_l(a_l) + \ln p_l(w_l) \qquad \text{where} \quad 0.97 \, T \le C(a, w)
    \le T$$

    What the search learned stays in the model, also through weight training, so that one search
    gives the bits for any number of budgets.

    Args:
      model: a MetaMixModel whose bits were searched.
      budget: Bops, Size, Latency or Priced, or a number of BOPs. A tuple of them is one budget, all
        parts of which are met; a list is several budgets, each with an assignment of its own.
      scores: in the place of what a search learned: `{layer name: {(activation bits, weight
        bits): score}}`, the more the better, such as `sensitivity(model, data)` gives. No search
        is needed then.

    Returns:
      A BitAssignment, or for a list a list of them. `model.set_bits` takes one, and
      `prepare_weight_training` then readies the model for training.

    Raises:
      TypeError: not a MetaMixModel, or not a budget.
      ValueError: no assignment meets the budget (names the range), nothing was searched yet, or
        scores of other layers or bits.
    """
    require_metamix(model)
    if scores is not None:
        _require_scores(model, scores)
    elif model.phase == "bit_meta":
        raise ValueError(
            "select_bits: expected a model whose bits were searched, found phase 'bit_meta': let "
            "fit with MetaMixCallback get through its search_epochs, or give scores, such as "
            "keras_metamix.sensitivity(model, data)."
        )
    if isinstance(budget, list):
        return [select_bits(model, one, scores) for one in budget]
    priced = [part.priced(model) for part in as_budgets(budget)]
    return select(scores or candidate_scores(model), priced)


def _require_scores(model: MetaMixModel, scores: Scores) -> None:
    choices = model.cost_table.choices
    for name in {**choices, **scores}:
        found, wanted = sorted(scores.get(name, {})), sorted(choices.get(name, []))
        if found != wanted:
            raise ValueError(
                f"scores: expected one for each of {wanted} of layer {name!r}, found {found}."
            )


def prepare_weight_training(
    model: MetaMixModel, data: Any = None, batches: int = 32, batch_size: int | None = None
) -> int:
    """Enters weight training at the bits assigned: step sizes, then batch norm.

    The step sizes of weights are set from the kernels and those of streams from images; batch
    norm's statistics are estimated anew for the quantized network.

    Args:
      model: a MetaMixModel at the bits that `set_bits` assigned.
      data: images, `(images, labels)`, or what `fit` takes as `x`; None, within a `fit`, is what
        that trains on.
      batches: number of its batches that estimate batch norm's statistics; 0 leaves these alone.
      batch_size: images in a batch where `data` is arrays; default 32.

    Returns:
      How many images were read, those that were read twice counted twice.

    Raises:
      TypeError: not a MetaMixModel, or data that cannot be read twice.
    """
    require_metamix(model)
    require_whole("batches", batches)
    data = readable(data)
    calibrate_weights(model.network, model.weight_rule)
    images = 0

    def counted() -> Iterator[Any]:
        nonlocal images
        for batch in training_batches(model, data, SEARCHED, batch_size):
            images += count_images(batch)
            yield batch

    calibrate_streams(model.network, counted())
    model.phase = "weight_training"
    images += reestimate_batch_norm(model, data, batches, batch_size)
    restart_averages(model)
    return images


def check_kept_bits(model: MetaMixModel) -> None:
    """Compares the bits that a model in weight training has with the budgets of its objective.

    A fit keeps them; it warns where the search that chose them would choose others now.

    Args:
      model: a MetaMixModel with an objective; in another phase nothing is compared.

    Raises:
      ValueError: the bits cost more than a budget allows.
    """
    if model.phase != "weight_training" or not model.architecture_variables:
        return
    kept, budgets = model.bit_assignment, model.objective.budgets if model.objective else ()
    remedy = (
        "model.set_bits(keras_metamix.select_bits(model, budget)), then "
        "keras_metamix.prepare_weight_training(model, images)."
    )
    for budget in budgets:
        cost = budget.total(kept)
        if cost > budget.limit * (1 + 1e-9):
            raise ValueError(
                f"MetaMixCallback: the search of {model.name!r} has ended, at bits that cost "
                f"{cost:.6g} {budget.unit}; expected at most the budget of {budget.limit:.6g}. "
                f"Choose others before fit, from the same search: {remedy}"
            )
    if not any(np.ptp(alpha) > _UNMOVED for alpha in model.architecture_variables):
        return  # nothing was searched: the bits were set by hand
    chosen = select(candidate_scores(model), budgets)
    others = sum(kept[name] != chosen[name] for name in kept.activation_bits)
    if others:
        warnings.warn(
            f"MetaMixCallback: the search of {model.name!r} has ended, and fit keeps the bits that "
            f"the model has; under this budget the search would choose others for {others} of "
            f"{len(kept.activation_bits)} layers. To take them, before fit: {remedy}",
            stacklevel=3,
        )


def candidate_scores(model: MetaMixModel) -> Scores:
    """Log-probabilities of the pairs of bit-widths that each MAC layer may take."""
    return {
        layer.name: layer_scores(layer.input_quantizer.choice, layer.weight_quantizer.choice)
        for layer in model.mac_layers
    }


def searched_choices(model: MetaMixModel) -> dict[str, BitChoice]:
    """The choices with several candidates: a layer's by its name, its weights' by NAME/weights."""
    found = {}
    for layer in model.mac_layers:
        activation, weight = layer.input_quantizer.choice, layer.weight_quantizer.choice
        if activation.searched:
            found[layer.name] = activation
        if weight.searched and weight is not activation:
            found[f"{layer.name}/weights"] = weight
    return found


def layer_scores(activation: BitChoice, weight: BitChoice) -> dict[tuple[int, int], float]:
    """Log-probability of every candidate pair of a MAC layer.

    Args:
      activation, weight: its choices; one and the same where weights take the activation's bits.
    """
    scores = activation.log_probabilities()
    if weight is activation:
        pairs = [(bits, bits) for bits in activation.candidates]
        return dict(zip(pairs, map(float, scores), strict=True))
    pairs = itertools.product(activation.candidates, weight.candidates)
    sums = np.add.outer(scores, weight.log_probabilities()).ravel()
    return dict(zip(pairs, map(float, sums), strict=True))


def require_metamix(model: object) -> None:
    """Raises TypeError unless `model` is a MetaMixModel."""
    if not isinstance(model, MetaMixModel):
        raise TypeError(
            f"expected a MetaMixModel (see MetaMixModel.from_float), found {found_model(model)}."
        )

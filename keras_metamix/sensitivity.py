"""How much a trained network's loss rises when one layer alone computes with fewer bits."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_metamix.assignment import BitAssignment
from keras_metamix.batches import is_arrays
from keras_metamix.cost import Pair, Scores
from keras_metamix.network_model import require_quantized_model


def sensitivity(model: Any, data: Any, verbose: int = 1) -> Scores:
    r"""The rise of the loss at each pair of bit-widths of each layer, the others at their highest.

    With the loss $L$ of `data`, $b_{max}$ the highest bits of every layer, and $b_{max}[l \to (a,
    w)]$ the same with layer $l$ at $a$ activation and $w$ weight bits, the score of the pair is

    $$S_l(a, w) = L(b_{max}) - L(b_{max}[l \to (a, w)])$$

    `select_bits(model, budget, scores=sensitivity(model, data))` then solves the knapsack: the
    assignment within the budget whose scores have the largest sum. Nothing is trained. It takes one
    evaluation of `data` for each candidate pair of each layer, beside one at the highest bits.

    Args:
      model: a compiled MetaMixModel or BitMixerModel whose step sizes are set: calibrated from
        a float network, after bit-meta training, or trained.
      data: what `model.evaluate` takes as `x`, or `(images, labels)`. One or two thousand images
        of the training data do; not the test set.
      verbose: 1 prints how many assignments were measured.

    Returns:
      {layer name: {(activation bits, weight bits): score}}, a score being the loss at the highest
      bits less the loss with this layer alone at these bits; 0 at the highest, in the unit of
      the model's loss.

    Raises:
      TypeError: no quantized model.
      ValueError: no step sizes yet, no finite loss, or weights in float whose bits are candidates.
    """
    require_quantized_model("sensitivity", model)
    _require_weights(model)
    measure, before = BitMeasure(model, data, verbose), model.bit_assignment
    try:
        return measure.each_alone()
    finally:
        model.assign_bits(before)
        measure.end()


def _require_weights(model: Any) -> None:
    """Raises ValueError if weight bits are to be compared while the model computes without them."""
    pairs = model.cost_table.choices.values()
    compared = any(len({activation for activation, _ in row}) < len(row) for row in pairs)
    if compared and model.evaluation_mode().weights == "off":
        raise ValueError(
            f"sensitivity: {model.name!r} has its weights in float in this phase "
            '(meta_weights="float"), so that all weight bits have one loss: make the model with '
            'meta_weights="quantized", or set_bits before.'
        )


class BitMeasure:
    """Losses of a model at assignments given as one candidate number for each layer."""

    def __init__(self, model: Any, data: Any, verbose: int):
        if is_arrays(data) and not (isinstance(data, tuple) and len(data) > 1):
            raise TypeError(
                "data: expected (images, labels), or batches of both, found images without labels."
            )
        self.model, self.data, self.verbose = model, data, verbose
        self.pairs: list[list[Pair]] = [list(p) for p in model.cost_table.choices.values()]
        self.names = list(model.cost_table.choices)
        self.count = 0
        self._known: dict[tuple[int, ...], dict[str, float]] = {}

    def each_alone(self) -> Scores:
        """Negative rises of the loss with each layer alone below its highest bit-width."""
        top = [0] * len(self.pairs)
        base, scores = self.metrics(top)["loss"], {}
        for row, (name, pairs) in enumerate(zip(self.names, self.pairs, strict=True)):
            lower = ([*top[:row], number, *top[row + 1 :]] for number in range(len(pairs)))
            scores[name] = {
                pair: base - self.metrics(chosen)["loss"]
                for pair, chosen in zip(pairs, lower, strict=True)
            }
        return scores

    def assignment(self, chosen: Sequence[int]) -> BitAssignment:
        """The bits of each layer's candidate."""
        found = [row[number] for row, number in zip(self.pairs, chosen, strict=True)]
        activations, weights = zip(*found, strict=True)
        return BitAssignment(
            dict(zip(self.names, activations, strict=True)),
            dict(zip(self.names, weights, strict=True)),
        )

    def numbers(self, bits: BitAssignment) -> list[int]:
        """The candidate numbers of an assignment."""
        return [
            pairs.index((bits[name].activation, bits[name].weight))
            for name, pairs in zip(self.names, self.pairs, strict=True)
        ]

    def metrics(self, chosen: Sequence[int]) -> dict[str, float]:
        """What `evaluate` says; asked once for each assignment."""
        if tuple(chosen) not in self._known:
            self._known[tuple(chosen)] = self.metrics_of(self.assignment(chosen))
        return self._known[tuple(chosen)]

    def metrics_of(self, bits: BitAssignment) -> dict[str, float]:
        """What `evaluate` says of an assignment."""
        self.count += 1
        if self.verbose and sys.stdout.isatty():
            print(f"\rassignments measured: {self.count}", end="", flush=True)
        self.model.assign_bits(bits)
        arrays = self.data if isinstance(self.data, tuple) else (self.data,)
        found: Any = self.model.evaluate(*arrays, verbose=0, return_dict=True)
        if "loss" not in found or not np.isfinite(found["loss"]):
            raise ValueError(
                "data: expected images and labels that give a finite loss, found "
                f"{found.get('loss', 'no image')}."
            )
        return {name: float(value) for name, value in found.items()}

    def end(self) -> None:
        """Says how many were measured."""
        if self.verbose:
            start = "\r" if sys.stdout.isatty() else ""
            print(f"{start}assignments measured: {self.count}", flush=True)

"""What a budget has to know about a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from keras_metamix.cost.layer_cost import LayerCost
from keras_metamix.cost.prices import Pair
from metamix_tflite.targets import Target


@dataclasses.dataclass(frozen=True)
class FileOutline:
    """The bytes of a model's file.

    Attributes:
      fixed: bytes of everything that does not depend on bits.
      layers: bytes of each MAC layer, with the operators around it, by weight bits.
    """

    fixed: int
    layers: Mapping[str, Mapping[int, int]]


@dataclasses.dataclass(frozen=True)
class CostTable:
    """A quantized model as budgets see it; `QuantizedModel.cost_table` makes it.

    Attributes:
      model: its name.
      layers: its MAC layers in network order.
      candidates: every pair of (activation bits, weight bits) of each layer's candidates.
      choices: those that a layer may take: only equal ones, if its weights take the bits of its
        activation.
      outline: makes the outline of its file for a target; raises ValueError if it cannot be
        exported.
      product_bops: BOPs of products of two activations, whose bits are no choice.
    """

    model: str
    layers: Sequence[LayerCost]
    candidates: Mapping[str, Sequence[Pair]]
    choices: Mapping[str, Sequence[Pair]]
    outline: Callable[[Target], FileOutline]
    product_bops: int = 0

"""Costs that add up over layers: a price for each pair of bit-widths of each layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from keras_metamix.assignment import BitAssignment, require_assignment
from keras_metamix.cost import LayerCost, assignment_bops

Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class PairCosts:
    """What a search, or a choice under a budget, counts.

    Attributes:
      prices: {layer name: {(activation bits, weight bits): price}}, in network order.
      constant: what is added to the layers' prices, whatever their bits.
      unit: of the prices, for messages.
      target: name of the argument that holds the budget.
      log: name of the cost in the logs of training.
      paper_unit: what the "paper" form of MetaMix Eq. 4 counts in.
    """

    prices: Mapping[str, Mapping[Pair, float]]
    constant: float = 0
    unit: str = "BOPs"
    target: str = "target_bops"
    log: str = "bops"
    paper_unit: float = 1e9

    def total(self, bits: BitAssignment) -> float:
        """The cost of a whole assignment.

        Raises:
          TypeError: no BitAssignment.
          ValueError: one of other layers, or a pair without a price; names the layer.
        """
        require_assignment(bits)
        bits.check_layers(self.prices, "the cost table")
        pairs = {name: (bits[name].activation, bits[name].weight) for name in self.prices}
        return self.constant + sum(self.row(name, [pair])[0] for name, pair in pairs.items())

    def row(self, layer: str, pairs: Iterable[Pair]) -> list[float]:
        """Prices of a layer's pairs.

        Raises:
          ValueError: one of them has no price; names layer and pair.
        """
        prices = self.prices.get(layer, {})
        for activation, weight in (pairs := list(pairs)):
            if (activation, weight) not in prices:
                raise ValueError(
                    f"Layer {layer!r}: expected a price in {self.unit} at {activation} activation "
                    f"and {weight} weight bits, found prices of {sorted(prices)}."
                )
        return [prices[pair] for pair in pairs]


def bop_costs(layers: Sequence[LayerCost], pairs: Mapping[str, Iterable[Pair]]) -> PairCosts:
    """MetaMix Eq. 6 as a table: MACs * activation bits * weight bits.

    Args:
      layers: the cost table of the model.
      pairs: candidates of each layer, by its name.
    """
    return PairCosts(
        {layer.name: {(a, w): _bops(layer, a, w) for a, w in pairs[layer.name]} for layer in layers}
    )


def _bops(layer: LayerCost, activation: int, weight: int) -> int:
    bits = BitAssignment({layer.name: activation}, {layer.name: weight})
    return assignment_bops([layer], bits)

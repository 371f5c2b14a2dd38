"""A budget with its prices for one model, as searches and choices of bits use it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from keras_metamix.assignment import BitAssignment, require_assignment

Pair = tuple[int, int]
Prices = Mapping[str, Mapping[Pair, float]]
USED = 0.97  # share of a limit that has to be used, if an assignment does so


@dataclasses.dataclass(frozen=True)
class PricedBudget:
    """A budget for one model.

    Attributes:
      name: how messages call the budget.
      prices: {layer name: {(activation bits, weight bits): price}}, in network order.
      choices: the pairs that each layer may take: those with a price, but only equal ones if its
        weights take the bits of its activation.
      limit: the most that an assignment may cost.
      fixed: the fixed cost, added to the layers' prices whatever their bits.
      unit: the unit of prices and limit.
      log: name of the cost in the logs of training.
      paper_unit: the unit that bit-search counts in, such as MetaMix's 1e9 BOPs.
    """

    name: str
    prices: Prices
    choices: Mapping[str, Sequence[Pair]]
    limit: float
    fixed: float = 0
    unit: str = "BOPs"
    log: str = "bops"
    paper_unit: float = 1e9

    def total(self, bits: BitAssignment) -> float:
        """The cost of a whole assignment.

        Raises:
          TypeError: not a BitAssignment.
          ValueError: it is of other layers, or a pair has no price; names the layer.
        """
        require_assignment(bits)
        bits.check_layers(self.prices, "the prices")
        pairs = {name: (bits[name].activation, bits[name].weight) for name in self.prices}
        return self.fixed + sum(self.row(name, [pair])[0] for name, pair in pairs.items())

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

    @property
    def least(self) -> float:
        """What the cheapest assignment costs."""
        return self._end(min)

    @property
    def most(self) -> float:
        """What the dearest assignment costs that is not undercut by one of as many bits or more."""
        return self._end(max)

    def _end(self, end: Any) -> float:
        rows = (self.row(n, worthwhile([self], n, p)) for n, p in self.choices.items())
        return self.fixed + sum(map(end, rows))

    def uses(self, cost: float) -> bool:
        """Whether a cost is at least 97 % of the limit."""
        return cost >= USED * self.limit

    def require_reachable(self) -> None:
        """Raises ValueError if every assignment costs more than the limit; names the range."""
        low = self.least
        if not self.limit >= low * (1 - 1e-12):
            raise ValueError(f"{self.name}: expected at least {self._text(low)}{self._range()}")

    def beyond(self) -> str:
        """What to say of a limit above the cost of the most bits; "" for any other."""
        if self.limit <= self.most * (1 + 1e-12):
            return ""
        return (
            f"{self.name} is above {self._text(self.most)}, what the most bits cost: every layer "
            f"takes them. At the fewest bits the model costs {self._text(self.least)}."
        )

    def _range(self) -> str:
        if self.most == self.least:
            return (
                ", what the model costs at any of its candidate bits: give its SearchSpace others, "
                "such as weight_bits=(8, 4). Where it has several, they all cost the same here."
            )
        return (
            ", what the model costs at the cheapest bits everywhere; at the dearest bits it costs "
            f"{self._text(self.most)}. {self.name.partition('(')[0]}(share=0.5) is the middle."
        )

    def _text(self, cost: float) -> str:
        exact = f"{cost:.10g}" if isinstance(cost, float) else f"{cost}"
        rounded = f"{cost:.4g}"
        return f"{exact} {self.unit}" + (f" ({rounded})" if rounded != exact else "")


def worthwhile(budgets: Sequence[PricedBudget], layer: str, pairs: Iterable[Pair]) -> list[Pair]:
    """The pairs of a layer without those that cost no less than a pair of more bits.

    Args:
      budgets: have the prices that count.
      layer: its name.
      pairs: its pairs of (activation bits, weight bits).
    """
    known = list(pairs)
    costs = {pair: [budget.row(layer, [pair])[0] for budget in budgets] for pair in known}

    def wasted(pair: Pair) -> bool:
        return any(
            other != pair
            and other[0] >= pair[0]
            and other[1] >= pair[1]
            and all(a <= b for a, b in zip(costs[other], costs[pair], strict=True))
            for other in known
        )

    return [pair for pair in known if not wasted(pair)]

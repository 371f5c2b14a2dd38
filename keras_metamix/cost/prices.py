"""A budget beside the prices that it pays: what searches and choices of bits count with."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from keras_metamix.assignment import BitAssignment, require_assignment

Pair = tuple[int, int]
Prices = Mapping[str, Mapping[Pair, float]]
USED = 0.97  # of a limit has to be used, where an assignment does


@dataclasses.dataclass(frozen=True)
class PricedBudget:
    """A budget for one model.

    Attributes:
      name: of the budget, for messages.
      prices: {layer name: {(activation bits, weight bits): price}}, in network order.
      choices: the pairs that each layer may take: those of its prices, but where its weights take
        the bits of its activation.
      limit: the most that an assignment may cost.
      constant: what is added to the layers' prices, whatever their bits.
      unit: of prices and limit.
      log: name of the cost in the logs of training.
      paper_unit: what bit-search counts in, MetaMix's 1e9 BOPs.
    """

    name: str
    prices: Prices
    choices: Mapping[str, Sequence[Pair]]
    limit: float
    constant: float = 0
    unit: str = "BOPs"
    log: str = "bops"
    paper_unit: float = 1e9

    def total(self, bits: BitAssignment) -> float:
        """The cost of a whole assignment.

        Raises:
          TypeError: no BitAssignment.
          ValueError: one of other layers, or a pair without a price; names the layer.
        """
        require_assignment(bits)
        bits.check_layers(self.prices, "the prices")
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

    @property
    def least(self) -> float:
        """What the cheapest assignment costs."""
        return self._end(min)

    @property
    def most(self) -> float:
        """What the dearest assignment costs that no other one of as many bits undercuts."""
        return self._end(max)

    def _end(self, end: Any) -> float:
        rows = (self.row(n, worthwhile([self], n, p)) for n, p in self.choices.items())
        return self.constant + sum(map(end, rows))

    def uses(self, cost: float) -> bool:
        """Whether a cost is at least 97 % of the limit."""
        return cost >= USED * self.limit

    def require_reachable(self) -> None:
        """Raises ValueError where no assignment costs at most the limit; names the range."""
        low = self.least
        if not self.limit >= low * (1 - 1e-12):
            raise ValueError(f"{self.name}: expected at least {self._told(low)}{self._range()}")

    def beyond(self) -> str:
        """What to say of a limit above what the most bits cost; "" where it is not."""
        if self.limit <= self.most * (1 + 1e-12):
            return ""
        return (
            f"{self.name} is above {self._told(self.most)}, what the most bits cost: every layer "
            f"takes them. At the fewest bits the model costs {self._told(self.least)}."
        )

    def _range(self) -> str:
        if self.most == self.least:
            return (
                ", what the model costs at any of its candidate bits: give its SearchSpace others, "
                "such as weight_bits=(8, 4)."
            )
        return (
            ", what the model costs at the cheapest bits everywhere; at the dearest bits it costs "
            f"{self._told(self.most)}. {self.name.partition('(')[0]}(share=0.5) is the middle."
        )

    def _told(self, cost: float) -> str:
        exact = f"{cost:.10g}" if isinstance(cost, float) else f"{cost}"
        return f"{exact} {self.unit} ({cost:.4g})"


def worthwhile(budgets: Sequence[PricedBudget], layer: str, pairs: Iterable[Pair]) -> list[Pair]:
    """The pairs of a layer but those that cost as much as, or more than, one of more bits.

    Args:
      budgets: with the prices that count.
      layer: its name.
      pairs: of bit-widths.
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

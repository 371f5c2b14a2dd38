"""Budgets: what an assignment of bits may cost, for MetaMix and Bit-Mixer alike."""

from __future__ import annotations

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from keras_metamix.checks import found_model, require_number, shown
from keras_metamix.cost.latency_table import LatencyTable
from keras_metamix.cost.layer_cost import weighted_bits
from keras_metamix.cost.prices import PricedBudget, Prices
from keras_metamix.cost.table import CostTable
from keras_metamix.network_model import NetworkModel
from metamix_tflite.targets import ContainerName, IoName, TargetName, target_of

_BYTES = {"b": 1, "byte": 1, "bytes": 1, "kb": 10**3, "mb": 10**6, "kib": 2**10, "mib": 2**20}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*")


@dataclasses.dataclass(frozen=True, repr=False)
class Budget(ABC):
    r"""The most that an assignment may cost: a limit, or a share of a model's range.

    A share $\sigma$ in place of a limit $T$ lies between what the fewest and the most bits cost:

    $$T = C_{fewest} + \sigma \, (C_{most} - C_{fewest})$$

    Attributes:
      limit: a number in the unit of the kind of budget, or None.
      share: in its place, of the way from the cost of the model's fewest bits (0) to that of its
        most (1): every network has one.
    """

    limit: Any = None
    share: float | None = dataclasses.field(default=None, kw_only=True)
    unit: ClassVar[str]
    log: ClassVar[str]
    paper_unit: ClassVar[float] = 1e3

    def priced(self, model: Any) -> PricedBudget:
        """The budget with the prices of a model's candidates.

        Args:
          model: a QuantizedModel, MetaMixModel or BitMixerModel.

        Raises:
          TypeError: not such a model.
          ValueError: a price is missing, or the model cannot be exported; names the layer.
        """
        if not isinstance(model, NetworkModel):
            raise TypeError(
                f"{self}: expected a MetaMixModel or BitMixerModel, whose bits have candidates, "
                f"found {found_model(model)}."
            )
        table: CostTable = model.cost_table
        prices, fixed = self._prices(table)
        found = PricedBudget(
            str(self), prices, table.choices, 0, fixed, self.unit, self.log, self.paper_unit
        )
        limit = self.limit
        if self.share is not None:
            low, high = found.least, found.most
            limit = low + self.share * (high - low) if self.share < 1 else high
        return dataclasses.replace(found, limit=limit)

    @abstractmethod
    def _prices(self, table: CostTable) -> tuple[Prices, float]:
        """Prices of every pair of each layer's candidates, and the fixed cost."""

    def __post_init__(self) -> None:
        """Raises ValueError unless there is a limit or a share."""
        kind = type(self).__name__
        if (self.limit is None) == (self.share is None):
            raise ValueError(
                f"{kind}: expected a limit in {self.unit} or share=, found "
                f"{'neither' if self.limit is None else 'both'}."
            )
        if self.share is not None:
            require_number(f"{kind}: share", self.share, 0, 1)
        else:
            require_number(kind, self.limit, 0, above=True)

    def __str__(self) -> str:
        value = f"share={self.share:g}" if self.share is not None else f"{self.limit:g}"
        if self.limit is not None and float(f"{self.limit:g}") != self.limit:
            value = f"{self.limit}"
        return f"{type(self).__name__}({value})"

    __repr__ = __str__


@dataclasses.dataclass(frozen=True)
class _OfTable:
    """Stands behind Budget among the bases, so that `table` comes before the limit."""

    table: Any


@dataclasses.dataclass(frozen=True, repr=False)
class Bops(Budget):
    r"""Bit operations of one image, MetaMix Eq. 6.

    $$\mathrm{BOPs} = \sum_l \mathrm{MACs}_l \cdot a_l \cdot w_l + 64 \, \mathrm{MACs}_{products}$$

    with $a_l$ and $w_l$ the bits of the input and of the weights of layer $l$. Products of two
    activations, of 8 bits each, such as attention's, are a fixed cost.
    """

    unit = "BOPs"
    log = "bops"
    paper_unit: ClassVar[float] = 1e9

    def _prices(self, table: CostTable) -> tuple[Prices, float]:
        return {
            layer.name: {
                (a, w): weighted_bits([layer.macs], [a], [w])
                for a, w in table.candidates[layer.name]
            }
            for layer in table.layers
        }, table.product_bops


@dataclasses.dataclass(frozen=True, repr=False)
class Size(Budget):
    r"""Bytes of the whole file that `metamix_tflite.convert(model, target)` writes.

    $$S = S_{fixed} + \sum_l S_l(w_l)$$

    with $S_l(w_l)$ the bytes of the weights of layer $l$ at $w_l$ bits in the target's container,
    and of what its operator needs besides. The file has one signature, metadata and golden outputs.
    Its size after training is predicted to within 1 % (below 10 kB to within 100 bytes), and rather
    too high than too low. The file of a network that was never trained has fewer bytes: equal step
    sizes need no operator between them, and biases of 0 are stored once. The bits of activations
    take no bytes.

    Attributes:
      limit: a number, or a text such as "300 kB" (1 kB is 1,000 bytes, 1 KiB 1,024).
      share: see `Budget`.
      target, weight_container, io: see `convert`.
    """

    target: TargetName = dataclasses.field(default="cpu", kw_only=True)
    weight_container: ContainerName | None = dataclasses.field(default=None, kw_only=True)
    io: IoName | None = dataclasses.field(default=None, kw_only=True)

    unit = "bytes"
    log = "size_bytes"

    def __post_init__(self) -> None:
        if isinstance(self.limit, str):
            object.__setattr__(self, "limit", _bytes(self.limit))
        super().__post_init__()
        target_of(self.target, self.weight_container, self.io)  # says what is wrong with them

    def _prices(self, table: CostTable) -> tuple[Prices, float]:
        outline = table.outline(target_of(self.target, self.weight_container, self.io))
        return {
            layer.name: {
                (a, w): outline.layers[layer.name][w] for a, w in table.candidates[layer.name]
            }
            for layer in table.layers
        }, outline.fixed


@dataclasses.dataclass(frozen=True, repr=False)
class Latency(Budget, _OfTable):
    r"""Microseconds of one inference, as a table of measured times predicts them.

    $$t = t_{fixed} + \sum_l t_l(a_l, w_l)$$

    Attributes:
      table: what `metamix-profile` measured, or such a table of any device.
      limit, share: see `Budget`.
    """

    table: LatencyTable
    unit = "us"
    log = "latency_us"

    def __post_init__(self) -> None:
        if not isinstance(self.table, LatencyTable):
            raise TypeError(
                f"Latency: expected a table, LatencyTable.load(...), found {shown(self.table)}."
            )
        super().__post_init__()

    def _prices(self, table: CostTable) -> tuple[Prices, float]:
        fixed = self.table.fixed_cost(table.model, table.layers)
        return self.table.prices(table.layers, table.candidates), fixed


@dataclasses.dataclass(frozen=True, repr=False)
class Priced(Budget, _OfTable):
    r"""The sum of prices of your own, such as a device's measured energy.

    $$C = C_{fixed} + \sum_l P_l(a_l, w_l)$$

    Attributes:
      table: {layer name: {bits: price}}, bits a pair of (activation bits, weight bits), or the
        activation bits alone.
      limit, share: see `Budget`; in the unit of the prices.
      fixed: the fixed cost, which the model has whatever its layers' bits.
    """

    table: Mapping[str, Mapping[Any, float]]
    fixed: float = dataclasses.field(default=0.0, kw_only=True)
    unit = "units of its table"
    log = "price"

    def __post_init__(self) -> None:
        if not isinstance(self.table, Mapping):
            raise TypeError(
                f"Priced: expected a table {{layer: {{bits: price}}}}, found {shown(self.table)}."
            )
        require_number("Priced: fixed", self.fixed, 0)
        super().__post_init__()

    def _prices(self, table: CostTable) -> tuple[Prices, float]:
        rows = {}
        for layer in table.layers:
            allowed = set(table.choices[layer.name])
            rows[layer.name] = {
                pair: self._price(layer.name, *pair)
                for pair in table.candidates[layer.name]
                if pair in allowed or self._found(layer.name, *pair) is not None
            }
        return rows, self.fixed

    def _found(self, layer: str, activation: int, weight: int) -> Any:
        row = self.table.get(layer)
        if not isinstance(row, Mapping):
            return None
        return row.get((activation, weight), row.get(activation))

    def _price(self, layer: str, activation: int, weight: int) -> float:
        found = self._found(layer, activation, weight)
        wanted = f"a price of layer {layer!r} at {activation} activation and {weight} weight bits"
        if found is None:
            raise ValueError(f"Priced: expected {wanted}, found none.")
        require_number(f"Priced: {wanted}", found, 0)
        return found


def _bytes(text: str) -> float:
    """The number of bytes that a text such as "64 kB" names."""
    found = _SIZE.fullmatch(text)
    if not found or found[2].lower() not in _BYTES:
        raise ValueError(
            f"Size: expected bytes, as a number or as in '300 kB', '1.5 MB' or '64 KiB', without a "
            f"comma, found {shown(text)}."
        )
    return float(found[1]) * _BYTES[found[2].lower()]


def as_budgets(budget: Any) -> tuple[Budget, ...]:
    """The budgets of an argument: one, several that are all to be met, or a number of BOPs.

    Raises:
      TypeError: it is none of these.
      ValueError: an empty list, or a number that cannot be a budget.
    """
    several = budget if isinstance(budget, list | tuple) else [budget]
    if not several:
        raise ValueError("budget: expected at least one, found none.")
    found = []
    for one in several:
        number = isinstance(one, int | float) or hasattr(one, "__float__")
        if not isinstance(one, Budget) and not (number and not isinstance(one, bool)):
            raise TypeError(
                "budget: expected Bops, Size, Latency or Priced, several of them in a list, or a "
                f"number of BOPs, found {shown(one)}."
            )
        found.append(one if isinstance(one, Budget) else Bops(one))
    return tuple(found)

"""Measured latencies of layers, which add up to the latency of an assignment."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_metamix.assignment import BitAssignment, require_assignment
from keras_metamix.checks import require_number, shown
from keras_metamix.cost.layer_cost import LayerCost
from keras_metamix.cost.prices import Pair

FORMAT = "keras-metamix latency table 1"


@dataclasses.dataclass(frozen=True)
class Operation:
    """The times of one operation of a MAC layer, see `LayerCost.operations`.

    Attributes:
      macs: multiply-accumulates of a call.
      prices: microseconds of a call by (activation bits, weight bits).
    """

    macs: int
    prices: Mapping[Pair, float]


@dataclasses.dataclass(frozen=True)
class PricedLayer:
    """The prices of a MAC layer with its weights: a device that compresses them prices no other.

    Attributes:
      operations: see `LayerCost.operations`.
      prices: microseconds of all its calls by (activation bits, weight bits).
      weight_bytes: bytes of its weights on the device, likewise.
    """

    operations: tuple[str, ...]
    prices: Mapping[Pair, float]
    weight_bytes: Mapping[Pair, float]


@dataclasses.dataclass(frozen=True)
class LatencyTable:
    """What `metamix-profile` measured; `load` reads it.

    Attributes:
      origin: device, CPU, runtime, threads and weight container of the measurements.
      operations: the times of the MAC layers' calls, see `LayerCost.operations`.
      network: the operations of the profiled model's MAC layers, in network order.
      fixed_us: the fixed cost of the profiled model in microseconds, whatever its bits: the
        operators that are not MAC layers, and one call of the interpreter.
      interpolate: whether a missing time is estimated, see `load`.
      layers: in place of operations, the prices of the profiled model's MAC layers by name.
      fixed_bytes: of a table of layers, bytes of what is stored besides their weights.
    """

    origin: Mapping[str, Any]
    operations: Mapping[str, Operation]
    network: Sequence[str]
    fixed_us: float
    interpolate: bool = False
    layers: Mapping[str, PricedLayer] = dataclasses.field(default_factory=dict)
    fixed_bytes: float = 0.0

    @classmethod
    def load(cls, path: str | os.PathLike[str], interpolate: bool = False) -> LatencyTable:
        """Reads a table.

        Args:
          path: the file of `metamix-profile`.
          interpolate: whether to estimate a time that the table lacks instead of raising an error:
            by the same operation at the nearest weight bits, then the nearest activation bits; for
            an operation that was not measured, by the one of its class with the nearest number of
            MACs, in proportion to the MACs.

        Raises:
          OSError: there is no such file.
          ValueError: the file is of another kind, or its measurement was interrupted; names it.
        """
        content = read_table(path)
        if content.get("fixed_us") is None:
            raise ValueError(
                f"{path}: expected a finished table, found one whose measurement was interrupted: "
                "the same metamix-profile command goes on."
            )
        return cls.of(content, str(path), interpolate)

    @classmethod
    def of(cls, content: Mapping[str, Any], name: str, interpolate: bool = False) -> LatencyTable:
        """The table of a finished file's JSON.

        Args:
          content: the JSON.
          name: of the table, for messages.
          interpolate: see `load`.

        Raises:
          ValueError: it lacks a part, or has a wrong one; says which.
        """
        try:
            operations = {
                text: Operation(_positive(row["macs"]), _prices(row["prices"]))
                for text, row in content["operations"].items()
            }
            network, origin = [str(text) for text in content["network"]], dict(content["origin"])
            layers = {
                name: PricedLayer(
                    tuple(row["operations"]), _prices(row["prices"]), _prices(row["weight_bytes"])
                )
                for name, row in content.get("layers", {}).items()
            }
            fixed_us, fixed_bytes = (
                _positive(content.get(key, 0)) for key in ("fixed_us", "fixed_bytes")
            )
            return cls(origin, operations, network, fixed_us, interpolate, layers, fixed_bytes)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{name}: not a whole latency table: {error!r}.") from error

    def prices(
        self, layers: Sequence[LayerCost], pairs: Mapping[str, Sequence[Pair]] | None = None
    ) -> dict[str, dict[Pair, float]]:
        """Microseconds of each MAC layer at each pair of bit-widths.

        Args:
          layers: `layer_costs` of a model.
          pairs: the pairs of each layer, by its name; by default those that were measured.

        Raises:
          ValueError: a time that the table lacks; names layer, operation and bits.
        """
        return {
            cost.name: self._row(cost, self._measured(cost) if pairs is None else pairs[cost.name])
            for cost in layers
        }

    def fixed_cost(self, model: str, layers: Sequence[LayerCost]) -> float:
        """Microseconds of a model's fixed cost, to which the `prices` of its MAC layers are added.

        Args:
          model: its name, for messages.
          layers: its `layer_costs`.

        Raises:
          ValueError: the layers are not those of the profiled model, the only one whose fixed cost
            is known.
        """
        found = [text for cost in layers for text in cost.operations]
        if found != list(self.network) and not self.interpolate:
            raise ValueError(
                f"Model {model!r}: its MAC layers are not those of the profiled model, the only "
                "one whose fixed cost the table knows. Profile this model, or take that fixed "
                "cost: LatencyTable.load(..., interpolate=True)."
            )
        return self.fixed_us

    def predict(self, layers: Sequence[LayerCost], bits: BitAssignment) -> float:
        """Microseconds of one inference at an assignment.

        Args:
          layers: `layer_costs` of the model.
          bits: the bits of these layers.

        Raises:
          TypeError: not a BitAssignment.
          ValueError: it is of another model, or see `prices` and `fixed_cost`.
        """
        require_assignment(bits)
        bits.check_layers(layer.name for layer in layers)
        pairs = {n: [(bits[n].activation, bits[n].weight)] for n in bits.activation_bits}
        prices = self.prices(layers, pairs)
        fixed = self.fixed_cost("the model", layers)
        return fixed + sum(us for row in prices.values() for us in row.values())

    @property
    def weight_bytes(self) -> dict[str, Mapping[Pair, float]]:
        """Of a table of layers, the bytes of each one's weights by its bits.

        `Priced(table.weight_bytes, limit, fixed=table.fixed_bytes)` is a budget of flash.
        """
        return {name: layer.weight_bytes for name, layer in self.layers.items()}

    def predict_file(self, pairs: Mapping[str, Pair]) -> tuple[float, float]:
        """Microseconds and stored bytes of a file, by a table of layers.

        Args:
          pairs: (activation bits, weight bits) of its MAC layers.

        Raises:
          ValueError: the layers are not the table's, or it lacks a pair; names the layer.
        """
        if set(pairs) != set(self.layers):
            raise ValueError(
                f"expected a table of the layers {sorted(pairs)}, found one of "
                f"{sorted(self.layers) or 'operations'}."
            )
        us, stored = self.fixed_us, self.fixed_bytes
        for name, pair in pairs.items():
            layer = self.layers[name]
            if pair not in layer.prices:
                raise ValueError(
                    f"layer {name!r}: the table has no {pair[0]} activation and {pair[1]} weight "
                    f"bits, but {sorted(layer.prices)}."
                )
            us, stored = us + layer.prices[pair], stored + layer.weight_bytes[pair]
        return us, stored

    def _measured(self, cost: LayerCost) -> list[Pair]:
        """The pairs for which all calls of a layer were timed."""
        rows = [row.prices for row in self._calls(cost)]
        return [pair for pair in rows[0] if all(pair in row for row in rows)]

    def _calls(self, cost: LayerCost) -> Sequence[Operation | PricedLayer]:
        """What adds up to the price of a layer."""
        layer = self.layers.get(cost.name)
        if layer is not None and layer.operations == cost.operations:
            return [layer]
        return [self._operation(cost, text) for text in cost.operations]

    def _row(self, cost: LayerCost, pairs: Sequence[Pair]) -> dict[Pair, float]:
        rows = self._calls(cost)
        return {pair: sum(self._price(cost, row, pair) for row in rows) for pair in pairs}

    def _operation(self, cost: LayerCost, text: str) -> Operation:
        if text in self.operations:
            return self.operations[text]
        if not self.interpolate:
            raise ValueError(f"Layer {cost.name!r}: the latency table has no {text!r}.")
        macs = cost.macs / len(cost.operations)
        others = [row for key, row in self.operations.items() if key.split()[0] == cost.kind]
        if not others:
            raise ValueError(f"Layer {cost.name!r}: the latency table has no {cost.kind} layer.")
        nearest = min(others, key=lambda row: max(row.macs, macs) / min(row.macs, macs))
        share = macs / nearest.macs
        return Operation(round(macs), {pair: us * share for pair, us in nearest.prices.items()})

    def _price(self, cost: LayerCost, row: Operation | PricedLayer, pair: Pair) -> float:
        if pair in row.prices:
            return row.prices[pair]
        if not self.interpolate:
            raise ValueError(
                f"Layer {cost.name!r}: the latency table has no {pair[0]} activation and {pair[1]} "
                f"weight bits of {cost.operations[0]!r}, but {sorted(row.prices)}."
            )
        nearest = min(row.prices, key=lambda p: (abs(p[1] - pair[1]), abs(p[0] - pair[0])))
        return row.prices[nearest]


def read_table(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON of a table, finished or not.

    Raises:
      OSError: there is no such file.
      ValueError: the file is of another kind; names it.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, found none: {error}.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(
            f"{path}: expected a file of metamix-profile ('format': '{FORMAT}'), found "
            f"{shown(content)}."
        )
    return content


def _prices(row: Mapping[str, Any]) -> dict[Pair, float]:
    return {_pair(bits): _positive(price) for bits, price in row.items()}


def _pair(text: str) -> Pair:
    activation, weight = text.split("/")
    return int(activation), int(weight)


def _positive(value: Any) -> Any:
    require_number("a time or count", value, 0)
    return value

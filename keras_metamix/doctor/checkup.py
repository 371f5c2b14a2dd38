"""What will become of a float model, what it will cost, and what to change, before any training."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import keras

from keras_metamix.assignment import SearchSpace
from keras_metamix.cost import Bops, Size
from keras_metamix.doctor.writing import Section, share_cell, write_page
from keras_metamix.graph.explain import Explanation, LayerExplanation, explain
from keras_metamix.graph.layer_costs import uniform_assignment
from keras_metamix.graph.quantize import quantize
from keras_metamix.graph.refusals import UnsupportedLayerError
from keras_metamix.graph.text_table import text_table
from keras_metamix.quantized_model import QuantizedModel

UNIFORM = ((8, 8), (8, 4), (4, 4), (3, 3), (2, 2))  # activation and weight bits
_CANDIDATES = (8, 4, 3, 2)
_LARGE = 0.3  # share from which a layer is named
_LAYER_HEADERS = ("layer", "class", "becomes", "operator", "weights in", "MAC share", "note")
_COST_HEADERS = ("bits A/W", "BOPs", "of 8/8", "file, bytes", "of float32")
_REFUSED_HEADERS = ("layer", "why, and what to do")
_WHOLE = "Nothing stands in the way: the model can be quantized whole."
_NO_COSTS = "Costs are known once nothing is refused."


@dataclasses.dataclass(frozen=True)
class UniformCost:
    """What a model costs at the same bits in all layers but the first and the last, which have 8.

    Attributes:
      activation_bits, weight_bits: of these layers.
      bops: for one image.
      file_bytes: of the whole file, predicted.
    """

    activation_bits: int
    weight_bits: int
    bops: float
    file_bytes: float


@dataclasses.dataclass(frozen=True)
class Checkup:
    """What will become of a float model; `str` gives it as tables.

    Attributes:
      model: its name.
      parameters: how many it has.
      layers: what becomes of each, in network order; empty where no layer can be read.
      refused: what no file can hold, and what to do, by the names of layers.
      costs: at uniform bits, the most first; empty where something is refused.
      advice: what to change.
    """

    model: str
    parameters: int
    layers: tuple[LayerExplanation, ...]
    refused: Mapping[str, str]
    costs: tuple[UniformCost, ...]
    advice: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """Whether the model can be quantized and exported whole."""
        return not self.refused

    def __str__(self) -> str:
        parts = [f"{self.model}: {self.parameters:,} parameters\n"]
        if self.layers:
            parts.append(text_table(_LAYER_HEADERS, [*map(_layer_cells, self.layers)]))
        if self.costs:
            parts.append(text_table(_COST_HEADERS, self._cost_cells()))
        parts += [f"- {line}" for line in self.advice]
        if self.whole:
            return "\n".join([*parts, _WHOLE])
        parts.append(f"\nRefused, {len(self.refused)} in all:")
        return "\n".join([*parts, *(f"- {text}" for text in self.refused.values())])

    def write_html(self, path: str | os.PathLike[str]) -> Path:
        """Writes all of it as one HTML page that needs no other file.

        Raises:
          OSError: the file cannot be written.
        """
        counts = [layer.outcome for layer in self.layers]
        facts = [
            (f"{counts.count('quantized')}", "MAC layers to quantize"),
            (f"{len(self.refused)}", "refused"),
            (f"{self.parameters:,}", "parameters"),
        ]
        refused = [*self.refused.items()]
        advice = list(self.advice) or ["Nothing."]
        sections = [
            Section(
                "In the way of a file", _in_the_way(refused), _REFUSED_HEADERS, refused, (0, 1)
            ),
            Section("What to change", advice),
            Section(
                "What it will cost",
                [_costs_caption(self.costs)],
                _COST_HEADERS,
                self._cost_cells(),
                (0,),
            ),
            Section(
                "What becomes of each layer",
                [],
                _LAYER_HEADERS,
                [*map(_layer_cells, self.layers)],
                (0, 1, 2, 3, 4, 6),
            ),
        ]
        title = f"Checkup of {self.model}"
        return write_page(path, title, "a float model, before training", facts, sections)

    def _cost_cells(self) -> list[list[str]]:
        if not self.costs:
            return []
        most, in_float = self.costs[0].bops, 4 * self.parameters
        return [
            [
                f"{cost.activation_bits}/{cost.weight_bits}",
                f"{cost.bops:,.0f}",
                share_cell(cost.bops / most),
                f"{cost.file_bytes:,.0f}",
                share_cell(cost.file_bytes / in_float),
            ]
            for cost in self.costs
        ]


def checkup(model: keras.Model, float_layers: Iterable[str] = ()) -> Checkup:
    """Says what `from_float` and `convert` would make of a float model, and what that costs.

    Nothing is trained. All that is refused is reported at once, with a remedy each.

    Args:
      model: functional or Sequential.
      float_layers: names of layers to leave in float; no file can be exported with such.

    Raises:
      TypeError: the model has no graph.
      ValueError: it has no layer to quantize, overrides methods, or has no layer of a name in
        `float_layers`.
    """
    space = SearchSpace(_CANDIDATES, _CANDIDATES)
    names = list(float_layers)
    try:
        found = explain(model, space, names)
    except UnsupportedLayerError as error:  # an open size, or another type: no layer can be read
        return Checkup(model.name, model.count_params(), (), error.refused, (), ())
    refused = found.not_exported
    costs = () if refused else _costs(model, space)
    advice = tuple(_advice(found, costs))
    return Checkup(model.name, model.count_params(), found.rows, refused, costs, advice)


def _costs(model: keras.Model, space: SearchSpace) -> tuple[UniformCost, ...]:
    network, _ = quantize(model, space, ())
    quantized = QuantizedModel(network, space, name=f"{model.name}_quantized")
    bops, size = (budget(share=1.0).priced(quantized) for budget in (Bops, Size))
    found = []
    for activation, weight in UNIFORM:
        bits = uniform_assignment(model, activation, weight)
        found.append(UniformCost(activation, weight, bops.total(bits), size.total(bits)))
    return tuple(found)


def _advice(found: Explanation, costs: tuple[UniformCost, ...]) -> Iterator[str]:
    """What costs much, or runs worse than it could, by measures of the table."""
    rows = found.rows
    for row in rows:
        if row.outcome == "integer" and not row.xnnpack:
            yield f"{row.name}: {row.note}"
        elif row.outcome == "integer" and row.layer_class == "BatchNormalization":
            yield (
                f"{row.name}: a batch norm that no layer before it can take in costs a "
                f"{row.operator} of its own: put it right behind a convolution or dense layer"
            )
        elif row.outcome == "quantized" and row.mac_share > _LARGE and len(rows) > 1:
            yield (
                f"{row.name}: {share_cell(row.mac_share)} of the model's MACs are its: bits and "
                "channels saved there count most"
            )
    bytes_each = [r.name for r in rows if r.outcome == "quantized" and r.container == "INT8"]
    if bytes_each and len(costs) > 1:
        shown = ", ".join(bytes_each[:5]) + (" and others" if len(bytes_each) > 5 else "")
        yield (
            f"{shown}: a byte for each weight at any bits, since XNNPACK takes no INT4 there; "
            "weight_container='smallest' packs them, and is slower"
        )


def _in_the_way(refused: list[tuple[str, str]]) -> list[str]:
    return [f"{len(refused)} layers keep the model from being exported."] if refused else [_WHOLE]


def _costs_caption(costs: tuple[UniformCost, ...]) -> str:
    if not costs:
        return _NO_COSTS
    return (
        "Activation and weight bits of all layers but the first and the last, which have 8; BOPs "
        "for one image, and bytes of the whole file, predicted. A budget for each layer's own bits "
        "lies between these rows."
    )


def _layer_cells(row: LayerExplanation) -> list[str]:
    share = share_cell(row.mac_share) if row.macs else ""
    return [
        row.name,
        row.layer_class,
        row.outcome,
        row.operator,
        row.container,
        share,
        row.note,
    ]

"""What quantization costs a model and its layers, as `diagnose` measured it, with the advice."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from pathlib import Path

from keras_metamix.checks import shown
from keras_metamix.doctor.advice import Finding
from keras_metamix.doctor.measures import TensorError
from keras_metamix.doctor.writing import Section, decibel_cell, ratio_cell, share_cell, write_page
from keras_metamix.graph.text_table import text_table

_MOST = 10  # findings that are printed; the page has all
_HEADERS = ("layer", "bits A/W", "output dB", "input dB", "input step", "clipped")
_HEADERS += ("weights dB", "weight step", "dead", "behind it dB")
_NO_FINDING = "Nothing stands out: no layer loses much that another step size would keep."


@dataclasses.dataclass(frozen=True)
class LayerDiagnosis:
    """What quantization costs one layer.

    Attributes:
      name: of the MAC layer, or of the quantizer of a tensor that no MAC layer reads.
      kind: its class.
      input: error of its input, rounded and clipped, as it is without quantizers before it.
      weights: error of its kernel; None for a tensor alone.
      output_sqnr: dB of its output with quantized input and weights beside the same layer in float,
        both on what it reads in float: its own share of the error.
      behind_sqnr: dB of its output in the quantized network beside that in float: its own error and
        all of those before it.
      channels: how many its output has.
      dead: how many of them have one value only, as their readers quantize them.
      dead_in_float: how many of these do so without quantizers too.
      sensitivity: as given, NaN without.
      shared: whether its input lies on the grid of a tensor that has a row of its own.
    """

    name: str
    kind: str
    input: TensorError
    weights: TensorError | None
    output_sqnr: float
    behind_sqnr: float
    channels: int
    dead: int
    dead_in_float: int
    sensitivity: float = math.nan
    shared: bool = False


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """Why a quantized model is less accurate than in float; `str` gives the table and the advice.

    Attributes:
      model: its name.
      images: how many it was measured on.
      layers: the worst first, by `output_sqnr`.
      findings: what is wrong, by the layers' order and then by what it loses.
      output_sqnr: dB of the model's outputs beside those without quantizers.
      agreement: share of images, or pixels, whose largest output is the same as without quantizers;
        NaN where an output is one value.
      accuracy: by "quantized", "quantizers off" and, with a float model, "float"; empty without
        labels of classes.
      notes: what follows from these for the model as a whole.
    """

    model: str
    images: int
    layers: tuple[LayerDiagnosis, ...]
    findings: tuple[Finding, ...]
    output_sqnr: float
    agreement: float
    accuracy: Mapping[str, float]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [text_table(_HEADERS, self._cells()), *self.notes]
        first = self.findings[:_MOST]
        lines += [f"{number}. {f.layer}: {f.text}." for number, f in enumerate(first, 1)]
        if more := len(self.findings) - len(first):
            lines.append(f"And {more} more, of layers that lose less: `findings` has all of them.")
        return "\n".join(lines if self.findings else [*lines, _NO_FINDING])

    def of(self, layer: str) -> LayerDiagnosis:
        """The diagnosis of a layer by its name.

        Raises:
          ValueError: there is none.
        """
        for found in self.layers:
            if found.name == layer:
                return found
        names = [found.name for found in self.layers]
        raise ValueError(f"layer: expected one of {shown(names)}, found {layer!r}.")

    def write_html(self, path: str | os.PathLike[str]) -> Path:
        """Writes all of it as one HTML page that needs no other file.

        Raises:
          OSError: the file cannot be written.
        """
        facts = [(share_cell(value), f"accuracy, {name}") for name, value in self.accuracy.items()]
        facts += [
            (f"{decibel_cell(self.output_sqnr)} dB", "outputs beside those without quantizers"),
        ]
        if not math.isnan(self.agreement):
            label = "outputs whose largest value is at the same place"
            facts.append((share_cell(self.agreement), label))
        advice = [(f.layer, f.symptom, f.text) for f in self.findings]
        texts = [*self.notes] if advice else [*self.notes, _NO_FINDING]
        explained = (
            "dB is signal to quantization noise: 6 dB are one bit. “Output” is of the layer alone, "
            "“behind it” of all up to it. A step is given over the one of least error."
        )
        sections = [
            Section("What to do", texts, ("layer", "symptom", "advice"), advice, (0, 1, 2)),
            Section("Layers, the worst first", [explained], _HEADERS, self._cells(), (0,)),
        ]
        subtitle = f"{len(self.layers)} layers, measured on {self.images:,} images"
        return write_page(path, f"Diagnosis of {self.model}", subtitle, facts, sections)

    def _cells(self) -> list[list[str]]:
        return [_cells(layer) for layer in self.layers]


def _cells(layer: LayerDiagnosis) -> list[str]:
    weights = layer.weights
    bits = f"{layer.input.bits}/{weights.bits}" if weights else f"{layer.input.bits}"
    return [
        layer.name,
        bits,
        decibel_cell(layer.output_sqnr),
        decibel_cell(layer.input.sqnr),
        ratio_cell(layer.input.step_ratio),
        share_cell(layer.input.clipped),
        decibel_cell(weights.sqnr) if weights else "",
        ratio_cell(weights.step_ratio) if weights else "",
        f"{layer.dead}/{layer.channels}" if weights else "",
        decibel_cell(layer.behind_sqnr),
    ]

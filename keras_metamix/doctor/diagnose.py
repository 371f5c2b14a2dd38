"""Why a quantized model is less accurate than in float: measured layer by layer, on data."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_metamix.batches import first_batches, is_data_set, readable
from keras_metamix.calibration import check_finite, check_shapes, has_statistics
from keras_metamix.checks import found_model, require_whole, shown
from keras_metamix.doctor.advice import Finding, of_channels, of_sensitivity, of_tensor
from keras_metamix.doctor.measures import (
    ActivationTally,
    Noise,
    TensorError,
    weight_error,
)
from keras_metamix.doctor.writing import Section, decibel_cell, ratio_cell, share_cell, write_page
from keras_metamix.graph.layer_costs import mac_nodes
from keras_metamix.graph.text_table import text_table
from keras_metamix.graph.topology import Node, Topology
from keras_metamix.layers.activation_quantizer import ActivationQuantizer
from keras_metamix.layers.mac import QuantizedMac
from keras_metamix.layers.mode import FLOAT, QuantizationMode, quantization_mode
from keras_metamix.network_model import require_quantized_model

_MOST = 10  # findings that are printed; the page has all
_BATCH = 16  # images that pass at a time: all tensors between layers are held
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
      dead: how many of them carry one value only, as their readers quantize them.
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


def diagnose(
    model: Any,
    data: Any,
    float_model: keras.Model | None = None,
    images: int = 128,
    sensitivity: Mapping[str, float] | None = None,
) -> Diagnosis:
    """Measures what quantization costs each layer of a model, and says what to do.

    Nothing is trained, and nothing in the model changes.

    Args:
      model: a QuantizedModel, MetaMixModel or BitMixerModel with step sizes, at the bits that it
        has.
      data: images as the model takes them, a pair (images, labels), or a data set of such batches.
        Labels of classes, as integers or one-hot, give accuracies. Training images do.
      float_model: the float model that it was made of, to compare accuracies with.
      images: at most so many are read.
      sensitivity: by name of MAC layers, what lowering a layer's bits costs, in any unit; the
        larger, the more. Then bits are compared with it.

    Raises:
      TypeError: another model, or data that are no arrays.
      ValueError: the model has no step sizes yet, or does not compute with the values that a file
        would hold; images of another shape, or none, or NaN or Inf in them; a sensitivity of a
        layer that the model does not have.
    """
    require_quantized_model("diagnose", model)
    if float_model is not None and not isinstance(float_model, keras.Model):
        raise TypeError(f"float_model: expected a Keras model, found {found_model(float_model)}.")
    require_whole("images", images, 1)
    model.require_quantized()
    known = {layer.name for layer in model.mac_layers}
    sensitivity = dict(sensitivity or {})
    if unknown := [name for name in sensitivity if name not in known]:
        raise ValueError(
            f"sensitivity: expected names of MAC layers, of {shown(sorted(known))}, found "
            f"{shown(unknown)}."
        )
    examined = _Examination(model, float_model)
    for batch, labels in _batches(data, images):
        examined.add(batch, labels)
    if not examined.images:
        raise ValueError("data: expected at least one image, found none.")
    layers = examined.layers(sensitivity)
    findings = _findings(layers, model, sensitivity)
    return Diagnosis(
        model.name,
        examined.images,
        layers,
        findings,
        examined.outputs.sqnr,
        examined.agreement,
        examined.accuracy(),
        tuple(examined.notes()),
    )


class _Channels:
    """The least and the largest value of each channel, batch after batch."""

    def __init__(self) -> None:
        self.low: Any = np.inf
        self.high: Any = -np.inf

    def add(self, values: np.ndarray) -> None:
        """Takes values whose last axis is that of the channels."""
        rows = values.reshape(-1, values.shape[-1])
        self.low = np.minimum(self.low, rows.min(axis=0))
        self.high = np.maximum(self.high, rows.max(axis=0))

    @property
    def constant(self) -> np.ndarray:
        """Which of them had one value."""
        return np.asarray(self.high == self.low)


class _Site:
    """A quantizer of the network, with the MAC layer that it feeds, if any.

    Args:
      node: the call of that layer, or of the quantizer.
      readers: the quantizers that read its output; none where something else does.
    """

    def __init__(self, node: Node, readers: list[ActivationQuantizer]):
        self.node = node
        self.layer: Any = node.operation
        self.is_mac = isinstance(self.layer, QuantizedMac)
        quantizer = self.layer.input_quantizer if self.is_mac else self.layer
        self.tally = ActivationTally(quantizer)
        self.own, self.behind = Noise(), Noise()
        self._reading = [*map(ActivationTally, readers)] or [None]
        self.quantized = [_Channels() for _ in self._reading]
        self.exact = [_Channels() for _ in self._reading]

    def add(self, output: Any, source: Any, exact_output: Any, mode: QuantizationMode) -> None:
        """Takes what the layer gives in the quantized network, and reads and gives in float.

        A layer is judged on what it would read without quantizers: a fault before it is no fault of
        its step size.
        """
        self.tally.add(source)
        found, exact = ops.convert_to_numpy(output), ops.convert_to_numpy(exact_output)
        self.behind.add(exact, found)
        if not self.is_mac:
            return
        with quantization_mode(mode):
            self.own.add(exact, ops.convert_to_numpy(self.layer(source, training=False)))
        for reading, quantized, whole in zip(
            self._reading, self.quantized, self.exact, strict=True
        ):
            quantized.add(found if reading is None else reading.add(found))
            whole.add(exact if reading is None else reading.in_float(exact))

    def result(self, mode: QuantizationMode, sensitivity: float) -> LayerDiagnosis:
        """Of all batches."""
        error = self.tally.result()
        if not self.is_mac:
            kind = "tensor"
            return LayerDiagnosis(
                self.layer.name, kind, error, None, error.sqnr, self.behind.sqnr, 0, 0, 0
            )
        with quantization_mode(mode):
            kernel = ops.convert_to_numpy(self.layer.weight_quantizer(self.layer.kernel))
        dead, in_float = (
            np.logical_and.reduce([c.constant for c in found])
            for found in (self.quantized, self.exact)
        )
        return LayerDiagnosis(
            self.layer.name,
            type(self.layer).__name__,
            error,
            weight_error(self.layer.weight_quantizer, self.layer.kernel, kernel),
            self.own.sqnr,
            self.behind.sqnr,
            int(dead.size),
            int(np.sum(dead)),
            int(np.sum(dead & in_float)),
            sensitivity,
            self.layer.input_quantizer.leader() is not self.layer.input_quantizer,
        )


class _Examination:
    """Runs a model with and without quantizers, and keeps what each layer adds.

    Args:
      model: the quantized one.
      float_model: the one that it was made of, or None.
    """

    def __init__(self, model: Any, float_model: Any):
        self.model, self.float_model = model, float_model
        self.mode: QuantizationMode = model.evaluation_mode()
        topology = Topology(model.network)
        macs = {id(node) for calls in mac_nodes(topology).values() for node in calls[:1]}
        self.sites = [
            _Site(node, _readers(topology, node))
            for node in topology.nodes
            if id(node) in macs or self._is_stream(node)
        ]
        tensors = [(site.node.inputs[0], site.node.outputs[0]) for site in self.sites]
        self._every = keras.Model(model.network.input, [*map(list, tensors)])
        self.outputs = Noise()
        self.images = self.predictions = self.agreeing = 0
        self._right: dict[str, int] = {}
        self._labelled = 0

    def _is_stream(self, node: Node) -> bool:
        quantizer = node.operation
        is_one = isinstance(quantizer, ActivationQuantizer) and not node.occurrence
        return is_one and quantizer.follows is None and self.mode.streams

    def add(self, batch: Any, labels: Any) -> None:
        """Runs a batch."""
        check_finite(batch, "data's images")
        check_shapes(batch, self.model.network)
        self.images += len(keras.tree.flatten(batch)[0])
        quantized = _flat(self.model(batch, training=False))  # says so where it has no steps
        with quantization_mode(FLOAT):
            exact = _flat(self.model(batch, training=False))
            in_float = self._every(batch, training=False)
        with quantization_mode(self.mode):
            tensors = self._every(batch, training=False)
        for site, (_, output), (source, exact_output) in zip(
            self.sites, tensors, in_float, strict=True
        ):
            site.add(output, source, exact_output, self.mode)
        for one, other in zip(quantized, exact, strict=True):
            self.outputs.add(other, one)
            if one.shape[-1] == 1:
                continue
            places = one.argmax(-1), other.argmax(-1)
            self.predictions += places[0].size
            self.agreeing += int(np.sum(places[0] == places[1]))
        found = {"quantized": quantized, "quantizers off": exact}
        if self.float_model is not None:
            found["float"] = _flat(self.float_model(batch, training=False))
        classes = _classes(labels, quantized)
        if classes is not None:
            self._labelled += classes.size
            for name, (one, *_) in found.items():
                right = int(np.sum(one.argmax(-1) == classes))
                self._right[name] = self._right.get(name, 0) + right

    def layers(self, sensitivity: Mapping[str, float]) -> tuple[LayerDiagnosis, ...]:
        """Every layer, the worst first."""
        found = [
            site.result(self.mode, sensitivity.get(site.layer.name, math.nan))
            for site in self.sites
        ]
        return tuple(sorted(found, key=lambda layer: _order(layer.output_sqnr)))

    def accuracy(self) -> dict[str, float]:
        """Of each model, where there were labels."""
        return {name: right / self._labelled for name, right in self._right.items()}

    @property
    def agreement(self) -> float:
        """Share of the largest outputs at the same place; NaN where outputs are single values."""
        return self.agreeing / self.predictions if self.predictions else math.nan

    def notes(self) -> Iterator[str]:
        """What follows for the model as a whole."""
        found, count = self.accuracy(), f"{self.images:,} images"
        if found:
            said = ", ".join(f"{name} {share_cell(value)}" for name, value in found.items())
            yield f"Accuracy on {count}: {said}."
        rounding = found.get("quantizers off", 0) - found.get("quantized", 0)
        moved = found.get("float", 0) - found.get("quantizers off", 0)
        if "float" in found and moved > max(rounding, 0.01):
            yield (
                "Most is lost without any quantizer, too: training moved the weights or the batch "
                "norms' statistics, not rounding. Try a smaller learning rate or more epochs."
            )
        elif rounding > 0.01:
            yield "Rounding and clipping cost the accuracy, not the weights: see the layers below."
        if not has_statistics(self.model.network):
            yield (
                "Its batch norms hold their initial statistics, as of a model that was never "
                "trained: measure it again once it is."
            )
        if self.model.weight_rule == "lsq" and not self.model.steps_trained:
            yield (
                "Step sizes are those that training begins with, and it has not moved them: to use "
                "the model untrained, call kmm.calibrate(model, images, rule='mse')."
            )
        agree = share_cell(self.agreement)
        agreeing = "" if math.isnan(self.agreement) else f"; {agree} agree on the largest"
        yield (
            f"The outputs have {decibel_cell(self.outputs.sqnr)} dB beside those without "
            f"quantizers{agreeing}."
        )


def _findings(
    layers: tuple[LayerDiagnosis, ...], model: Any, sensitivity: Mapping[str, float]
) -> tuple[Finding, ...]:
    """What is wrong, the layers in their order, and of each the largest loss first."""
    bits = {
        layer.name: (float(layer.input.bits * layer.weights.bits), layer.sensitivity)
        for layer in layers
        if layer.weights is not None
        and layer.name in sensitivity
        and not model.network.get_layer(layer.name).edge
    }
    of_bits = list(of_sensitivity(bits))
    found: list[Finding] = []
    for layer in layers:
        name, trained = layer.name, model.steps_trained
        mine: list[Finding] = []
        if not layer.shared:
            what = "input" if layer.weights else "values"
            mine += of_tensor(name, what, layer.input, trained)
        if layer.weights:
            mine += of_tensor(name, "weights", layer.weights, trained)
        mine.sort(key=lambda finding: -finding.lost)
        mine += of_channels(name, layer.channels, layer.dead, layer.dead_in_float)
        found += [*mine, *(finding for finding in of_bits if finding.layer == name)]
    return tuple(found)


def _readers(topology: Topology, node: Node) -> list[ActivationQuantizer]:
    """The quantizers of all that read a call's output; none where anything else does."""
    readers = []
    for reader in topology.consumers(node.outputs[0]):
        layer = reader.operation
        quantizer = layer.input_quantizer if isinstance(layer, QuantizedMac) else layer
        if not isinstance(quantizer, ActivationQuantizer) or quantizer.follows is not None:
            return []
        readers.append(quantizer)
    return readers


def _batches(data: Any, images: int) -> Iterator[tuple[Any, Any]]:
    """Small batches of inputs and labels, None without, of so many images altogether."""
    source = readable(data)
    if is_data_set(source):
        found: Any = first_batches(source, images)  # one has an image at least
        pairs = (keras.utils.unpack_x_y_sample_weight(batch)[:2] for batch in found)
    else:
        pairs = iter([data if isinstance(data, tuple) and len(data) == 2 else (data, None)])
    for x, y in pairs:
        sizes = {len(array) for array in keras.tree.flatten(x) if getattr(array, "shape", ())}
        if len(sizes) != 1:
            raise TypeError(
                "data: expected images, a pair (images, labels) or a data set of these, found "
                f"{shown(data)}."
            )
        count = min(sizes.pop(), images)
        for start in range(0, count, _BATCH):
            end = min(start + _BATCH, count)
            yield _part(x, start, end), None if y is None else _part(y, start, end)
        images -= count
        if not images:
            return


def _part(arrays: Any, start: int, end: int) -> Any:
    return keras.tree.map_structure(lambda array: array[start:end], arrays)


def _classes(labels: Any, outputs: list[np.ndarray]) -> np.ndarray | None:
    """Labels as numbers of classes, None where they are none of the one output's."""
    if labels is None or len(outputs) != 1 or outputs[0].shape[-1] < 2:
        return None
    found, places = ops.convert_to_numpy(labels), outputs[0].shape[:-1]
    if found.shape == outputs[0].shape:
        return found.argmax(-1)
    if found.shape == (*places, 1):
        found = found[..., 0]
    return found if found.shape == places and found.dtype.kind in "iu" else None


def _flat(outputs: Any) -> list[np.ndarray]:
    return [ops.convert_to_numpy(output) for output in keras.tree.flatten(outputs)]


def _order(sqnr: float) -> float:
    return math.inf if math.isnan(sqnr) else sqnr


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

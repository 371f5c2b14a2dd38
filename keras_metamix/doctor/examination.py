"""Runs a quantized model beside itself in float, and measures what each layer adds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_metamix.calibration import check_finite, check_shapes, has_statistics
from keras_metamix.doctor.diagnosis import LayerDiagnosis
from keras_metamix.doctor.measures import ActivationTally, Noise, weight_error
from keras_metamix.doctor.writing import decibel_cell, share_cell
from keras_metamix.graph.layer_costs import mac_nodes
from keras_metamix.graph.topology import Node, Topology
from keras_metamix.layers.activation_quantizer import ActivationQuantizer
from keras_metamix.layers.mac import QuantizedMac
from keras_metamix.layers.mode import FLOAT, QuantizationMode, quantization_mode
from keras_metamix.layers.parts import batch_norms
from keras_metamix.layers.weight_quantizer import Rule

_LAG = 0.1  # of accuracy, by which batch norm's moving statistics are behind those of batches
_BY_BATCH = "by batch"  # without quantizers, batch norm as in training


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

    def result(self, mode: QuantizationMode, rule: Rule, sensitivity: float) -> LayerDiagnosis:
        """Of all batches."""
        error = self.tally.result(rule)
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
            weight_error(self.layer.weight_quantizer, self.layer.kernel, kernel, rule),
            self.own.sqnr,
            self.behind.sqnr,
            int(dead.size),
            int(np.sum(dead)),
            int(np.sum(dead & in_float)),
            sensitivity,
            self.layer.input_quantizer.leader() is not self.layer.input_quantizer,
        )


class Examination:
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
        self._normalized = bool(batch_norms(model.network))
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
            if self._normalized:
                with quantization_mode(dataclasses.replace(FLOAT, statistics="frozen")):
                    found[_BY_BATCH] = _flat(self.model(batch, training=True))
            self._labelled += classes.size
            for name, (one, *_) in found.items():
                right = int(np.sum(one.argmax(-1) == classes))
                self._right[name] = self._right.get(name, 0) + right

    def layers(self, sensitivity: Mapping[str, float]) -> tuple[LayerDiagnosis, ...]:
        """Every layer, the worst first."""
        found = [
            site.result(
                self.mode, self.model.weight_rule, sensitivity.get(site.layer.name, math.nan)
            )
            for site in self.sites
        ]
        return tuple(sorted(found, key=lambda layer: _order(layer.output_sqnr)))

    def accuracy(self) -> dict[str, float]:
        """Of each model, where there were labels."""
        return {name: self._share(name) for name in self._right if name != _BY_BATCH}

    def _share(self, name: str) -> float:
        return self._right.get(name, 0) / max(self._labelled, 1)

    @property
    def agreement(self) -> float:
        """Share of the largest outputs at the same place; NaN where outputs are single values."""
        return self.agreeing / self.predictions if self.predictions else math.nan

    def notes(self) -> Iterator[str]:
        """What follows for the model as a whole."""
        found, count = self.accuracy(), f"{self.images:,} images"
        if found:
            values = ", ".join(f"{name} {share_cell(value)}" for name, value in found.items())
            yield f"Accuracy on {count}: {values}."
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
        elif (share := self._share(_BY_BATCH)) > found.get("quantizers off", 0) + _LAG:
            yield (
                f"With the statistics of these batches the accuracy is {share_cell(share)} "
                "without quantizers: batch norm's moving ones lag behind the weights, as after a "
                "short float training. Estimate them anew: kmm.reestimate_batch_norm(model, "
                "images), of the float model likewise, before from_float."
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

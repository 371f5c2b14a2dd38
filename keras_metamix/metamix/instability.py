"""Activation instability: how far batch norm's variances move when bit-widths change.

What Fig. 1, 2, 6 and 8 of the MetaMix paper show, as numbers. Nothing of it is part of a training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_metamix.calibration import replace_statistics
from keras_metamix.keras_internals import calls_of, loss_of
from keras_metamix.layers.grid import Sign, activation_range
from keras_metamix.layers.mode import Choice, QuantizationMode, quantization_mode
from keras_metamix.layers.parts import batch_norms
from keras_metamix.metamix.model import MetaMixModel
from keras_metamix.step_observer import lsq_step, mse_step

Weights = Literal["float", "quantized"]
_WEIGHTS: dict[Weights, Choice] = {"float": "off", "quantized": "assigned"}


def channel_variances(
    model: MetaMixModel, batches: Sequence[Any], weights: Weights = "float"
) -> dict[str, dict[int, np.ndarray]]:
    """What batch norm's running variances come to at each candidate bit-width, used everywhere.

    The network is as in training: each batch norm normalizes by its batch's own statistics. The
    model stays as it is.

    Args:
      model: calibrated; its activations are at one candidate in all searched layers at a time.
      batches: of inputs.
      weights: "float", or "quantized" at the bits assigned.

    Returns:
      By MAC layer with a batch norm, in network order, and by bit-width, most first: the variances
      of its channels, shape (channels,), averaged over the batches.
    """
    norms = {layer.name: layer.norm for layer in model.mac_layers if layer.norm is not None}
    every = batch_norms(model.network)
    before = [(_values(n.moving_mean), _values(n.moving_variance)) for n in every]
    found: dict[str, dict[int, np.ndarray]] = {name: {} for name in norms}
    try:
        for number, bits in enumerate(model.space.activation_bits):
            with quantization_mode(_everywhere(number, weights)):
                replace_statistics(model.network, batches)
            for name, norm in norms.items():
                found[name][bits] = _values(norm.moving_variance)
    finally:
        for norm, (mean, variance) in zip(every, before, strict=True):
            norm.moving_mean.assign(mean)
            norm.moving_variance.assign(variance)
    return found


def instability(variances: Mapping[int, np.ndarray]) -> dict[int, float]:
    r"""How far the variances at each bit-width are from those at the most bits.

    With $\sigma_{c,b}^2$ the variance of channel $c$ at $b$ bits and $B$ the most bits:

    $$I_b = \mathrm{mean}_c \left| \ln \frac{\sigma_{c,b}^2}{\sigma_{c,B}^2} \right|$$

    Args:
      variances: of one layer's channels, by bit-width. A channel without variance at some
        bit-width, which has no signal there, is left out; NaN where that is all of them.
    """
    most = max(variances)
    live = np.all([variance > 0 for variance in variances.values()], axis=0)
    if not live.any():
        return {bits: math.nan for bits in variances if bits != most}
    return {
        bits: float(np.mean(np.abs(np.log(variance[live] / variances[most][live]))))
        for bits, variance in variances.items()
        if bits != most
    }


def quantizer_inputs(
    model: MetaMixModel, images: Any, weights: Weights = "float"
) -> dict[str, dict[int, np.ndarray]]:
    """What each searched layer's quantizer reads at each candidate bit-width, used everywhere.

    The network is as in evaluation, with the running statistics that it has. A ReLU that the
    quantizer computes itself is not applied yet.

    Args:
      model, weights: see `channel_variances`.
      images: one batch of inputs.

    Returns:
      By MAC layer, in network order, and by bit-width, most first: the values, shape (n,).
    """
    layers = [layer for layer in model.mac_layers if layer.input_quantizer.choice.searched]
    inputs = [keras.tree.flatten(calls_of(layer)[0].input_tensors)[0] for layer in layers]
    network = keras.Model(model.network.input, inputs)
    found: dict[str, dict[int, np.ndarray]] = {layer.name: {} for layer in layers}
    for number, bits in enumerate(model.space.activation_bits):
        with quantization_mode(_everywhere(number, weights)):
            values: Any = network(images, training=False)
        for layer, tensor in zip(layers, keras.tree.flatten(values), strict=True):
            found[layer.name][bits] = ops.convert_to_numpy(tensor).reshape(-1)
    return found


def _everywhere(number: int, weights: Weights) -> QuantizationMode:
    """Candidate `number` in all searched layers."""
    return QuantizationMode("forced", _WEIGHTS[weights], streams=False, forced=number)


class DrawnBitsModel(MetaMixModel):
    """Trains weights in float at drawn bit-widths: what bit-meta training is there to replace.

    Attributes:
      drawn: whether each layer draws a candidate in each step; else all of them have the most bits.
      seed: of what is drawn.
    """

    drawn = True
    seed = 0

    def train_step(self, data: Any) -> dict[str, Any]:
        """One update of weights, batch norm and steps at the bits of this step."""
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            forced = self._draw() if self.drawn else 0
            mode = QuantizationMode("forced", "off", streams=False, forced=forced)
            with quantization_mode(mode):
                predictions = self(x, training=True)
            loss = loss_of(self, x, y, predictions, weight)
            scaled = self.optimizer.scale_loss(loss)
        self.update_weights(tape, scaled, loss, x)
        return self.compute_metrics(x, y, predictions, sample_weight=weight)

    def _draw(self) -> dict[Any, Any]:
        """A candidate number for each searched layer; it follows from the seed and the step."""
        choices = [layer.input_quantizer.choice for layer in self.mac_layers]
        searched = [choice for choice in choices if choice.searched]
        seed = tf.stack([tf.constant(self.seed), tf.cast(self.optimizer.iterations, "int32")])
        count = len(self.space.activation_bits)
        drawn = tf.random.stateless_uniform((len(searched),), seed, 0, count, "int32")
        return dict(zip(searched, tf.unstack(drawn), strict=True))


class RunningVariances(keras.callbacks.Callback):
    """Records batch norm's running variances after each step.

    Attributes:
      records: by MAC layer with a batch norm, the geometric mean over its channels of their
        variances over those before the first step; channels without variance there are left out.
    """

    def __init__(self):
        super().__init__()
        self.records: dict[str, list[float]] = {}
        self._norms: dict[str, Any] = {}
        self._first: dict[str, np.ndarray] = {}

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        model: Any = self.model
        self._norms = {layer.name: layer.norm for layer in model.mac_layers if layer.norm}
        self._first = {n: _values(norm.moving_variance) for n, norm in self._norms.items()}
        self.records = {name: [] for name in self._norms}

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        for name, norm in self._norms.items():
            first, now = self._first[name], _values(norm.moving_variance)
            live = (first > 0) & (now > 0)
            mean = np.mean(np.log(now[live] / first[live])) if live.any() else math.nan
            self.records[name].append(float(np.exp(mean)))


def quantized_gaussian_variance(
    bits: int, sign: Sign = "signed", rule: Literal["lsq", "mse"] = "lsq"
) -> float:
    r"""Variance of a quantized standard Gaussian over that of what is quantized (Fig. 8).

    $$\frac{\mathrm{Var}(Q(v))}{\mathrm{Var}(v)}, \qquad v \sim N(0, 1) \; \text{or} \;
    \max(N(0, 1), 0)$$

    It rises or falls as bits get fewer, by the rule of the step: LSQ's initial one, $2 \,
    \mathrm{mean}(|v|) / \sqrt{q_{max}}$, clips little and rounds coarsely, so that on a signed grid
    it rises.

    Args:
      bits: bit-width.
      sign: "signed", of the Gaussian itself, or "unsigned", of it behind a ReLU.
      rule: "lsq", or "mse": the step of least squared error of 16,384 quantiles.
    """
    low, high = activation_range(bits, sign)
    places = (np.arange(2**14) + 0.5) / 2**14
    values = _quantiles(places)
    mean_magnitude = math.sqrt(2 / math.pi)
    variance = 1.0
    if sign == "unsigned":
        values, mean_magnitude = np.maximum(values, 0), mean_magnitude / 2
        variance = 0.5 - 1 / (2 * math.pi)
    step = lsq_step(mean_magnitude, high) if rule == "lsq" else mse_step(values, low, high)
    codes = np.arange(low, high + 1)
    ends = np.array([-math.inf, *((codes[:-1] + 0.5) * step), math.inf])
    below = np.array([0.5 * (1 + math.erf(end / math.sqrt(2))) for end in ends])
    shares = np.diff(below)
    quantized = codes * step
    mean = float(np.sum(shares * quantized))
    return float(np.sum(shares * quantized**2) - mean**2) / variance


def _values(variable: Any) -> np.ndarray:
    return np.array(ops.convert_to_numpy(variable))


def _quantiles(places: np.ndarray) -> np.ndarray:
    """Of the standard Gaussian: the inverse of its distribution, by interpolation."""
    ends = np.linspace(-6, 6, 2**15)
    below = 0.5 * (1 + np.array([math.erf(end / math.sqrt(2)) for end in ends]))
    return np.interp(places, below, ends)

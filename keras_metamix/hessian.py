"""How curved a loss is along each layer's weights: the trace of its Hessian, by Hutchinson."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_metamix.batches import count_images, first_batches
from keras_metamix.checks import found_model, require_whole, shown
from keras_metamix.layers.mode import FLOAT, quantization_mode
from keras_metamix.quantized_model import QuantizedModel

_BATCHES = 8
# TensorFlow has no gradients of these. The first it takes for a constant, without a word, so that
# second derivatives lack what passes through it.
_WITHOUT_GRADIENT = {
    "ResizeBilinearGrad": "bilinear resizing",
    "ResizeBicubicGrad": "bicubic resizing",
    "ResizeNearestNeighborGrad": "resizing to the nearest value",
}
_SIGNS = np.array([-1, 1], np.float32)


@dataclasses.dataclass(frozen=True)
class LayerTrace:
    """The trace of the Hessian of a loss by one layer's kernel.

    Attributes:
      trace: the estimate, in the loss's unit by the square of the weights'.
      error: its standard error over the samples.
      weights: how many the kernel has.
    """

    trace: float
    error: float
    weights: int

    @property
    def average(self) -> float:
        """The trace over the number of weights: the mean eigenvalue, by which HAWQ-V2 compares."""
        return self.trace / self.weights


def hessian_trace(
    model: keras.Model,
    data: Any,
    loss: Any = None,
    samples: int = 32,
    batches: int = _BATCHES,
    batch_size: int | None = None,
    seed: int = 0,
) -> dict[str, LayerTrace]:
    r"""The Hessian's trace of each MAC layer's kernel, in float and as evaluation computes.

    Hutchinson's estimator with $z_i$ of independent $\pm 1$, as in HAWQ-V2 (Dong et al., NeurIPS
    2020):

    $$\mathrm{Tr}(H) = E \left[ z^\top H z \right] \approx \sum_{i=1}^{n} \omega_i \, z_i^\top H_i
    z_i, \qquad H_i = \frac{\partial^2 L_i}{\partial w^2}$$

    with $L_i$ the mean loss of the batch that sample $i$ sees, $w$ the layer's kernel, and weights
    $\omega_i$ in proportion to the images of that batch, of sum 1. Each layer has z of its own, 0
    elsewhere: one z for all of them would serve every layer at once, but the products of small
    layers with large ones then drown the former.

    Args:
      model: a float model, or a QuantizedModel, MetaMixModel or BitMixerModel, whose weights count
        as they are, without their quantizers.
      data: `(images, labels)`, or batches as `fit` takes them.
      loss: as `compile` takes it: a Keras loss, its name, or a function of labels and outputs whose
        mean counts; None: the one that the model was compiled with.
      samples: how many z of each layer, at least 2.
      batches: at most so many of the data; each z sees one of them, in turn.
      batch_size: of arrays; default 32.
      seed: of the z.

    Returns:
      A LayerTrace by layer name, in network order.

    Raises:
      TypeError: no Keras model.
      ValueError: no loss, no data, several outputs, a layer that is not supported, an operation
        without a second derivative, or a trace that is not finite.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"hessian_trace: expected a Keras model, found {found_model(model)}.")
    require_whole("samples", samples, 2)
    require_whole("batches", batches, 1)
    given = getattr(model, "loss", None) if loss is None else loss
    quantized = model if isinstance(model, QuantizedModel) else QuantizedModel.from_float(model)
    if len(quantized.network.outputs) != 1:
        raise ValueError(
            f"hessian_trace: expected a model of one output, found {quantized.output_names}: name "
            "a keras.Model of one of them."
        )
    function = _loss(given)
    known = [_labelled(batch) for batch in first_batches(data, batches, batch_size)]
    if not known:
        raise ValueError("data: expected at least one batch of images and labels, found none.")
    products = _products(quantized.network, quantized.mac_layers, function)
    counts = [count_images(images) for images, _ in known]
    weights = np.resize(counts, samples).astype(np.float64)
    weights /= weights.sum()
    generator, traces = np.random.default_rng(seed), {}
    for number, layer in enumerate(quantized.mac_layers):
        shape = tuple(layer.kernel.shape)
        signs = [generator.choice(_SIGNS, shape) for _ in range(samples)]
        values = np.array(
            [products(known[n % len(known)], number, z) for n, z in enumerate(signs)], np.float64
        )
        if not np.all(np.isfinite(values)):
            raise ValueError(
                f"hessian_trace: the second derivative by the kernel of {layer.name!r} is NaN or "
                "Inf: expected finite weights, and images and labels that give a finite loss."
            )
        mean = float(np.sum(weights * values))
        spread = float(np.sum(np.square(weights * (values - mean))))
        error = math.sqrt(spread * samples / (samples - 1))
        traces[layer.name] = LayerTrace(mean, error, math.prod(shape))
    return traces


def _loss(loss: Any) -> Callable[[Any, Any], Any]:
    """The mean loss of labels and outputs."""
    if loss is None:
        raise ValueError(
            "loss: expected a Keras loss or its name, or a compiled model; found neither."
        )
    if isinstance(loss, (dict, list, tuple)) and len(loss) == 1:  # of the model's one output
        (loss,) = loss.values() if isinstance(loss, dict) else loss
    try:
        found = keras.losses.get(loss)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"loss: expected a Keras loss or its name, found {shown(loss)}."
        ) from error
    return lambda labels, outputs: tf.reduce_mean(found(labels, outputs))


def _labelled(batch: Any) -> tuple[Any, Any]:
    """Images and labels of a batch."""
    images, labels, _ = keras.utils.unpack_x_y_sample_weight(batch)
    if labels is None:
        raise ValueError("data: expected images and labels, found no labels.")
    return images, labels


def _products(
    network: keras.Model, layers: Sequence[Any], loss: Callable[[Any, Any], Any]
) -> Callable[[Any, int, np.ndarray], float]:
    """A function of a batch, the number of a layer and a z of its kernel: `z' H z`."""
    kernels = [layer.kernel.value for layer in layers]
    zeros = [np.zeros(kernel.shape, "float32") for kernel in kernels]

    @tf.function(autograph=False)  # one trace for all layers
    def products(images: Any, labels: Any, signs: Any) -> Any:
        with tf.GradientTape(watch_accessed_variables=False) as outer:
            outer.watch(kernels)
            with tf.GradientTape(watch_accessed_variables=False) as inner:
                inner.watch(kernels)
                with quantization_mode(FLOAT):
                    value = loss(labels, network(images, training=False))
            gradients = inner.gradient(value, kernels, unconnected_gradients="zero")
            _require_differentiable(tf.compat.v1.get_default_graph())
            along = tf.add_n([tf.reduce_sum(g * z) for g, z in zip(gradients, signs, strict=True)])
        seconds = outer.gradient(along, kernels, unconnected_gradients="zero")
        return tf.add_n([tf.reduce_sum(h * z) for h, z in zip(seconds, signs, strict=True)])

    def product(batch: Any, number: int, signs: np.ndarray) -> float:
        every = [*zeros[:number], signs, *zeros[number + 1 :]]
        try:
            return float(products(*batch, [tf.constant(z, "float32") for z in every]))
        except LookupError as error:  # TensorFlow's, which names the operation
            raise ValueError(
                f"hessian_trace: the network has an operation without a second derivative: {error}"
            ) from error

    return product


def _require_differentiable(graph: Any) -> None:
    """Raises ValueError if a graph of gradients has one that TensorFlow cannot differentiate."""
    for operation in graph.get_operations():
        if operation.type in _WITHOUT_GRADIENT:
            raise ValueError(
                "hessian_trace: TensorFlow has no second derivative of "
                f"{_WITHOUT_GRADIENT[operation.type]}, which the network has: expected layers that "
                "have one, such as UpSampling2D to the nearest value or Conv2DTranspose."
            )

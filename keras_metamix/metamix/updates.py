"""MetaMix's updates on one mini-batch: the bit-meta step of Eq. 1, the search step of Eq. 2 to 5.

`MetaMixModel.train_step` calls them, in each replica; `model` is a MetaMixModel, and x, y and
weight are images, labels and sample weights as Keras unpacks them.
"""

from __future__ import annotations

import math
from typing import Any

import tensorflow as tf
from keras import tree

from keras_metamix.keras_internals import loss_of
from keras_metamix.layers.mode import QuantizationMode, quantization_mode
from keras_metamix.training import descend, track_loss
from keras_metamix.workers import has_synchronized_norm


def meta_update(model: Any, x: Any, y: Any, weight: Any) -> tuple[Any, Any, dict[str, Any]]:
    r"""One update from the average of the candidates' losses (Eq. 1).

    $$L_{meta} = \frac{1}{|B|} \sum_{b \in B} L_{task}(b)$$

    with $L_{task}(b)$ the loss of the network with $b$ bits in every searched layer. Of pairs of
    activation and weight bits, each candidate of the kind that has more is paired with a candidate
    of the other kind, which changes from step to step.

    Candidates run in a loop, one after the other, so that their activations are never in memory
    together. Batch norm that replicas share cannot be in a loop of TensorFlow's: there Python
    loops.

    Each candidate sees the whole mini-batch, or with `model.meta == "split"` a part of it, so that
    the loss is Eq. 1's in expectation.

    Returns:
      The last candidate's predictions, those of the fewest bits, which the training metrics of
      these phases are of; the `(x, y, weight)` that they belong to; and each candidate's loss, by
      name.
    """
    variables = model.trainable_variables
    candidates, of = _averaged(model)
    count = len(candidates)
    trained = [False] * len(variables)
    batch = (x, y, weight)

    def seen(index: Any) -> Any:
        return _part(batch, index, count) if model.meta == "split" else batch

    def candidate(index: Any, losses: Any, sums: Any, _: Any) -> Any:
        x, y, weight = seen(index)
        with tf.GradientTape() as tape, quantization_mode(_meta_mode(model, index)):
            predictions = model(x, training=True)
            loss = loss_of(model, x, y, predictions, weight) / count
            scaled = model.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, [v.value for v in variables])
        for number, gradient in enumerate(gradients):
            trained[number] = gradient is not None
        sums = [s if g is None else s + g for s, g in zip(sums, gradients, strict=True)]
        return index + 1, losses + tf.one_hot(index, count) * loss, sums, predictions

    zeros = [tf.zeros(v.shape, v.dtype) for v in variables]
    last = seen(count - 1)
    state = (tf.constant(0), tf.zeros(count), zeros, _empty_predictions(model.network, last[0]))
    if has_synchronized_norm(model.network):
        for _ in range(count):
            state = candidate(*state)
    else:
        state = tf.while_loop(
            lambda index, *_: index < count, candidate, state, parallel_iterations=1
        )
    _, losses, sums, predictions = state
    loss = tf.reduce_sum(losses)
    gradients = [g if used else None for g, used in zip(sums, trained, strict=True)]
    track_loss(model, descend(model.optimizer, gradients, variables, loss), x)
    each = tf.unstack(losses * count * model.distribute_strategy.num_replicas_in_sync)
    names = [f"loss_{bits}_{of}bits" for bits in candidates]
    return predictions, last, dict(zip(names, each, strict=True))


def _part(batch: Any, index: Any, count: int) -> Any:
    """Part number `index` of `count` equally large ones, which cover a batch.

    Where it does not divide, neighbours share an image: parts of several sizes would need the
    quantizers' kernels compiled for each.
    """
    first = tree.flatten(batch[0])[0]
    known = first.shape[0]
    length = tf.shape(first)[0] if known is None else known
    size = (length + count - 1) // count
    start = index * (length - size) // max(count - 1, 1)

    def rows(values: Any) -> Any:
        part = tf.convert_to_tensor(values)[start : start + size]
        return tf.ensure_shape(part, (None if known is None else size, *part.shape[1:]))

    return tree.map_structure(lambda v: None if v is None else rows(v), batch)


def _averaged(model: Any) -> tuple[tuple[int, ...], str]:
    """The bit-widths whose losses a step averages, and what the logs call them.

    The activations' candidates, or the weights' where there are more of these.
    """
    activations = model.space.activation_bits
    if model.quantizes_meta_weights:
        untied = [x.weight_quantizer.candidates for x in model.mac_layers if not x.tied]
        weights = max(untied, key=len, default=())
        if len(weights) > len(activations):
            return weights, "weight_"
    return activations, ""


def _meta_mode(model: Any, index: Any) -> QuantizationMode:
    """Candidate number `index` of what the step averages (Eq. 1), in every searched layer."""
    if not model.quantizes_meta_weights:
        return QuantizationMode("forced", "off", streams=False, forced=index)
    _, of = _averaged(model)
    moved = index + tf.cast(model.optimizer.iterations, "int32")
    activation, weight = (moved, index) if of else (index, moved)
    forced, forced_weights = {}, {}
    for layer in model.mac_layers:
        choice, other = layer.input_quantizer.choice, layer.weight_quantizer.choice
        forced[choice] = activation % len(choice.candidates)
        forced_weights[other] = weight % len(other.candidates)
    return QuantizationMode("forced", "forced", False, forced, forced_weights)


def _empty_predictions(network: Any, x: Any) -> Any:
    """Zeros of the network's output shape for a batch like `x`."""
    batch = tf.shape(tree.flatten(x)[0])[0]

    def zeros(output: Any) -> Any:
        return tf.zeros(tf.concat([[batch], output.shape[1:]], 0), output.dtype)

    outputs = network.output
    if isinstance(outputs, (list, tuple)) and len(outputs) == 1:
        outputs = outputs[0]  # as Keras returns it
    return tree.map_structure(zeros, outputs)


def search_update(model: Any, x: Any, y: Any, weight: Any) -> dict[str, Any]:
    r"""One update of the architecture parameters; all else is constant.

    $$L_{search} = L_{task} + \lambda \, d$$

    Eq. 2 is the forward pass, Eq. 3 the loss; Eq. 4 and 5 are $d$, `Objective.distance`.

    Returns:
      The task loss and the cost of the present choice, by name.

    Raises:
      ValueError: no budget is set.
    """
    if model.objective is None:
        raise ValueError("bit_search needs a budget: MetaMixCallback(budget=...).")
    objective = model.objective
    variables = model.architecture_variables
    weights = "mixture" if model.weights_searched else "off"
    mode = QuantizationMode("mixture", weights, streams=False, statistics="frozen")
    replicas = model.distribute_strategy.num_replicas_in_sync
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch([v.value for v in variables])
        with quantization_mode(mode):
            predictions = model(x, training=True)
        task = loss_of(model, x, y, predictions, weight)
        distance, costs = objective.distance(model.mac_layers)
        loss = task + objective.strength * distance / replicas
    gradients = tape.gradient(loss, [v.value for v in variables])
    applied = descend(model.search_optimizer, gradients, variables, loss)
    task = tf.where(tf.math.is_finite(applied), task, math.nan)
    return {"search_loss": task * replicas, **costs}

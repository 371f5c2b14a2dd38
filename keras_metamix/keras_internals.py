"""What this project takes from the inside of Keras, where Keras has no public name for it.

`tests/test_keras_internals.py` holds each to what it is here, so that a Keras that changes one
breaks in one place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras


def operation_of(tensor: Any) -> Any:
    """The operation that a symbolic tensor comes from: an InputLayer for a model's input."""
    return tensor._keras_history.operation


def calls_of(operation: Any) -> list[Any]:
    """The calls of an operation on symbolic tensors, as Keras' Nodes, in order."""
    return operation._inbound_nodes


def call_of(tensor: Any) -> Any:
    """The call that a symbolic tensor comes from, as a Keras Node."""
    history = tensor._keras_history
    return history.operation._inbound_nodes[history.node_index]


def calls_in(model: keras.Model) -> Iterator[Any]:
    """Keras' Nodes of a functional model, its inputs left out, in the order in which they run."""
    functional: Any = model
    for depth in sorted(functional._nodes_by_depth, reverse=True):
        for node in functional._nodes_by_depth[depth]:
            if not node.is_input:
                yield node


def has_graph(model: Any) -> bool:
    """Whether a model is functional."""
    return isinstance(model, keras.Model) and hasattr(model, "_nodes_by_depth")


def graph_of_sequential(model: keras.Sequential) -> Any:
    """The functional model that a Sequential runs; None before it knows its input."""
    return model._functional if model.built else None


def layers_inside(layer: Any) -> list[Any]:
    """The layers that a layer tracks, at any depth, without itself."""
    return [part for part in layer._flatten_layers(include_self=False) if part is not layer]


def takes_training(layer: keras.layers.Layer) -> bool:
    """Whether a layer's `call` has an argument `training`."""
    return layer._call_has_training_arg


def pass_on_inputs(model: keras.Model) -> None:
    """Lets a model's `call` have its inputs as they are given, whatever their type."""
    model._convert_input_args = False
    model._allow_non_tensor_positional_args = True


def loss_of(model: keras.Model, x: Any, y: Any, predictions: Any, weight: Any) -> Any:
    """`compute_loss` in training, of models that override it without a `training` argument too."""
    return model._compute_loss(x, y, predictions, weight, training=True)


def track_mean_loss(model: keras.Model, loss: Any, count: Any) -> None:
    """Adds the loss of `count` samples to the mean that `fit` shows."""
    model._loss_tracker.update_state(loss, sample_weight=count)


def has_unbuilt_metrics(model: keras.Model) -> bool:
    """Whether compiled metrics have yet to make their variables."""
    return model._compile_metrics is not None and not model._compile_metrics.built


def build_from_batch(model: keras.Model, batch: Any) -> None:
    """Makes the variables of a model and of its metrics as the first step of `fit` would."""
    model._symbolic_build(data_batch=batch)


def replace_build(model: keras.Model, wrap: Any) -> None:
    """Replaces what `fit` builds a model with before its first step by `wrap` of it."""
    model._maybe_symbolic_build = wrap(model._maybe_symbolic_build)


def takes_weight_decay(optimizer: keras.Optimizer, variable: Any) -> bool:
    """Whether an optimizer decays a variable."""
    return optimizer._use_weight_decay(variable)


def averages_of(optimizer: keras.Optimizer) -> Iterator[tuple[Any, Any]]:
    """Each trained variable of an optimizer with `use_ema`, and its average."""
    averages = optimizer._model_variables_moving_average
    return zip(optimizer._trainable_variables, averages, strict=True)

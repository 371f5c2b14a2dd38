"""A Keras 3 network once more, of tf_keras' layers. For a process of its own: see `tfmot_qat`."""

from __future__ import annotations

import inspect
from typing import Any

import keras
import numpy as np
import tf_keras

from keras_metamix.graph.topology import Topology

_PLAIN = (bool, int, float, str)
_TOLERANCE = 1e-4  # of outputs, relative to the largest: the kernels are the same, their order not


def legacy_copy(model: keras.Model) -> Any:
    """The same network with the same weights, as a tf_keras model.

    Raises:
      ValueError: an operation that tf_keras has no layer for, or other outputs than the model's;
        names it.
    """
    graph, tensors, copies = Topology(model), {}, {}
    for tensor in graph.inputs:
        tensors[id(tensor)] = tf_keras.Input(tensor.shape[1:], name=tensor.name)
    for node in graph.nodes:
        inputs = [tensors[id(tensor)] for tensor in node.inputs]
        copy = copies.get(id(node.operation)) or _legacy_layer(node.operation)
        copies[id(node.operation)] = copy
        tensors[id(node.output)] = copy(inputs if len(inputs) > 1 else inputs[0])
    for node in graph.nodes:
        copies[id(node.operation)].set_weights([np.asarray(w) for w in node.operation.weights])
    ends = [[tensors[id(t)] for t in side] for side in (graph.inputs, graph.outputs)]
    copied = tf_keras.Model(*(side if len(side) > 1 else side[0] for side in ends))
    _check_outputs(model, copied)
    return copied


def _legacy_layer(operation: Any) -> Any:
    """A layer of the same class, without weights."""
    kind = type(operation).__name__
    cls = getattr(tf_keras.layers, kind, None)
    if cls is None or not isinstance(operation, keras.Layer):
        raise ValueError(f"layer {operation.name!r} ({kind}): tf_keras has no such layer")
    known = inspect.signature(cls).parameters
    config = {
        name: value
        for name, value in operation.get_config().items()
        if name in known and _is_plain(value)
    }
    return cls(name=operation.name, **config)


def _is_plain(value: Any) -> bool:
    """Whether both Kerases write it alike; initializers and policies they do not."""
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)


def _check_outputs(model: keras.Model, copied: Any) -> None:
    shape = model.inputs[0].shape[1:]
    images = np.random.default_rng(0).normal(size=(4, *shape)).astype(np.float32)
    expected, found = (np.asarray(m(images, training=False)) for m in (model, copied))
    difference = float(np.abs(found - expected).max())
    if not difference <= _TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise ValueError(f"tf_keras computes other outputs: they differ by {difference:.3g}")

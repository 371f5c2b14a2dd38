"""Whether a rewritten network computes what the float model does, while its quantizers are off."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops, tree

from keras_metamix.graph.topology import Topology
from keras_metamix.layers.mode import quantizers_off

# Rounding errors of another order of operations stay far below, a lost state far above.
_TOLERANCE = 1e-3


def require_same_outputs(model: keras.Model, network: keras.Model) -> None:
    """Runs both models on random images, one around 0 and one of pixels from 0 to 255.

    What a layer holds outside its weights and its `get_config` is lost in a copy; Keras loses it
    at `keras.models.clone_model` and at `load_model` as well.

    Args:
      model: functional, in float.
      network: what `quantize` made of it.

    Raises:
      ValueError: the outputs differ; names the first layer whose do.
    """
    inputs = _random_inputs(model)
    if inputs is None or _same(*_run(model, network, inputs)):
        return
    if not _same(model(inputs, training=False), model(inputs, training=False)):
        return  # it draws random numbers, and no run tells anything
    raise ValueError(
        f"Model {model.name!r}: without quantizers its copy computes something else, from layer "
        f"{_first_difference(model, network, inputs)!r} on. That layer holds what its get_config "
        "and its weights do not tell, so that Keras cannot save it either: add it to get_config, "
        "or keep it in a weight (add_weight)."
    )


def _run(model: Any, network: Any, inputs: Any) -> tuple[Any, Any]:
    with quantizers_off():
        return model(inputs, training=False), network(inputs, training=False)


def _random_inputs(model: keras.Model) -> Any:
    """A batch for a model, None where it leaves sizes open."""
    generator = np.random.default_rng(0)

    def values(tensor: Any) -> Any:
        shape = (tensor.shape[0] or 2, *tensor.shape[1:])
        if "float" not in tensor.dtype:
            high = 256 if tensor.dtype == "uint8" else 2
            return generator.integers(0, high, shape).astype(tensor.dtype)
        images = generator.normal(size=shape).astype(tensor.dtype)
        images[::2] = 127.5 + 50 * images[::2]
        return images

    if any(None in tensor.shape[1:] for tensor in model.inputs):
        return None
    return tree.map_structure(values, model.input)


def _same(first: Any, second: Any) -> bool:
    pairs = zip(tree.flatten(first), tree.flatten(second), strict=True)
    return all(_close(ops.convert_to_numpy(a), ops.convert_to_numpy(b)) for a, b in pairs)


def _close(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether each image's values agree, measured by the largest of them; NaN equals NaN."""
    if first.shape != second.shape:
        return False
    first, second = (np.reshape(a, (len(a), -1)).astype(np.float64) for a in (first, second))
    finite = np.isfinite(first)
    scale = np.max(np.abs(first), axis=1, keepdims=True, initial=0, where=finite)
    with np.errstate(invalid="ignore"):
        near = np.abs(first - second) <= _TOLERANCE * np.maximum(scale, 1e-6)
    return bool(np.all(near | (first == second) | (np.isnan(first) & np.isnan(second))))


def _first_difference(model: keras.Model, network: keras.Model, inputs: Any) -> str:
    """The first layer of the float model whose copy gives something else."""
    copies = {layer.name: layer for layer in network.layers}
    nodes = [node for node in Topology(model).nodes if node.name in copies and not node.occurrence]
    ours = [copies[node.name].output for node in nodes]
    results = _run(
        keras.Model(model.input, [node.output for node in nodes]),
        keras.Model(network.input, ours),
        inputs,
    )
    for node, first, second in zip(nodes, *map(tree.flatten, results), strict=True):
        if not _same(first, second):
            return node.name
    return model.layers[-1].name

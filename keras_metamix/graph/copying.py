"""What a copy of a layer takes over from its original: everything that it holds."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers, ops, tree

from keras_metamix.keras_internals import calls_of, layers_inside


def copy_of(operation: Any, name: str, cls: type | None = None, config: Any = None) -> Any:
    """A copy of a layer or of a raw operation, with its state.

    Args:
      operation: the original.
      name: of the copy, also where a config does not tell the original's.
      cls, config: of the copy, where they are not the original's.
    """
    config = dict(operation.get_config() if config is None else config)
    if "name" in config:
        config["name"] = name
    copy: Any = (cls or type(operation)).from_config(config)
    copy.name = name
    copy_state(operation, copy)
    return copy


def copy_state(source: Any, target: Any) -> None:
    """Builds a copy as its original, and gives it the original's state.

    That is the values of all variables, the seeds of random draws among them, whether each
    trains, and what a layer derives from its variables outside them (an adapted Normalization).

    Args:
      source: a layer, or a raw operation, which has no state.
      target: of the same class, made of the source's config.

    Raises:
      ValueError: the config makes other variables; names the layer.
    """
    if not isinstance(source, layers.Layer) or not source.built:
        return
    _build_alike(source, target)
    found, expected = target.variables, source.variables
    function: Any = getattr(source, "activation", None)
    if isinstance(function, layers.Layer) and target.activation is not function:
        apart = {id(v) for v in function.variables}  # a layer of its own in the flat model
        expected = [v for v in expected if id(v) not in apart]
    if [v.shape for v in found] != [v.shape for v in expected]:
        raise ValueError(
            f"Layer {source.name!r} ({type(source).__name__}): its copy, made of get_config, has "
            f"{_listed(found)}, the layer itself {_listed(expected)}: expected a config that gives "
            "the same ones."
        )
    for original, copy in zip(expected, found, strict=True):
        copy.assign(original)
        copy.trainable = original.trainable
    finalize = getattr(target, "finalize_state", None)
    if finalize is not None:
        finalize()


def _build_alike(source: Any, target: Any) -> None:
    config, nodes = source.get_build_config(), calls_of(source)
    if nodes and any(not part.built for part in layers_inside(target)):
        # Only a call shows how a layer of the user's own builds those in it.
        arguments = nodes[0].arguments
        if type(source).build is layers.Layer.build:
            keras.Operation.compute_output_spec(target, *arguments.args, **arguments.kwargs)
            return
        args, kwargs = tree.map_structure(_without_history, (arguments.args, arguments.kwargs))
        target(*args, **kwargs)
    elif config and not target.built:
        target.build_from_config(config)


def _without_history(value: Any) -> Any:
    if not isinstance(value, keras.KerasTensor):
        return value
    return keras.KerasTensor(value.shape, value.dtype)


def copy_sets(source: Any, target: Any) -> None:
    """Gives every set of a transitional batch norm the weights of the batch norm it stands for."""
    if not target.built:  # by the MAC layer that owns it
        target.build_from_config(source.get_build_config())
    for original, copy in zip(source.weights, target.weights, strict=True):
        copy.assign(ops.broadcast_to(original, copy.shape))
        copy.trainable = original.trainable


def copy_kernel(source: Any, target: Any) -> None:
    """Gives a quantized MAC layer the kernel and the bias of the layer that it stands for."""
    target.build_from_config(source.get_build_config())
    pairs = [(source.kernel, target.kernel)]
    if source.use_bias:
        pairs.append((source.bias, target.bias))
    for original, copy in pairs:
        copy.assign(original)
        copy.trainable = original.trainable
    target.weight_quantizer.initialize_steps(source.kernel)


def _listed(variables: Any) -> str:
    return ", ".join(f"{v.name} {tuple(v.shape)}" for v in variables) or "none"

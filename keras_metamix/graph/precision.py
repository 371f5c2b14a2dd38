"""Quantized networks compute in float32: other dtypes are refused by name."""

from __future__ import annotations

import keras

from keras_metamix.graph.refusals import Refusal, listed
from keras_metamix.graph.topology import Topology

_INPUT_TYPES = ("float32", "uint8")


def require_float32(model: keras.Model) -> None:
    """Checks that what will be put into a model computes in float32, and what it is given.

    Args:
      model: functional. Its inputs are float32, or uint8 for bytes, and layers read all of them.

    Raises:
      ValueError: another policy is Keras' default. Another input; names it.
    """
    default = keras.config.dtype_policy()
    if default.compute_dtype != "float32":
        raise ValueError(
            "keras.config.dtype_policy: quantizers compute in float32, expected that policy, found "
            f"{default.name!r}."
        )
    _require_inputs(model)


def in_other_types(model: keras.Model) -> list[Refusal]:
    """The layers that do not compute in float32, one refusal for each policy."""
    names: dict[str, list[str]] = {}
    for layer in model._flatten_layers(include_self=False):
        if layer.compute_dtype != "float32" and not isinstance(layer, keras.layers.InputLayer):
            names.setdefault(layer.dtype_policy.name, []).append(layer.name)
    return [
        Refusal(
            found[0],
            f"Layer{'s' if len(found) > 1 else ''} {listed(found)}",
            f"expected the dtype policy 'float32', found {policy!r}; build the model under "
            "'float32'",
            may_stay=False,
        )
        for policy, found in names.items()
    ]


def _require_inputs(model: keras.Model) -> None:
    """Checks that a model reads what it is given: floats or bytes, for which files have inputs."""
    topology = Topology(model)
    for tensor in model.inputs:
        name = tensor._keras_history.operation.name
        if not topology.consumers(tensor) and not topology.is_output(tensor):
            raise ValueError(
                f"Input {name!r}: expected a layer that reads it, found none: leave it out of "
                "keras.Model(inputs, outputs)."
            )
        if tensor.dtype not in _INPUT_TYPES:
            raise ValueError(
                f"Input {name!r}: expected dtype 'float32', or 'uint8' for bytes such as a "
                f"camera's, found {tensor.dtype!r}: build the model on an input of one of them, "
                "and cast its data before."
            )

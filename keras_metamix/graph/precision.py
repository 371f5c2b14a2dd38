"""Quantized networks compute in float32: other dtypes are refused by name."""

from __future__ import annotations

import keras

from keras_metamix.graph.refusals import Refusal, listed
from keras_metamix.graph.topology import Topology
from keras_metamix.keras_internals import layers_inside, operation_of

_INPUT_TYPES = ("float32", "uint8")


def require_float32(model: keras.Model) -> None:
    """Checks that what will be put into a model computes in float32, and that it reads its inputs.

    Args:
      model: functional.

    Raises:
      ValueError: another policy is Keras' default, or no layer reads an input; names it.
    """
    default = keras.config.dtype_policy()
    if default.compute_dtype != "float32":
        raise ValueError(
            "keras.config.dtype_policy: quantizers compute in float32, expected that policy, found "
            f"{default.name!r}."
        )
    _require_inputs(model)


def in_other_types(model: keras.Model) -> list[Refusal]:
    """The inputs of other types, and the layers that do not compute in float32, by policy."""
    names: dict[str, list[str]] = {}
    for layer in layers_inside(model):
        if layer.compute_dtype != "float32" and not isinstance(layer, keras.layers.InputLayer):
            names.setdefault(layer.dtype_policy.name, []).append(layer.name)
    inputs = [(operation_of(tensor).name, tensor.dtype) for tensor in model.inputs]
    refusals = [
        Refusal(
            name,
            f"Input {name!r}",
            f"expected dtype 'float32', or 'uint8' for bytes such as a camera's, found {dtype!r}; "
            "build the model on an input of one of them, and cast its data before",
            may_stay=False,
        )
        for name, dtype in inputs
        if dtype not in _INPUT_TYPES
    ]
    return refusals + [
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
    """Checks that layers read all that a model is given."""
    topology = Topology(model)
    for tensor in model.inputs:
        name = operation_of(tensor).name
        if not topology.consumers(tensor) and not topology.is_output(tensor):
            raise ValueError(
                f"Input {name!r}: expected a layer that reads it, found none: leave it out of "
                "keras.Model(inputs, outputs)."
            )

"""Quantized networks compute in float32: other dtypes are refused by name."""

from __future__ import annotations

import keras

from keras_metamix.graph.topology import Topology
from keras_metamix.keras_internals import layers_inside, operation_of

_INPUT_TYPES = ("float32", "uint8")


def require_float32(model: keras.Model) -> None:
    """Checks that a model, and the layers that will be put into it, compute in float32.

    Args:
      model: functional. Its inputs are float32, or uint8 for bytes, and layers read all of them.

    Raises:
      ValueError: another dtype policy; names the layer, or that the policy is Keras' default.
        Another input; names it.
    """
    default = keras.config.dtype_policy()
    if default.compute_dtype != "float32":
        raise ValueError(
            "keras.config.dtype_policy: quantizers compute in float32, expected that policy, found "
            f"{default.name!r}."
        )
    for layer in layers_inside(model):
        if layer.compute_dtype != "float32" and not isinstance(layer, keras.layers.InputLayer):
            raise ValueError(
                f"Layer {layer.name!r}: expected the dtype policy 'float32', found "
                f"{layer.dtype_policy.name!r}: build the model under 'float32'."
            )
    _require_inputs(model)


def _require_inputs(model: keras.Model) -> None:
    """Checks that a model reads what it is given: floats or bytes, for which files have inputs."""
    topology = Topology(model)
    for tensor in model.inputs:
        name = operation_of(tensor).name
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

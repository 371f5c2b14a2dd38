"""What functions may ask of a quantized model, below the class that trains it."""

from __future__ import annotations

from typing import Any

import keras

from keras_metamix.checks import found_model


class NetworkModel(keras.Model):
    """A model that computes by a network of quantized layers: the base of QuantizedModel.

    Attributes:
      network: the functional model of quantized layers.
      space: its SearchSpace, or None.
      float_layers: names of layers that were left in float.
      bit_assignment: the bit-widths assigned at present.
      cost_table: what budgets price the model by.
    """

    network: keras.Model
    space: Any
    float_layers: tuple[str, ...]
    bit_assignment: Any
    cost_table: Any

    def optimizers(self) -> list[tuple[Any, list[Any]]]:
        """Each optimizer, None before `compile`, and the variables that it trains."""
        return [(self.optimizer, self.trainable_variables)]

    def evaluation_mode(self) -> Any:
        """The QuantizationMode outside training."""
        raise NotImplementedError


def network_of(model: Any) -> Any:
    """The network of a quantized model; any other model itself."""
    return model.network if isinstance(model, NetworkModel) else model


def optimizers_of(model: keras.Model) -> list[tuple[Any, list[Any]]]:
    """Each optimizer of a compiled model, quantized or not, and the variables that it trains."""
    if isinstance(model, NetworkModel):
        return model.optimizers()
    return [(model.optimizer, model.trainable_variables)]


def require_quantized_model(what: str, model: Any) -> None:
    """Raises TypeError unless `model` is a QuantizedModel, or of one of its subclasses.

    Args:
      what: the function that was given it.
      model: the model.
    """
    if isinstance(model, NetworkModel):
        return
    remedy = ": from_float makes one of a float model" if isinstance(model, keras.Model) else ""
    raise TypeError(
        f"{what}: expected a QuantizedModel, MetaMixModel or BitMixerModel, found "
        f"{found_model(model)}{remedy}."
    )

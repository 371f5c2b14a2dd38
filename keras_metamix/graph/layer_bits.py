"""Reads and writes the bit-widths that a quantized network's layers are assigned."""

from __future__ import annotations

import itertools
from typing import Any

import keras

from keras_metamix.assignment import BitAssignment, require_assignment
from keras_metamix.graph.layer_costs import mac_nodes
from keras_metamix.graph.topology import Topology


def candidate_pairs(layer: Any) -> list[tuple[int, int]]:
    """Every (activation bits, weight bits) of a layer's candidates.

    Also of a layer whose weights take the bits of its activation, which chooses equal ones.
    """
    candidates = layer.input_quantizer.candidates, layer.weight_quantizer.candidates
    return list(itertools.product(*candidates))


def allowed_pairs(layer: Any) -> list[tuple[int, int]]:
    """The pairs that a layer may take: equal bits, where its weights take its activation's."""
    pairs = candidate_pairs(layer)
    return [(a, w) for a, w in pairs if a == w] if layer.tied else pairs


class BitWidths:
    """The bit-widths of a network's MAC layers.

    Args:
      network: a network of `quantize`.

    Attributes:
      layers: its quantized MAC layers in network order.
    """

    def __init__(self, network: keras.Model):
        nodes = mac_nodes(Topology(network))
        self.layers: tuple[Any, ...] = tuple(network.get_layer(name) for name in nodes)

    def read(self) -> BitAssignment:
        """Those assigned at present."""
        return BitAssignment(
            {layer.name: layer.input_quantizer.choice.bits for layer in self.layers},
            {layer.name: layer.weight_quantizer.choice.bits for layer in self.layers},
        )

    def write(self, bits: BitAssignment, name: str) -> None:
        """Assigns bit-widths; no retrace follows. Either all layers take theirs or none does.

        Args:
          bits: for each MAC layer.
          name: of the model that owns the network, for messages.

        Raises:
          TypeError: `bits` is no BitAssignment.
          ValueError: the assignment is of another model, or a bit-width is no candidate of its
            layer; names it.
        """
        require_assignment(bits)
        bits.check_layers((layer.name for layer in self.layers), repr(name))
        for layer in self.layers:
            _check(layer, bits[layer.name].activation, bits[layer.name].weight)
        for layer in self.layers:
            layer.input_quantizer.choice.assign(bits[layer.name].activation)
            layer.weight_quantizer.choice.assign(bits[layer.name].weight)


def _check(layer: Any, activation: int, weight: int) -> None:
    for what, found, quantizer in (
        ("activation", activation, layer.input_quantizer),
        ("weight", weight, layer.weight_quantizer),
    ):
        if found not in quantizer.candidates:
            raise ValueError(
                f"Layer {layer.name!r}: {found} {what} bits are no candidate, expected one of "
                f"{list(quantizer.candidates)}. Candidates are chosen when the model is made: "
                "MetaMixModel.from_float(model, SearchSpace(...)); its edge_bits are those of the "
                "first and the last layer."
            )
    if layer.tied and weight != activation:
        raise ValueError(
            f"Layer {layer.name!r}: SearchSpace(weight_bits='same') needs {activation} weight "
            f"bits, those of its activation; found {weight}."
        )

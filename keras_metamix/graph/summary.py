"""The layers of a model, what each costs and how many bits it has, as text."""

from __future__ import annotations

from collections.abc import Sequence

import keras

from keras_metamix.assignment import BitAssignment
from keras_metamix.cost import LayerCost, assignment_bops, average_bits, weight_bytes
from keras_metamix.graph.layer_costs import layer_costs, product_bops
from keras_metamix.graph.text_table import text_table
from keras_metamix.network_model import NetworkModel

COST_HEADERS = ("layer", "kind", "MACs", "weights")
BITS_HEADERS = ("A bits", "W bits", "BOPs", "share")


def summary(model: keras.Model, bits: BitAssignment | None = None) -> str:
    """A table of the MAC layers in network order, with totals.

    Args:
      model: a float model, a network of `from_float`, or a MetaMixModel.
      bits: bit-widths of every MAC layer; by default those that a MetaMixModel has at present.

    Returns:
      Plain text that ends in a newline. For each layer: MACs for one image and kernel elements;
      with bits also the bit-widths of its input activation (A) and of its weights (W), its BOPs
      (MetaMix Eq. 6) and their share of all. Below, average bits as in the paper's tables
      (`average_bits`) and the model size of the literature (`weight_bytes`).

    Raises:
      ValueError: the bits are of another model, or a layer's cost is unknown; names the layer.
    """
    costs = layer_costs(model)
    if bits is None and isinstance(model, NetworkModel):
        bits = model.bit_assignment
    rows = [_cost_cells(cost.name, cost.kind, [cost]) for cost in costs]
    totals = _cost_cells("total", "", costs)
    if bits is None:
        return text_table(COST_HEADERS, rows, totals)
    products = product_bops(model)
    bops = assignment_bops(costs, bits) + products
    for row, cost in zip(rows, costs, strict=True):
        row += _bits_cells(cost, bits, bops)
    totals += ["", "", f"{bops:,}", f"{1:.1%}"]
    activation, weight = average_bits(costs, bits)
    of_two = f"products of two activations: {products:,} BOPs of these\n" if products else ""
    return (
        f"{text_table((*COST_HEADERS, *BITS_HEADERS), rows, totals)}\n{of_two}"
        f"average bits: A {activation:.2f}, W {weight:.2f} (first and last layer left out)\n"
        f"model size: {weight_bytes(costs, bits):,} bytes (kernels, scales and biases)\n"
    )


def _cost_cells(name: str, kind: str, costs: Sequence[LayerCost]) -> list[str]:
    macs, weights = sum(cost.macs for cost in costs), sum(cost.weights for cost in costs)
    return [name, kind, f"{macs:,}", f"{weights:,}"]


def _bits_cells(cost: LayerCost, bits: BitAssignment, total_bops: int) -> list[str]:
    a, w = bits.activation_bits[cost.name], bits.weight_bits[cost.name]
    bops = cost.macs * a * w
    return [str(a), str(w), f"{bops:,}", f"{bops / total_bops:.1%}"]

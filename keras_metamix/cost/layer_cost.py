"""The cost of MAC layers and of bit assignments: BOPs (MetaMix Eq. 6), average bits, weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from keras_metamix.assignment import BitAssignment, require_assignment


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """What the cost of one MAC layer is computed from.

    Attributes:
      name: the layer's name.
      kind: "Conv2D", "Conv2DTranspose", "DepthwiseConv2D" or "Dense".
      macs: multiply-accumulates for one image.
      weights: kernel elements.
      output_channels: rows of the per-channel scales.
      input_elements: elements of the input activation of one image.
      edge: the first or the last MAC layer of the model (fixed bits, not searched).
      operations: what each call of the layer computes, as a text: class, sizes and geometry, no
        bits. Equal texts cost a device the same.
    """

    name: str
    kind: str
    macs: int
    weights: int
    output_channels: int
    input_elements: int
    edge: bool = False
    operations: tuple[str, ...] = ()


def weighted_bits(
    macs: Iterable[int], activation_bits: Iterable[int], weight_bits: Iterable[int]
) -> Any:
    r"""Eq. 6: $\sum_l \mathrm{MACs}_l \cdot a_l \cdot w_l$; ints give an int, tensors a tensor."""
    return sum(m * (a * w) for m, a, w in zip(macs, activation_bits, weight_bits, strict=True))


def assignment_bops(layers: Sequence[LayerCost], bits: BitAssignment) -> int:
    """BOPs of a whole assignment. One MAC of an 8-bit by an 8-bit number is 64 BOPs."""
    require_assignment(bits)
    bits.check_layers(layer.name for layer in layers)
    return weighted_bits(
        (layer.macs for layer in layers),
        (bits.activation_bits[layer.name] for layer in layers),
        (bits.weight_bits[layer.name] for layer in layers),
    )


def average_bits(layers: Sequence[LayerCost], bits: BitAssignment) -> tuple[float, float]:
    r"""Average activation and weight bits of the searched layers, as the paper's tables do.

    $$\bar{a} = \frac{\sum_l E_l \, a_l}{\sum_l E_l}, \qquad \bar{w} = \frac{\sum_l N_l \,
    w_l}{\sum_l N_l}$$

    with $E_l$ the elements of the layer's input and $N_l$ its kernel's. Of a model of edge layers
    only, the average is over those.
    """
    searched = [layer for layer in layers if not layer.edge] or list(layers)
    elements = sum(layer.input_elements for layer in searched)
    weights = sum(layer.weights for layer in searched)
    activation = sum(layer.input_elements * bits.activation_bits[layer.name] for layer in searched)
    weight = sum(layer.weights * bits.weight_bits[layer.name] for layer in searched)
    return activation / elements, weight / weights


def weight_bytes(layers: Sequence[LayerCost], bits: BitAssignment) -> int:
    r"""Bytes of kernels, scales and biases at an assignment: the model size of the literature.

    $$\left\lceil \frac{1}{8} \sum_l N_l \, w_l \right\rceil + \sum_l 8 \, K_l$$

    with $N_l$ weights of $w_l$ bits, and a float32 scale and an int32 bias for each of $K_l$ output
    channels.
    """
    kernel_bits = sum(layer.weights * bits.weight_bits[layer.name] for layer in layers)
    return -(-kernel_bits // 8) + sum(8 * layer.output_channels for layer in layers)

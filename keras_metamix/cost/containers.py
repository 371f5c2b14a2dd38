"""How a file holds a MAC layer's weights, and which operator computes it: decided here alone.

`metamix_tflite.convert` writes it, `explain` says it, and the prices of `Size` count it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

INT4_BITS = 4
# Fewer weights than these save less by INT4 than the operators of their patches take in a file.
LEAST_FOR_PATCHES = 8192


@dataclasses.dataclass(frozen=True)
class MacForm:
    """A MAC layer in a file.

    Attributes:
      operator: LiteRT's.
      container: type that holds the weights, "INT4" or "INT8".
      patches: whether the operator reads patches of the layer's input, which others lay out.
    """

    operator: str
    container: str
    patches: bool = False


def mac_form(
    kind: str,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    channels: int,
    weight_bits: int,
    weight_container: str = "fast",
) -> MacForm:
    """What a container's files have for a MAC layer.

    "fast" takes INT4 where XNNPACK does: in FULLY_CONNECTED with an even number of weights to an
    output (two share a byte). "smallest" takes it wherever the weights fit, "edgetpu" nowhere, and
    has no FULLY_CONNECTED: those of a scale for each channel are newer than the Edge TPU's last
    compiler.

    Args:
      kind: "conv", "depthwise" or "dense".
      kernel_shape: as Keras has it.
      strides: of a convolution.
      channels: of the layer's input.
      weight_bits: of the layer.
      weight_container: "fast", "smallest" or "edgetpu".
    """
    low = weight_bits <= INT4_BITS and weight_container != "edgetpu"
    anywhere = low and weight_container == "smallest"
    if kind == "depthwise":
        return MacForm("DEPTHWISE_CONV_2D", "INT4" if anywhere else "INT8")
    paired = low and math.prod(kernel_shape[:-1]) % 2 == 0
    held = "INT4" if anywhere or paired else "INT8"
    if kind == "dense":
        operator = "CONV_2D" if weight_container == "edgetpu" else "FULLY_CONNECTED"
        return MacForm(operator, held)
    grouped = kernel_shape[-2] != channels
    pointwise = tuple(kernel_shape[:2]) == tuple(strides) == (1, 1)
    if not grouped and pointwise:
        return MacForm("FULLY_CONNECTED" if held == "INT4" else "CONV_2D", held)
    large = math.prod(kernel_shape) >= LEAST_FOR_PATCHES
    if weight_container == "fast" and paired and large and not grouped:
        return MacForm("FULLY_CONNECTED", "INT4", patches=True)
    return MacForm("CONV_2D", "INT4" if anywhere else "INT8")


def xnnpack_takes_pool(size: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether XNNPACK runs a MAX_POOL_2D; else LiteRT's own kernel does, which is as exact."""
    return tuple(size) != (1, 1) and all(
        stride <= window for stride, window in zip(strides, size, strict=True)
    )

"""How a file holds a layer's weights, and which operator computes it: decided here alone.

`convert` writes it, `verify` holds a file to it, `explain` says it, and the prices of `Size` count
it. This module imports nothing, so that all of them can ask it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Iterable, Sequence

CONTAINERS = ("fast", "smallest", "int8")
INT4_BITS = 4
# Fewer weights than these save less by INT4 than the operators of their patches take in a file.
LEAST_FOR_PATCHES = 8192
# What weights of blocks take besides: bytes of an operator, and of the scales and the bias of each
# row that a TRANSPOSE_CONV does without.
_BLOCKS, _ROW = 128, 20
BLOCKS = "/blocks"  # behind a layer's name: the tensor of its pixels, laid out
PATCHES = "/patches"  # behind a layer's name: where the names of its patches' tensors begin


@dataclasses.dataclass(frozen=True)
class MacForm:
    """A MAC layer in a file.

    Attributes:
      operator: LiteRT's.
      container: type that holds the weights, "INT4" or "INT8".
      patches: whether the operator reads patches of the layer's input, which others lay out.
      blocks: whether it gives the pixels of a block as channels, which another lays out.
    """

    operator: str
    container: str
    patches: bool = False
    blocks: bool = False


def check_container(container: str) -> None:
    """Raises ValueError for an unknown `weight_container`."""
    if container not in CONTAINERS:
        raise ValueError(f"weight_container: expected one of {CONTAINERS}, found {container!r}.")


def takes_fully_connected(container: str) -> bool:
    """Whether a container's files have FULLY_CONNECTED operators.

    Those of INT4 or of a scale for each channel are newer than the Edge TPU's last compiler: its
    dense layers are convolutions of one pixel.
    """
    return container != "int8"


def weight_type(container: str, operator: str, weight_bits: int, taps: int) -> str:
    """The type of an operator's weights, "INT4" or "INT8".

    "fast" takes INT4 where XNNPACK does: FULLY_CONNECTED with an even number of weights
    to an output, `taps` (two share a byte). "smallest" takes it wherever the weights fit and LiteRT
    has it, "int8" nowhere.
    """
    if weight_bits > INT4_BITS or container == "int8" or operator == "TRANSPOSE_CONV":
        return "INT8"
    if container == "smallest":
        return "INT4"
    return "INT4" if operator == "FULLY_CONNECTED" and taps % 2 == 0 else "INT8"


def mac_form(
    kind: str,
    kernel_shape: Sequence[int],
    strides: Sequence[int],
    channels: int,
    weight_bits: int,
    weight_container: str = "fast",
) -> MacForm:
    """What a container's files have for a MAC layer.

    Args:
      kind: "conv", "depthwise", "transpose" or "dense".
      kernel_shape: as Keras has it.
      strides: of a convolution.
      channels: of the layer's input.
      weight_bits: of the layer.
      weight_container: "fast", "smallest" or "int8".
    """
    taps = kernel_shape[-1] if kind == "transpose" else math.prod(kernel_shape[:-1])
    as_matrix, as_convolution = (
        weight_type(weight_container, operator, weight_bits, taps)
        for operator in ("FULLY_CONNECTED", "CONV_2D")
    )
    if kind == "transpose":
        height, width, filters, _ = kernel_shape
        square = height == width > 1 and [height, width] == [*strides]
        more = _BLOCKS + _ROW * (height * width - 1) * filters
        saves = as_matrix == "INT4" and math.prod(kernel_shape) // 2 > more
        # XNNPACK takes many times as long for a TRANSPOSE_CONV of few channels as for the product.
        if square and (weight_container == "fast" or saves):
            return MacForm("FULLY_CONNECTED", as_matrix, blocks=True)
        return MacForm("TRANSPOSE_CONV", "INT8")
    if kind == "depthwise":
        return MacForm("DEPTHWISE_CONV_2D", as_convolution)
    if kind == "dense":
        matrix = takes_fully_connected(weight_container)
        return MacForm("FULLY_CONNECTED" if matrix else "CONV_2D", as_matrix)
    grouped = kernel_shape[-2] != channels
    pointwise = tuple(kernel_shape[:2]) == tuple(strides) == (1, 1)
    gains = as_matrix == "INT4"
    if not grouped and pointwise:
        return MacForm("FULLY_CONNECTED" if gains else "CONV_2D", as_matrix)
    large = math.prod(kernel_shape) >= LEAST_FOR_PATCHES
    if weight_container == "fast" and gains and large and not grouped:
        return MacForm("FULLY_CONNECTED", "INT4", patches=True)
    return MacForm("CONV_2D", as_convolution)


def xnnpack_partitions(
    calls: Iterable[tuple[Iterable[Hashable], Iterable[Hashable], bool]],
) -> int:
    """How many partitions XNNPACK runs of a graph: LiteRT gives it all that it can run at a time.

    Args:
      calls: what each operator reads and writes, in order, and whether XNNPACK takes it.
    """
    before: dict[Hashable, int] = {}  # operators of others on the way to a tensor
    parts = set()
    for inputs, outputs, taken in calls:
        depth = max((before.get(tensor, 0) for tensor in inputs), default=0)
        if taken:
            parts.add(depth)
        before |= dict.fromkeys(outputs, depth + (not taken))
    return len(parts)


def xnnpack_takes_pool(size: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether XNNPACK runs a MAX_POOL_2D; else LiteRT's own kernel does, which is as exact."""
    return tuple(size) != (1, 1) and all(
        stride <= window for stride, window in zip(strides, size, strict=True)
    )

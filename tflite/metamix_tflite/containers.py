"""Which integer type holds a layer's weights: `convert` writes it, `verify` checks it."""

from __future__ import annotations

import math

CONTAINERS = ("fast", "smallest", "edgetpu")
INT4_BITS = 4
# Fewer weights than these save less by INT4 than the operators of their patches take in a file.
_LEAST_FOR_PATCHES = 8192
PATCHES = "/patches"  # behind a layer's name: where the names of its patches' tensors begin


def check_container(container: str) -> None:
    """Raises ValueError for an unknown `weight_container`."""
    if container not in CONTAINERS:
        raise ValueError(f"weight_container: expected one of {CONTAINERS}, found {container!r}.")


def is_pointwise(kind: str, kernel_shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether a layer is a matrix product over channels: FULLY_CONNECTED on LiteRT."""
    if kind == "dense":
        return True
    return kind == "conv" and kernel_shape[:2] == (1, 1) and tuple(strides) == (1, 1)


def takes_patches(container: str, kernel_shape: tuple[int, ...], weight_bits: int) -> bool:
    """Whether a convolution of one group is a FULLY_CONNECTED of its input's patches.

    Args:
      container: of the file.
      kernel_shape: (height, width, input channels, output channels).
      weight_bits: of the layer.
    """
    weights = math.prod(kernel_shape)
    matrix = weight_type(container, True, weight_bits, weights // kernel_shape[-1])
    return container == "fast" and matrix == "INT4" and weights >= _LEAST_FOR_PATCHES


def takes_fully_connected(container: str) -> bool:
    """Whether a container's files have FULLY_CONNECTED operators.

    Those of INT4 or of a scale for each channel are newer than the Edge TPU's last compiler: its
    dense layers are convolutions of one pixel.
    """
    return container != "edgetpu"


def weight_type(container: str, matrix: bool, weight_bits: int, taps: int) -> str:
    """ "INT4" or "INT8".

    "fast" takes INT4 where XNNPACK does: FULLY_CONNECTED (`matrix`) with an even number of weights
    to an output (two share a byte). "smallest" takes it wherever the weights fit, "edgetpu"
    nowhere.
    """
    if weight_bits > INT4_BITS or container == "edgetpu":
        return "INT8"
    if container == "smallest":
        return "INT4"
    return "INT4" if matrix and taps % 2 == 0 else "INT8"

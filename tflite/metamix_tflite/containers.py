"""Which integer type holds a layer's weights: `convert` writes it, `verify` checks it."""

from __future__ import annotations

CONTAINERS = ("fast", "smallest", "edgetpu")
INT4_BITS = 4


def check_container(container: str) -> None:
    """Raises ValueError for an unknown `weight_container`."""
    if container not in CONTAINERS:
        raise ValueError(f"weight_container: expected one of {CONTAINERS}, found {container!r}.")


def is_pointwise(kind: str, kernel_shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether a layer is a matrix product over channels: FULLY_CONNECTED on LiteRT."""
    if kind == "dense":
        return True
    return kind == "conv" and kernel_shape[:2] == (1, 1) and tuple(strides) == (1, 1)


def takes_fully_connected(container: str) -> bool:
    """Whether a container's files have FULLY_CONNECTED operators.

    Those of INT4 or of a scale for each channel are newer than the Edge TPU's last compiler: its
    dense layers are convolutions of one pixel.
    """
    return container != "edgetpu"


def weight_type(container: str, pointwise: bool, weight_bits: int, input_channels: int) -> str:
    """ "INT4" or "INT8".

    "fast" takes INT4 where XNNPACK does: FULLY_CONNECTED with an even number of input channels
    (two weights share a byte). "smallest" takes it wherever the weights fit, "edgetpu" nowhere.
    """
    if weight_bits > INT4_BITS or container == "edgetpu":
        return "INT8"
    if container == "smallest":
        return "INT4"
    return "INT4" if pointwise and input_channels % 2 == 0 else "INT8"

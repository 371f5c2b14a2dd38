"""Weight containers, and what `verify` holds each operator of a file to, without Keras.

`keras_metamix.cost.containers` decides which operator and type a layer takes.
"""

from __future__ import annotations

CONTAINERS = ("fast", "smallest", "edgetpu")
INT4_BITS = 4
PATCHES = "/patches"  # behind a layer's name: where the names of its patches' tensors begin


def check_container(container: str) -> None:
    """Raises ValueError for an unknown `weight_container`."""
    if container not in CONTAINERS:
        raise ValueError(f"weight_container: expected one of {CONTAINERS}, found {container!r}.")


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

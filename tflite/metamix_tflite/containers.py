"""What a file holds weights of few bits in.

`convert` writes it, `verify` holds a file to it, `explain` says it, and the prices of `Size` count
it. This module imports nothing, so that all of them can ask it, and `targets`, which chooses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterable, Sequence

BITS = {"INT2": 2, "INT4": 4, "INT8": 8}  # of the types that hold weights, from the fewest
BLOCKS = "/blocks"  # behind a layer's name: the tensor of its pixels, laid out
PATCHES = "/patches"  # behind a layer's name: where the names of its patches' tensors begin


@dataclasses.dataclass(frozen=True)
class Container:
    """What the weights of a file's layers may be held in, by the operator that reads them.

    Attributes:
      matrix: types that FULLY_CONNECTED has; none where files have no FULLY_CONNECTED.
      convolution: types that CONV_2D and DEPTHWISE_CONV_2D have.
      xnnpack: whether XNNPACK runs all of such files. It takes weights of fewer than 8 bits in
        FULLY_CONNECTED alone, and there if those of an output fill whole bytes.
    """

    matrix: tuple[str, ...]
    convolution: tuple[str, ...] = ("INT8",)
    xnnpack: bool = True

    def weight_type(self, operator: str, weight_bits: int, taps: int) -> str:
        """The type of an operator's weights: the smallest that holds their bits.

        Args:
          operator: LiteRT's.
          weight_bits: of the layer.
          taps: how many weights an output has.
        """
        types = ("INT8",)
        if operator == "FULLY_CONNECTED":
            types = self.matrix
        elif operator != "TRANSPOSE_CONV":
            types = self.convolution
        for name in types:
            whole = taps * BITS[name] % 8 == 0 or not self.xnnpack
            if weight_bits <= BITS[name] and whole:
                return name
        return "INT8"


CONTAINERS = {
    "fast": Container(("INT2", "INT4", "INT8")),
    "int4": Container(("INT4", "INT8")),
    "int8": Container(()),
    "int4_conv": Container((), ("INT4", "INT8"), xnnpack=False),
    "smallest": Container(("INT2", "INT4", "INT8"), ("INT4", "INT8"), xnnpack=False),
}


def held_bytes(container: str, weights: int) -> int:
    """Bytes of so many weights of a type."""
    return -(-weights * BITS[container] // 8)


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

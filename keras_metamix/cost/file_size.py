"""Bytes of a .tflite counted from its tensors and operators, without writing it.

The fixed costs of the flatbuffer and of the compressed declaration were fitted to files of trained
networks, of 5.5 kB to 2.8 MB, that `metamix_tflite.convert` wrote. They give the sizes to within
1 %, and rather too high than too low, so that a file stays within its budget. Only outputs of many
values are not known: a file holds up to 16 kB of each, of which compression may leave a half.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

_FILE = 600 + 460  # of the file with its hashes, and of its declaration
_TENSOR, _QUANTIZED, _OPERATOR, _BUFFER = 36.2, 17.2, 32.5, 17.9
_KIND = 30  # of each kind of operator: its code, and the layout of its options
_DECLARED_LAYER, _DECLARED_TENSOR = 25.8, 11.6
_DECLARED_AGAIN = 5.7  # of these, where numbers of another are repeated
_GOLDEN = 4  # of each output value: four inputs; values that are alike are compressed to less
_LARGEST_OUTPUT = 4096  # values of an output that a file keeps
_ALIGNED = 16  # bytes to which a buffer is filled


def with_margin(bytes_: float) -> int:
    """Bytes, rather too many than too few: trained files differ from what is counted by 0.3 %."""
    return math.ceil(1.003 * bytes_)


class FileBytes:
    """Adds up the bytes of a file's parts.

    Args:
      bytes_: at the beginning.

    Attributes:
      once: bytes of the parts that are stored once however often they occur, by what tells them
        from others.
    """

    def __init__(self, bytes_: float = _FILE):
        self._bytes = float(bytes_)
        self.once: dict[Hashable, float] = {}

    @property
    def total(self) -> float:
        """The bytes so far."""
        return self._bytes + sum(self.once.values())

    def tensor(
        self,
        name: str,
        shape: Sequence[Hashable],
        scale: Hashable = None,
        channels: int = 1,
        data: int | None = None,
        known: Hashable = None,
    ) -> None:
        """Adds a tensor.

        Args:
          name, shape: those of the tensor.
          scale: tells its scale from others; None for floats and INT32 constants without one.
          channels: how many scales it has.
          data: bytes of a constant.
          known: tells the constant from others; None if no other can equal it.
        """
        self._bytes += _TENSOR + _filled(len(name) + 1, 4)
        self._vector(("shape", *shape), 4 * len(shape))
        if scale is not None:
            self._bytes += _QUANTIZED
            self._vector(("scale", scale), 4 * channels)
            self._vector(("zero-points", channels), 8 * channels)
        if data is not None:
            bytes_ = _BUFFER + _filled(data, _ALIGNED)
            if known is None:
                self._bytes += bytes_
            else:
                self.once["data", known] = bytes_

    def activation(self, name: str, shape: Sequence[Hashable], scale: Hashable) -> None:
        """Adds a tensor that an operator gives, and its entry in the declaration."""
        self.tensor(name, shape, scale)
        self._declared(("tensor", scale), _DECLARED_TENSOR)

    def operator(self, kind: Hashable, inputs: int) -> None:
        """Adds an operator of a kind, with so many inputs."""
        self._bytes += _OPERATOR + 4 * inputs
        self.once["operator", kind] = _KIND

    def layer(self, owner: str) -> None:
        """Adds the declaration of a call of a MAC layer."""
        self._declared(("layer", owner), _DECLARED_LAYER)

    def golden(self, values: int) -> None:
        """Adds the golden outputs of an output of so many values."""
        stride = -(-values // _LARGEST_OUTPUT)
        self._bytes += _GOLDEN * -(-values // stride)

    def _declared(self, known: Hashable, bytes_: float) -> None:
        self._bytes += _DECLARED_AGAIN
        self.once["declared", known] = bytes_ - _DECLARED_AGAIN

    def _vector(self, known: Hashable, length: int) -> None:
        self.once["vector", known] = 4 + _filled(length, 4)


def _filled(length: float, to: int) -> int:
    return math.ceil(length / to) * to

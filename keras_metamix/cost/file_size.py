"""Bytes of a .tflite counted from its tensors and operators, without writing it.

The fixed costs of the flatbuffer and of the compressed declaration were fitted to files of
`metamix_tflite.convert`: seven networks of 5.5 kB to 2.8 MB, whose sizes they give to within 1 %,
and rather too high than too low, so that a file stays within its budget. Only outputs of many
values are not known: a file holds up to 16 kB of each, of which compression may leave a half.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Sequence

from metamix_tflite.containers import held_bytes
from metamix_tflite.targets import MacForm, Target

_FILE = 743 + 460  # of the file with its hashes, and of its declaration
_PATCHES = 48  # of a convolution of patches, besides its operators
_TENSOR, _QUANTIZED, _OPERATOR, _BUFFER = 36.2, 17.2, 32.5, 17.9
_DECLARED_LAYER, _DECLARED_TENSOR, _DECLARED_PATCH = 25.8, 11.6, 5.7
_GOLDEN = 4  # of each output value: four inputs; values that are alike are compressed to less
_LARGEST_OUTPUT = 4096  # values of an output that a file keeps
_ALIGNED = 16  # bytes to which a buffer is filled
_MOST_JOINED = 5  # tensors of one CONCATENATION


def with_margin(bytes_: float) -> int:
    """Bytes, rather too many than too few: trained files differ from what is counted by 0.3 %."""
    return math.ceil(1.003 * bytes_)


class FileBytes:
    """Adds up the bytes of a file's parts; equal parts are stored once."""

    def __init__(self, bytes_: float = _FILE):
        self._bytes = float(bytes_)
        self._stored: set[Hashable] = set()

    @property
    def total(self) -> int:
        """The bytes so far."""
        return round(self._bytes)

    def tensor(
        self,
        name: str,
        shape: Sequence[Hashable],
        scale: Hashable = None,
        channels: int = 1,
        data: int | None = None,
    ) -> None:
        """Adds a tensor.

        Args:
          name, shape: those of the tensor.
          scale: tells its scale from others; None for floats and INT32 constants without one.
          channels: how many scales it has.
          data: bytes of a constant; 0 if they are counted elsewhere.
        """
        self._bytes += _TENSOR + _filled(len(name) + 1, 4)
        self._vector(("shape", *shape), 4 * len(shape))
        if scale is not None:
            self._bytes += _QUANTIZED
            self._vector(("scale", scale), 4 * channels)
            self._vector(("zero-points", channels), 8 * channels)
        if data is not None:
            self._bytes += _BUFFER + _filled(data, _ALIGNED)

    def data(self, known: Hashable, length: int) -> int | None:
        """The bytes of the constant that `known` identifies; None if it is stored already."""
        if known in self._stored:
            return None
        self._stored.add(known)
        return length

    def operator(self, inputs: int) -> None:
        """Adds an operator with so many inputs."""
        self._bytes += _OPERATOR + 4 * inputs

    def declared(self, layers: int = 0, tensors: int = 0, patches: int = 0) -> None:
        """Adds entries of the declaration: MAC layers, tensors, and tensors of patches."""
        self._bytes += _DECLARED_LAYER * layers + _DECLARED_TENSOR * tensors
        self._bytes += _DECLARED_PATCH * patches

    def golden(self, values: int) -> None:
        """Adds the golden outputs of an output of so many values."""
        stride = -(-values // _LARGEST_OUTPUT)
        self._bytes += _GOLDEN * -(-values // stride)

    def _vector(self, known: Hashable, length: int) -> None:
        if known not in self._stored:
            self._stored.add(known)
            self._bytes += 4 + _filled(length, 4)


@dataclasses.dataclass(frozen=True)
class MacShape:
    """What determines the bytes of a MAC layer's weights.

    Attributes:
      name: the name of its call.
      kind, kernel_shape, strides, channels: see `Target.mac_form`.
      padding: of a convolution.
      target: where the file runs.
    """

    name: str
    kind: str
    kernel_shape: tuple[int, ...]
    strides: tuple[int, ...]
    channels: int
    padding: str
    target: Target

    def bytes_at(self, weight_bits: int, stored: bool = False) -> int:
        """Bytes of the weights, padded to 16, and of the patches that their operator reads.

        Args:
          weight_bits: of the layer.
          stored: whether an earlier call of the layer has stored the weights.
        """
        form = self.target.mac_form(
            self.kind, self.kernel_shape, self.strides, self.channels, weight_bits
        )
        held = _filled(held_bytes(form.container, math.prod(self.kernel_shape)), _ALIGNED)
        others = self._patches(stored) if form.patches else self._transposed(form, stored)
        return (0 if stored else held) + others

    def _transposed(self, form: MacForm, stored: bool) -> int:
        """Bytes of what a transposed convolution has besides: its size, or a layout of blocks."""
        if self.kind != "transpose":
            return 0
        file, (height, width, channels) = FileBytes(0), self.kernel_shape[:3]
        if not form.blocks:
            file.tensor(f"{self.name}/size", (4,), data=None if stored else 16)
            return file.total + 4
        file.tensor(f"{self.name}/blocks", (1, 1, 1, 1), "grid")
        file.operator(1)
        file.declared(tensors=1)
        rows = height * width * channels  # each with two scales and a bias, as those of others,
        more = 12 * (rows - channels) + 8 * rows  # and a zero-point
        return file.total + (0 if stored else more)

    def _patches(self, stored: bool) -> int:
        """Bytes of the operators that lay out patches, as `operators.patches` writes them."""
        file, name = FileBytes(0 if stored else _PATCHES), f"{self.name}/patches/column0"
        # An earlier call may have stored the constants. Of begin, end and strides one is new: the
        # others equal those of other slices, ends of one row those of none.
        new = 0 if stored else 2 if self.kernel_shape[0] == 1 else 1
        for axis in (1, 0):
            taps, stride = self.kernel_shape[axis], self.strides[axis]
            if stride > 1:
                _moved(file, name, 1, new, axis, 0)
            if taps > 1 or stride > 1:
                for _ in range(taps):
                    _moved(file, name, 3, new, axis, 1)
            for _ in range(math.ceil((taps - 1) / (_MOST_JOINED - 1))):
                _moved(file, name, 0, new, axis, 2)
        if self.padding == "same":
            _moved(file, name, 1, new)
        return file.total


def _moved(file: FileBytes, name: str, constants: int, new: int, *shape: int) -> None:
    """Adds an operator that moves values, its constants, and its output; some share a shape."""
    file.tensor(name, (1, 1, 1, 1, *shape)[-4:], "grid")
    for number in range(constants):
        file.tensor(f"{name}/begin", (4,), data=16 if number < new else None)
    file.operator(1 + constants)
    file.declared(patches=1)


def _filled(length: float, to: int) -> int:
    return math.ceil(length / to) * to

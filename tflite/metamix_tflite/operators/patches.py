"""A convolution's input as patches: the convolution is a matrix product of them.

XNNPACK takes weights of fewer than 8 bits in FULLY_CONNECTED alone. Its other operators move the
values, so that nothing is rounded: PAD, STRIDED_SLICE and CONCATENATION, first for each column of
the kernel, then for each row. A stride of s is a RESHAPE, which puts s columns (rows) side by side,
before it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from metamix_tflite.containers import PATCHES
from metamix_tflite.operators.base import FileWriter, WrittenTensor
from metamix_tflite.operators.concatenate import joined
from metamix_tflite.operators.data_movement import padded, reshaped, sliced


@dataclasses.dataclass(frozen=True)
class _Axis:
    """Height or width of a convolution: `taps` of the kernel, each `dilation` after the last."""

    size: int
    result: int
    taps: int
    stride: int
    dilation: int
    before: int

    @property
    def padded(self) -> int:
        """The size with borders: all that is read, in whole strides."""
        read = (self.result - 1) * self.stride + (self.taps - 1) * self.dilation + 1
        return -(-max(read, self.size + self.before) // self.stride) * self.stride

    @property
    def after(self) -> int:
        """The border behind."""
        return self.padded - self.size - self.before

    def places(self) -> list[tuple[int, int]]:
        """Of each tap the first stride that it reads, and its place within a stride."""
        return [divmod(tap * self.dilation, self.stride) for tap in range(self.taps)]


def patches(
    file: FileWriter,
    name: str,
    source: WrittenTensor,
    layer: Any,
    result: tuple[int, ...],
) -> WrittenTensor:
    """What each output pixel reads, shape (1, height, width, taps x channels).

    Args:
      file, name: the names of all tensors begin with "NAME/patches".
      source: shape (1, height, width, channels).
      layer: the convolution, an IntegerMac of one group.
      result: shape of its output.
    """
    name += PATCHES
    rows, columns = (_axis(layer, source, result, axis) for axis in (0, 1))
    channels, width = source.shape[3], columns.result
    borders = ((rows.before, rows.after), (columns.before, columns.after))
    if any(map(any, borders)):
        source = padded(file, f"{name}/padded", source, borders)

    if columns.stride > 1:
        strides = columns.padded // columns.stride
        shape = (1, rows.padded, strides, columns.stride * channels)
        source = reshaped(file, f"{name}/columns", source, shape)
    parts = []
    for number, (start, place) in enumerate(columns.places()):
        begin, shape = (0, start, place * channels), (1, rows.padded, width, channels)
        parts.append(sliced(file, f"{name}/column{number}", source, begin, shape))
    source = joined(file, f"{name}/row", parts)

    if rows.stride > 1:
        shape = (1, rows.padded // rows.stride, rows.stride * width, source.shape[3])
        source = reshaped(file, f"{name}/rows", source, shape)
    parts = []
    for number, (start, place) in enumerate(rows.places()):
        begin, shape = (start, place * width, 0), (1, rows.result, width, source.shape[3])
        parts.append(sliced(file, f"{name}/row{number}", source, begin, shape))
    return joined(file, f"{name}/joined", parts)


def _axis(layer: Any, source: WrittenTensor, result: tuple[int, ...], axis: int) -> _Axis:
    size, count = source.shape[1 + axis], result[1 + axis]
    taps, stride = layer.kernel_shape[axis], layer.strides[axis]
    dilation = layer.dilation_rate[axis]
    read = (count - 1) * stride + (taps - 1) * dilation + 1
    before = max(read - size, 0) // 2 if layer.padding == "same" else 0
    return _Axis(size, count, taps, stride, dilation, before)

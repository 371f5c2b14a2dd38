"""Depthwise convolutions of all strides and dilations."""

from __future__ import annotations

from typing import Any

from keras import ops


def depthwise_conv(
    x: Any, kernel: Any, strides: tuple[int, ...], padding: str, dilation_rate: tuple[int, ...]
) -> Any:
    """`ops.depthwise_conv`, with all strides and dilations.

    TensorFlow has no kernel for unequal strides in float64, and none for strides beside a dilation,
    where Keras loses the shape: every stride-th of all results is taken.
    """
    if len(set(strides)) == 1 and (strides[0] == 1 or set(dilation_rate) == {1}):
        return ops.depthwise_conv(x, kernel, strides, padding, dilation_rate=dilation_rate)
    if padding == "same":
        ends = zip(x.shape[1:3], kernel.shape[:2], strides, dilation_rate, strict=True)
        x = ops.pad(x, [(0, 0), *(_same_border(*axis) for axis in ends), (0, 0)])
    results = ops.depthwise_conv(x, kernel, 1, "valid", dilation_rate=dilation_rate)
    return results[:, :: strides[0], :: strides[1]]


def _same_border(size: int, taps: int, stride: int, dilation: int) -> tuple[int, int]:
    """Zeros before and behind an axis that padding "same" adds."""
    read = (-(-size // stride) - 1) * stride + (taps - 1) * dilation + 1
    border = max(read - size, 0)
    return border // 2, border - border // 2

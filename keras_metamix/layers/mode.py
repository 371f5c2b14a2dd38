"""What the quantizers of a network do in one forward pass.

A model enters a mode inside its `train_step` or `call`; the layers read it. It is
thread-local, because `tf.distribute` runs every replica's step in a thread of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from typing import Any, Literal

Choice = Literal["off", "assigned", "mixture", "forced", "observe"]


@dataclasses.dataclass(frozen=True)
class QuantizationMode:
    """One forward pass.

    Attributes:
      activations: how the bit-width of a MAC layer's input is chosen: "off" (float),
        "assigned" (the layer's own integer variable), "mixture" (softmax over candidates,
        MetaMix Eq. 2), "forced" (candidate number `forced` in every searched layer, Eq. 1),
        or "observe" (float; step sizes are set from what passes).
      weights: whether kernels are quantized, and how; "forced" uses `forced_weights`.
      streams: whether tensors that no MAC layer reads directly are quantized.
      forced, forced_weights: candidate number, an integer or an integer tensor, of every
        searched layer, or of each by its BitChoice (Bit-Mixer).
      statistics: "own" (batch norm as Keras does it) or "frozen" (in training, batch
        statistics are used and moving statistics stay).
      observer: called as `observer(quantizer, values)` by the quantizers in "observe"; given
        with another choice, by the stream quantizers only, which then stay in float.
    """

    activations: Choice = "assigned"
    weights: Choice = "assigned"
    streams: bool = True
    forced: Any = 0
    forced_weights: Any = 0
    statistics: Literal["own", "frozen"] = "own"
    observer: Any = None


FLOAT = QuantizationMode(activations="off", weights="off", streams=False)
DEPLOYED = QuantizationMode()
_current = threading.local()


def current_mode() -> QuantizationMode:
    """The innermost mode of this thread; quantized as assigned when there is none."""
    return getattr(_current, "mode", DEPLOYED)


def inside_mode() -> bool:
    """Whether this thread is inside `quantization_mode`."""
    return hasattr(_current, "mode")


@contextlib.contextmanager
def quantization_mode(mode: QuantizationMode) -> Iterator[None]:
    """Makes `mode` the current one for the block."""
    previous = getattr(_current, "mode", None)
    _current.mode = mode
    try:
        yield
    finally:
        if previous is None:
            del _current.mode
        else:
            _current.mode = previous


@contextlib.contextmanager
def quantizers_off() -> Iterator[None]:
    """Lets a quantized model compute in float for the block, as the float model does.

    `with quantizers_off(): model(images)` is exact: no bit differs from the float model's results
    as long as the weights are its own. `predict` and `evaluate` follow; `fit` is refused there.
    """
    with quantization_mode(FLOAT):
        yield

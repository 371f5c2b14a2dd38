"""What a layer's measures say, in a line each: the largest loss first, with what to do."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Literal

from keras_metamix.doctor.measures import TensorError

FAR = 4.0  # times the best step and calibration's, or below one such part, a step size ran away
LOST = 6.0  # dB that it loses by that: one bit
CLIPPED = 0.02  # share of values beyond the ends from which clipping is named
CLIP_LOST = 3.0  # dB that the best step would gain then
POOR = 15.0  # dB below which the bits themselves are too few
FINE = 40.0  # dB from which a tensor has no finding: eight bits, well used
THIRD = 1 / 3  # the most and the least sensitive third of the layers

Symptom = Literal["step", "clipping", "bits", "dead", "sensitivity"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a layer.

    Attributes:
      layer: its name.
      symptom: "step" (a step size that ran away), "clipping", "bits" (too few), "dead" (channels
        that have one value only) or "sensitivity" (bits that do not fit the layer's sensitivity).
      text: what was measured, and what to do.
      lost: what it costs, in dB, where that is known; else 0.
    """

    layer: str
    symptom: Symptom
    text: str
    lost: float = 0.0


def of_tensor(layer: str, what: str, error: TensorError, trained: bool) -> Iterator[Finding]:
    """The finding about an activation or weights.

    Args:
      layer: the layer's name.
      what: "input", "weights", or the like.
      error: as measured.
      trained: whether training has moved the step sizes.
    """
    if not error.sqnr < FINE:
        return
    ratios, gain = (error.step_ratio, error.start_ratio), error.gain
    ratio = error.step_ratio
    anew = "kmm.calibrate(model, images, rule='mse'"
    anew += ", overwrite=True), or train with a smaller learning rate" if trained else ")"
    if (min(ratios) >= FAR or max(ratios) <= 1 / FAR) and gain >= LOST:
        clips = f", and {error.clipped:.1%} of the values are clipped" if ratio < 1 else ""
        text = (
            f"the step size of its {what} is {ratio:.3g} times the one of least error{clips}: "
            f"{gain:.0f} dB lost; set it anew by {anew}"
        )
        yield Finding(layer, "step", text, gain)
    elif error.clipped >= CLIPPED and gain >= CLIP_LOST:
        text = (
            f"{error.clipped:.1%} of its {what} lie beyond the grid's ends: {gain:.0f} dB lost; a "
            f"larger step size clips less: {anew}"
        )
        yield Finding(layer, "clipping", text, gain)
    if error.best_sqnr < POOR and error.bits < 8 and error.more_sqnr > error.best_sqnr:
        text = (
            f"{error.bits} bits of its {what} give {error.best_sqnr:.0f} dB at the best step; "
            f"{error.more_bits} would give {error.more_sqnr:.0f}: give the layer more bits (a "
            "larger budget, or more in from_float), or train longer at these"
        )
        yield Finding(layer, "bits", text, error.more_sqnr - error.best_sqnr)


def of_channels(layer: str, channels: int, dead: int, dead_in_float: int) -> Iterator[Finding]:
    """The finding about channels that have one value only."""
    if not dead:
        return
    share = f"{dead} of its {channels} output channels have one value only"
    killed = dead - dead_in_float
    if killed <= 0:
        why = ", in float too: they can be removed, or the float model trained with a smaller "
        why += "learning rate or weight decay"
    else:
        why = f", {killed} of them by quantization alone: its weights or what reads it need more "
        why += "bits, or smaller step sizes"
    yield Finding(layer, "dead", share + why)


def of_sensitivity(
    layers: dict[str, tuple[float, float]],
) -> Iterator[Finding]:
    """Layers whose bits are few beside how sensitive they are, or many.

    Args:
      layers: by name of those whose bits are a choice: activation bits times weight bits, and
        sensitivity.
    """
    if len(layers) < 3:
        return
    rank = {n: i for i, n in enumerate(sorted(layers, key=lambda n: -layers[n][1]))}
    mean = sum(bits for bits, _ in layers.values()) / len(layers)
    last = len(layers) - 1
    for name, (bits, sensitivity) in layers.items():
        place = f"of {len(layers)} layers it is number {rank[name] + 1} by sensitivity"
        if not math.isfinite(sensitivity):
            continue
        if rank[name] <= last * THIRD and bits < mean:
            text = f"{place} ({sensitivity:.3g}), and has fewer bits than most: give it more"
            yield Finding(name, "sensitivity", text)
        elif rank[name] >= last * (1 - THIRD) and bits > mean:
            text = f"{place} ({sensitivity:.3g}), and has more bits than most: it can do with fewer"
            yield Finding(name, "sensitivity", text)

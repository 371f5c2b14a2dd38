"""The cost term of bit-search: MetaMix Eq. 3 to 6."""

from __future__ import annotations

from typing import Any, Literal

from keras import ops

from keras_metamix.checks import one_of, require_number
from keras_metamix.cost import weighted_bits
from keras_metamix.ops import hard_selection

CostForm = Literal["relative", "paper"]
DEFAULT_STRENGTH = {"relative": 8.0, "paper": 1.0}
PAPER_UNIT = 1e9


def require_cost(form: object, strength: object) -> None:
    """Raises ValueError unless they are a form of Eq. 4 and, or None, a lambda of Eq. 3."""
    one_of("cost", form, [*DEFAULT_STRENGTH])
    if strength is not None:
        require_number("cost_strength", strength, 0)


def selected_bits(chooser: Any) -> Any:
    """`<hs(alpha), B>` (Eq. 5): the bit-width with most probability, softmax gradient.

    Args:
      chooser: a quantizer layer with `candidates` and, where there is a choice, `alpha`.
    """
    candidates = ops.convert_to_tensor(chooser.candidates, "float32")
    if not chooser.searched:
        return candidates[0]
    return ops.sum(hard_selection(ops.convert_to_tensor(chooser.alpha)) * candidates)


def expected_bops(macs: list[int], activation_bits: list[Any], weight_bits: list[Any]) -> Any:
    """Eq. 6 on tensors, in units of 1e9 so that float32 holds the digits that matter."""
    return weighted_bits((m / PAPER_UNIT for m in macs), activation_bits, weight_bits)


def chosen_gigabops(layers: list[Any], macs: list[int], tied: bool) -> Any:
    """`expected_bops` of MAC layers at the bits that they would choose now.

    Args:
      layers: quantized MAC layers.
      macs: of each.
      tied: whether a layer's weights take the bits of its activation.
    """
    activation = [selected_bits(layer.input_quantizer) for layer in layers]
    if tied:
        return expected_bops(macs, activation, activation)
    return expected_bops(macs, activation, [selected_bits(x.weight_quantizer) for x in layers])


def cost_loss(gigabops: Any, target_bops: float, form: CostForm = "relative") -> Any:
    """Eq. 4, two-sided.

    Args:
      gigabops: BOPs of the present choice, in 1e9.
      target_bops: the budget T, in BOPs.
      form: "relative" |BOPs / T - 1|, or "paper" |BOPs - T| in units of 1e9 BOPs.
    """
    target = target_bops / PAPER_UNIT
    distance = ops.abs(gigabops - target)
    return distance / target if form == "relative" else distance

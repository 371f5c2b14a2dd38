"""What from_float says of the operations that it cannot take, in the user's words."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from keras_metamix.graph.reasons import OTHERWISE, described, on_input, reason
from keras_metamix.keras_internals import calls_of, operation_of
from keras_metamix.layers.weight_quantizer import LARGEST

_MOST_NAMES = 8  # that a message repeats


@dataclasses.dataclass(frozen=True)
class Refusal:
    """What keeps one operation from being quantized or exported.

    Attributes:
      name: what `float_layers` takes for it: the layer's name; that of the layer around a raw
        operation; that of the raw operation itself where the model calls it.
      what: the operation, as in "Layer 'act' (LeakyReLU) inside 'block' (Block)".
      reason: why, and what does instead.
      may_stay: whether `float_layers` helps.
      stuck: why the layer cannot be kept as it is either, "" where it can.
      cls: class of a layer, or what a raw operation does and where; those of one share a line.
    """

    name: str
    what: str
    reason: str
    may_stay: bool = True
    stuck: str = ""
    cls: str = ""

    def __str__(self) -> str:
        return f"{self.what}: {self.text}."

    @property
    def text(self) -> str:
        """The reason, and why the layer cannot stay in float either."""
        if not self.stuck or self.stuck == self.reason:
            return self.reason
        return f"{self.reason}. It cannot stay in float either, since it {self.stuck}"


class UnsupportedLayerError(ValueError):
    """Operations that from_float cannot take; `refused` has a message for each, by name."""

    def __init__(self, model: str, refusals: Iterable[Refusal]):
        found = list(refusals)
        self.refused: dict[str, str] = by_name(found)
        super().__init__(_message(model, found))


def by_name(refusals: Iterable[Refusal]) -> dict[str, str]:
    """What a message says of each, by the name that `float_layers` takes."""
    groups: dict[str, list[Refusal]] = {}
    for refusal in refusals:
        groups.setdefault(refusal.name, []).append(refusal)
    return {name: " ".join(_lines(found)) for name, found in groups.items()}


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where an operation of the flat model comes from.

    Attributes:
      name: what `float_layers` takes for it.
      owner: the layer that it is the activation of, "" for none.
      composite: what `float_layers` takes for the layer whose call it is part of, "" for none.
      around: that layer, or the model inside the given one, as a message has it.
      stuck: why that layer cannot be copied, so that `float_layers` does not help, "" if it can.
      cls: class of the user's layer, where that of the flat model has another one; else "".
      layout: what a Reshape of the flat model gives, which the user's layer does not have; else "".
    """

    name: str
    owner: str = ""
    composite: str = ""
    around: str = ""
    stuck: str = ""
    cls: str = ""
    layout: str = ""

    def label(self, operation: Any) -> str:
        """A layer as a message has it."""
        return f"{(self.owner or self.name)!r} ({self.cls or described(operation)})"

    def refusal(
        self, operation: Any, why: str, place: str = "", may_stay: bool = True, stuck: str = ""
    ) -> Refusal:
        """A refusal of this operation in the user's words.

        Args:
          operation: the Keras operation.
          why: the reason, and what does instead.
          place: what precedes a raw operation, as in "layer 'stem'".
          may_stay: whether `float_layers` helps.
          stuck: why the layer cannot be kept as it is, "" where it can.
        """
        what = self.cls or described(operation)
        if isinstance(operation, layers.Layer):
            inside = f" inside {self.around}" if self.around else ""
            what, cls = f"Layer {self.label(operation)}{inside}", what
            return Refusal(self.name, what, why, may_stay and not stuck, stuck, cls)
        if self.composite:
            cls, stays = f"Layer {self.around} computes", may_stay and not self.stuck
            return Refusal(self.composite, f"{cls} {what}", why, stays, self.stuck, cls)
        what = what if what[:5] == "keras" else what[0].upper() + what[1:]
        cls = f"{what} behind {place}" if place else what
        return Refusal(self.name, f"{cls} ({self.name!r})", why, may_stay, cls=cls)


class Refused(keras.Operation):
    """Replaces an operation that cannot be opened, so that all others can be read."""

    def __init__(self, operation: Any, name: str):
        super().__init__(name=name)
        self.operation = operation

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        return self.operation.compute_output_spec(*args, **kwargs)


def listed(names: Sequence[str]) -> str:
    """Names for a message, the first of many."""
    first = ", ".join(map(repr, names[:_MOST_NAMES]))
    more = len(names) - _MOST_NAMES
    return f"{first} and {more} more" if more > 0 else first


def place_behind(tensors: Sequence[Any], origins: dict[str, Origin]) -> str:
    """The last layer or input before some tensors of the flat model, in the user's words.

    Args:
      tensors: what an operation reads.
      origins: of the flat model.

    Returns:
      "layer 'stem'", or the like; "" for none.
    """
    while tensors:
        operation = operation_of(tensors[0])
        if isinstance(operation, layers.InputLayer):
            return f"input {operation.name!r}"
        if isinstance(standing_for(operation), layers.Layer):
            origin = origins[operation.name]
            inside = f" inside {origin.around}" if origin.around else ""
            return f"layer {(origin.owner or origin.name)!r}{inside}"
        tensors = calls_of(operation)[0].input_tensors
    return ""


def why_none(operation: Any, tensors: Sequence[Any], known: str | None = None) -> str:
    """Why an operation that cannot be opened is not exported, and what does instead.

    Args:
      operation: the Keras operation.
      tensors: of the flat model, which it reads.
      known: the reason; that of the table where there is none.
    """
    known = known or reason(operation)
    if "data pipeline" not in (known or "") and _reads_the_input(operation, tensors):
        return on_input(operation)
    return known or OTHERWISE


def _reads_the_input(operation: Any, tensors: Sequence[Any]) -> bool:
    """Whether an operation, and all before it, has no weights: a data pipeline can compute it."""
    if has_weights(operation):
        return False
    waiting, seen = list(tensors), set()
    while waiting:
        before = operation_of(waiting.pop())
        if id(before) in seen or isinstance(before, layers.InputLayer):
            continue
        if has_weights(before):
            return False
        seen.add(id(before))
        waiting += calls_of(before)[0].input_tensors
    return bool(tensors)


def not_finite(operation: Any) -> str:
    """The reason for refusing a layer whose weights are NaN, Inf or too large to be quantized."""
    for variable in getattr(standing_for(operation), "variables", ()):
        if "float" in variable.dtype:
            values = np.asarray(keras.ops.convert_to_numpy(variable), np.float64)
            if count := int(np.sum(~(np.abs(values) < LARGEST))):
                return (
                    f"expected weights that are finite and below {LARGEST:g}, found {count} of "
                    f"{values.size} in {variable.name} that are not; load what was saved before "
                    "training diverged"
                )
    return ""


def standing_for(operation: Any) -> Any:
    """The operation of the user's that one of the flat model stands for."""
    return operation.operation if isinstance(operation, Refused) else operation


def has_weights(operation: Any) -> bool:
    """Whether an operation computes with weights, rather than constants."""
    operation = standing_for(operation)
    constant = isinstance(operation, layers.Normalization)
    return bool(getattr(operation, "weights", ())) and not constant


def _message(model: str, refusals: list[Refusal]) -> str:
    names = list(dict.fromkeys(r.name for r in refusals if r.may_stay))
    rest = []
    if names:
        them = "it" if len(names) == 1 else "them"
        named = names if len(names) <= _MOST_NAMES else "keras_metamix.explain(model).refused"
        first = "" if all(r.may_stay for r in refusals) else ", once the others are changed"
        text = f"float_layers={named} leaves {them} in float{first}"
        rest = [f"{text}: the model trains, without a file."]
    lines = _lines(refusals)
    if len(lines) == 1:
        return " ".join(lines + rest)
    head = f"Model {model!r} cannot be quantized and exported as it is."
    return "\n".join([head, *(f"- {line}" for line in lines), *rest])


def _lines(refusals: list[Refusal]) -> list[str]:
    """One for each reason; what has the same `cls` shares its line."""
    groups: dict[Any, dict[str, Refusal]] = {}
    for refusal in refusals:
        groups.setdefault((refusal.cls or refusal.what, refusal.text), {})[refusal.what] = refusal
    return [_line(list(found.values())) for found in groups.values()]


def _line(refusals: list[Refusal]) -> str:
    first = refusals[0]
    if len(refusals) == 1:
        return str(first)
    cls = first.cls
    if cls.endswith(" computes"):
        *most, last = [refusal.what.removeprefix(f"{cls} ") for refusal in refusals]
        return f"{cls} {', '.join(most)} and {last}: {first.text}."
    if first.what.startswith(cls):
        names = ", ".join(repr(refusal.name) for refusal in refusals)
        return f"{cls} ({names}): {first.text}."
    labels = (refusal.what.removeprefix("Layer ") for refusal in refusals)
    short = ", ".join(label.replace(f" ({cls})", "", 1) for label in labels)
    return f"Layers {short} ({cls}): {first.text}."

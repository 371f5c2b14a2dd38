"""What from_float says of the operations that it cannot take, in the user's words."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import keras
from keras import layers

from keras_metamix.graph.reasons import described

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
      cls: class of a layer, "" for a raw operation; layers of one class share a line.
    """

    name: str
    what: str
    reason: str
    may_stay: bool = True
    cls: str = ""

    def __str__(self) -> str:
        return f"{self.what}: {self.reason}."


class UnsupportedLayerError(ValueError):
    """Operations that from_float cannot take; `refused` holds what is said of each, by name."""

    def __init__(self, model: str, refusals: Iterable[Refusal]):
        found = list(refusals)
        self.refused = by_name(found)
        super().__init__(_message(model, found))


def by_name(refusals: Iterable[Refusal]) -> dict[str, str]:
    """What is said of each, by the name that `float_layers` takes."""
    said: dict[str, dict[str, None]] = {}
    for refusal in refusals:
        said.setdefault(refusal.name, {})[str(refusal)] = None
    return {name: " ".join(lines) for name, lines in said.items()}


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where an operation of the flat model comes from.

    Attributes:
      name: what `float_layers` takes for it.
      owner: the layer that it is the activation of, "" for none.
      composite: what `float_layers` takes for the layer whose call it is part of, "" for none.
      around: that layer, or the model inside the given one, as a message has it.
      final: whether that layer cannot be copied, so that `float_layers` does not help.
    """

    name: str
    owner: str = ""
    composite: str = ""
    around: str = ""
    final: bool = False

    def label(self, operation: Any) -> str:
        """A layer as a message has it."""
        return f"{(self.owner or self.name)!r} ({described(operation)})"

    def refusal(self, operation: Any, why: str, behind: str = "", may_stay: bool = True) -> Refusal:
        """A refusal of this operation in the user's words.

        Args:
          operation: the Keras operation.
          why: the reason, and what does instead.
          behind: name of the layer before it, for a raw operation.
          may_stay: whether `float_layers` helps.
        """
        if isinstance(operation, layers.Layer):
            inside = f" inside {self.around}" if self.around else ""
            what = f"Layer {self.label(operation)}{inside}"
            return Refusal(self.name, what, why, may_stay, described(operation))
        what = described(operation)
        if self.composite:
            may_stay = may_stay and not self.final
            return Refusal(self.composite, f"Layer {self.around} computes {what}", why, may_stay)
        before = f" behind layer {behind!r}" if behind else ""
        what = what if what[:5] == "keras" else what[0].upper() + what[1:]
        return Refusal(self.name, f"{what}{before} ({self.name!r})", why, may_stay)


class Refused(keras.Operation):
    """Stands for an operation that cannot be opened, so that the rest can be read."""

    def __init__(self, operation: Any, name: str):
        super().__init__(name=name)
        self.operation = operation

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        return self.operation.compute_output_spec(*args, **kwargs)


def _message(model: str, refusals: list[Refusal]) -> str:
    names = list(dict.fromkeys(r.name for r in refusals if r.may_stay))
    rest = []
    if names:
        them = "it" if len(names) == 1 else "them"
        listed = names if len(names) <= _MOST_NAMES else "keras_metamix.explain(model).refused"
        rest = [f"float_layers={listed} leaves {them} in float: the model trains, without a file."]
    lines = _lines(refusals)
    if len(lines) == 1:
        return " ".join(lines + rest)
    head = f"Model {model!r} cannot be quantized and exported as it is."
    return "\n".join([head, *(f"- {line}" for line in lines), *rest])


def _lines(refusals: list[Refusal]) -> list[str]:
    """One for each reason; the layers of one class share theirs."""
    groups: dict[Any, dict[str, Refusal]] = {}
    for refusal in refusals:
        key = (refusal.cls or refusal.what, refusal.reason)
        groups.setdefault(key, {})[refusal.what] = refusal
    lines = []
    for found in map(list, map(dict.values, groups.values())):
        first = found[0]
        if len(found) == 1:
            lines.append(str(first))
        else:
            labels = (r.what.removeprefix("Layer ") for r in found)
            listed = ", ".join(label.replace(f" ({first.cls})", "", 1) for label in labels)
            lines.append(f"Layers {listed} ({first.cls}): {first.reason}.")
    return lines

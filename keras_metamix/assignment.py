"""Which bit-widths may be chosen, and which were: the vocabulary of the whole project.

No TensorFlow here: a phone-side tool reads a `bits.json` with the standard library alone.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
from collections.abc import Iterable, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

from keras_metamix.checks import shown
from keras_metamix.files import written_whole

SUPPORTED_BITS = (2, 3, 4, 5, 6, 7, 8)
FORMAT = "keras_metamix.bit_assignment"


def _check_bits(value: object, where: str) -> int:
    """A bit-width as an int, which NumPy's integers are made."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value not in SUPPORTED_BITS:
        raise ValueError(f"{where}: expected a bit-width of 2 to 8, found {shown(value)}.")
    return int(value)


def _candidates(value: object, where: str) -> tuple[int, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        value = (value,)
    bits = tuple(_check_bits(b, where) for b in value)
    if not bits:
        raise ValueError(f"{where}: expected at least one bit-width, found none.")
    if len(set(bits)) != len(bits):
        raise ValueError(f"{where}: expected every candidate once, found {shown(list(bits))}.")
    return tuple(sorted(bits, reverse=True))


def _one_or_several(value: Any, field: str) -> int | tuple[int, ...]:
    where = f"SearchSpace.{field}"
    return _check_bits(value, where) if isinstance(value, Integral) else _candidates(value, where)


@dataclasses.dataclass(frozen=True)
class LayerBits:
    """The bit-widths of one MAC layer: its input activation and its weights."""

    activation: int
    weight: int


@dataclasses.dataclass(frozen=True)
class SearchSpace:
    """The candidates of every layer.

    Attributes:
      activation_bits: candidate bit-widths of a searched layer's input activation.
      weight_bits: a bit-width, candidates that are searched with the activations (pairs), or
        "same": a layer's weights take the bit-width of its activation.
      edge_bits: bit-width of both tensors of the first and of the last MAC layer (not searched).
      edge_weight_bits: bit-width of their weights, or candidates that are searched; None:
        `edge_bits`.
      stream_bits: bit-width of tensors that no MAC layer reads directly (residual sums, pooled
        features, logits); None leaves them in float, which cannot be exported.

    Raises:
      ValueError: a bit-width outside 2 to 8, or no candidate.
    """

    activation_bits: tuple[int, ...] = (8, 4, 3)
    weight_bits: int | tuple[int, ...] | Literal["same"] = 4
    edge_bits: int = 8
    stream_bits: int | None = 8
    edge_weight_bits: int | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(
            self,
            "activation_bits",
            _candidates(self.activation_bits, "SearchSpace.activation_bits"),
        )
        if isinstance(self.weight_bits, str):
            if self.weight_bits != "same":
                raise ValueError(
                    "SearchSpace.weight_bits: expected a bit-width, several, or 'same', "
                    f"found {shown(self.weight_bits)}."
                )
        else:
            set_(self, "weight_bits", _one_or_several(self.weight_bits, "weight_bits"))
        set_(self, "edge_bits", _check_bits(self.edge_bits, "SearchSpace.edge_bits"))
        if self.edge_weight_bits is not None:
            edges = _one_or_several(self.edge_weight_bits, "edge_weight_bits")
            set_(self, "edge_weight_bits", edges)
        if self.stream_bits is not None and (
            not isinstance(self.stream_bits, int) or self.stream_bits != 8
        ):
            raise ValueError(
                "SearchSpace.stream_bits: expected 8 (INT8 tensors on the device) or None, "
                f"found {shown(self.stream_bits)}."
            )

    def layer_candidates(self, edge: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Candidates of a layer's activation and of its weights."""
        activations = (self.edge_bits,) if edge else self.activation_bits
        weights: Any = self.edge_weight_bits if edge else self.weight_bits
        if weights is None or weights == "same":
            return activations, activations
        return activations, (weights,) if isinstance(weights, int) else weights

    def tied(self, edge: bool) -> bool:
        """Whether a layer's weights take the bit-width of its activation."""
        return self.weight_bits == "same" and not (edge and self.edge_weight_bits is not None)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        fields = dataclasses.asdict(self)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> SearchSpace:
        """The inverse of `to_dict`.

        Raises:
          ValueError: no such fields, or a bit-width outside 2 to 8; names the field.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(fields, Mapping) or not set(fields) <= set(names):
            raise ValueError(f"SearchSpace: expected some of {names}, found {shown(fields)}.")
        values: dict[str, Any] = dict(fields)
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**values)


def require_space(space: object) -> None:
    """Raises TypeError unless `space` is a SearchSpace."""
    if not isinstance(space, SearchSpace):
        raise TypeError(f"space: expected a SearchSpace, found {shown(space)}.")


@dataclasses.dataclass(frozen=True)
class BitAssignment:
    """One bit-width for the input activation and the weights of every MAC layer.

    Attributes:
      activation_bits: MAC layer name to bit-width, in network order, first and last included.
      weight_bits: the same for weights; the same names.
    """

    activation_bits: Mapping[str, int]
    weight_bits: Mapping[str, int]

    def __post_init__(self) -> None:
        for field in ("activation_bits", "weight_bits"):
            bits = getattr(self, field)
            if not isinstance(bits, Mapping):
                raise TypeError(
                    f"BitAssignment.{field}: expected {{layer name: bits}}, "
                    f"found {type(bits).__name__}."
                )
            for name in bits:
                if not isinstance(name, str):
                    raise TypeError(
                        f"BitAssignment.{field}: expected names of layers, found {shown(name)}."
                    )
            checked = {
                name: _check_bits(b, f"{field} of layer {shown(name)}") for name, b in bits.items()
            }
            object.__setattr__(self, field, checked)
        extra = set(self.activation_bits) ^ set(self.weight_bits)
        if extra:
            raise ValueError(
                "BitAssignment: activation_bits and weight_bits name different layers: "
                f"{shown(sorted(extra))} is in one of them only."
            )

    def __getitem__(self, name: str) -> LayerBits:
        return LayerBits(self.activation_bits[name], self.weight_bits[name])

    def check_layers(self, names: Iterable[str], model_name: str = "this one") -> None:
        """Raises ValueError unless the assignment names exactly the MAC layers `names`."""
        names = list(names)
        missing = [n for n in names if n not in self.activation_bits]
        unknown = [n for n in self.activation_bits if n not in set(names)]
        if missing or unknown:
            found = []
            if missing:
                found.append(f"{len(missing)} MAC layers have no bits {shown(missing[:3])}")
            if unknown:
                near = difflib.get_close_matches(unknown[0], missing, 1)
                meant = f" (did you mean {shown(near[0])}?)" if near else ""
                found.append(f"{len(unknown)} names are unknown {shown(unknown[:3])}{meant}")
            raise ValueError(
                f"The bit assignment is of another model than {model_name}: {', '.join(found)}."
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes JSON."""
        layers = {
            name: {"activation_bits": self.activation_bits[name], "weight_bits": w}
            for name, w in self.weight_bits.items()
        }
        with written_whole(path) as temporary:
            temporary.write_text(json.dumps({"format": FORMAT, "layers": layers}, indent=2) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> BitAssignment:
        """Reads what `save` wrote.

        Raises:
          ValueError: not such a file; names the file, and what was found.
        """
        try:
            content = json.loads(Path(path).read_text(), object_pairs_hook=_once_each)
        except (ValueError, RecursionError) as error:  # of text that is not UTF-8, too
            raise ValueError(f"{path}: expected JSON, found none: {error}.") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(
                f"{path}: expected a file of BitAssignment.save ('format': '{FORMAT}'), found "
                f"{shown(content)}."
            )
        layers = content.get("layers")
        if not isinstance(layers, dict) or not all(isinstance(v, dict) for v in layers.values()):
            raise ValueError(
                f"{path}: expected 'layers' to map names to bits, found {shown(layers)}."
            )
        for name, bits in layers.items():
            if set(bits) != {"activation_bits", "weight_bits"}:
                raise ValueError(
                    f"{path}: layer {shown(name)}: expected activation_bits and weight_bits, "
                    f"found {shown(sorted(bits))}."
                )
        try:
            return cls(
                {n: b["activation_bits"] for n, b in layers.items()},
                {n: b["weight_bits"] for n, b in layers.items()},
            )
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def require_assignment(bits: object) -> None:
    """Raises TypeError unless `bits` is a BitAssignment."""
    if not isinstance(bits, BitAssignment):
        raise TypeError(f"bits: expected a BitAssignment, found {shown(bits)}.")


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys differ: of two equal ones `json` would drop the first."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {shown(twice)} twice in one object")
    return fields

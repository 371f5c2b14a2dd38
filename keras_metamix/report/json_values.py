"""Dataclasses from JSON, and what exactly is wrong where a value is not what the class says."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

_LARGEST = 1e100  # of any number: beyond, nothing is meant and figures overflow
_NAMES = {
    str: "string", int: "integer", float: "number", bool: "boolean", dict: "object",
    list: "array", tuple: "array", type(None): "null",
}  # fmt: skip
T = TypeVar("T")


def signed() -> Any:
    """A field that may be below 0; other numbers may not."""
    return dataclasses.field(metadata={"signed": True})


def from_json(kind: type[T], value: Any, where: str) -> T:
    """The dataclass that a JSON value describes.

    Args:
      kind: a dataclass of numbers, texts, lists, dicts, pairs, optional values and dataclasses.
      value: what `json.loads` gave; keys that the class does not know are left out.
      where: what to call it in messages, usually the file's name.

    Raises:
      ValueError: names the place, what was expected and what was found there.
    """
    return _record(kind, value, where, ": ")


def _record(kind: Any, value: Any, where: str, joint: str) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: expected object, found {found(value)}")
    hints, values = typing.get_type_hints(kind), {}
    for field in dataclasses.fields(kind):
        name, hint = field.name, hints[field.name]
        if name in value:
            negative = bool(field.metadata.get("signed"))
            values[name] = _value(hint, value[name], f"{where}{joint}{name}", negative)
        elif field.default is field.default_factory is dataclasses.MISSING:
            keys = ", ".join(map(str, value)) or "none"
            raise ValueError(
                f"{where}: missing key '{name}', expected {_expected(hint)}; found keys: {keys}"
            )
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _value(kind: Any, value: Any, where: str, negative: bool = False) -> Any:
    if kind is Any:
        return value
    if isinstance(kind, types.UnionType):
        if value is None:
            return None
        (kind,) = (k for k in typing.get_args(kind) if k is not type(None))
    if dataclasses.is_dataclass(kind):
        return _record(kind, value, where, ".")
    origin: Any = typing.get_origin(kind) or kind
    inside = typing.get_args(kind)
    if origin is tuple and _has_length(value, len(inside)):
        return tuple(_value(k, v, where) for k, v in zip(inside, value, strict=True))
    if origin is tuple or not _is(origin, value):
        raise ValueError(f"{where}: expected {_expected(kind)}, found {found(value)}")
    if origin is list:
        return [_value(inside[0], v, f"{where}[{n}]") for n, v in enumerate(value)]
    if origin is dict and inside:
        return {name: _value(inside[1], v, f"{where}[{name!r}]") for name, v in value.items()}
    if origin in (int, float) and not (-_LARGEST if negative else 0) <= value <= _LARGEST:
        least = "" if negative else ", at least 0"
        raise ValueError(f"{where}: expected a finite number{least}, found {found(value)}")
    return value


def _has_length(value: Any, length: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == length


def _is(kind: Any, value: Any) -> bool:
    """`isinstance`, except that an integer is a number and a boolean is none."""
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _expected(kind: Any) -> str:
    """A type in JSON's words."""
    if isinstance(kind, types.UnionType):
        return " or ".join(_expected(k) for k in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return "two numbers"
    if dataclasses.is_dataclass(kind):
        return "object"
    return _NAMES[typing.get_origin(kind) or kind]


def found(value: Any) -> str:
    """The type of a value in JSON's words and the value itself, cut short."""
    return f"{_NAMES.get(type(value), type(value).__name__)} {repr(value)[:60]}"

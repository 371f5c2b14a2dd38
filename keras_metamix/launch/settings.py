"""Typed settings: a dataclass says of each field its type, default, range and meaning.

From such a class come the ConfigDict that a config file changes, whose fields are flags; the checks
of what it then holds; and the reference page. The fields are made by the functions below; without
a default a field has to be given.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from keras_metamix.checks import one_of, require_number, require_whole, shown

Check = Callable[[str, Any], Any]
Settings = TypeVar("Settings")
REQUIRED: Any = dataclasses.MISSING


def setting(help: str, check: Check | None, default: Any = REQUIRED, expected: str = "") -> Any:
    """A field.

    Args:
      help: what it is, for the reference page.
      check: raises ValueError for a value out of the range; called with the field's full name.
      default: its value where none is given.
      expected: the range in words, for the reference page.
    """
    metadata = {"help": help, "check": check, "expected": expected}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def whole(help: str, least: int = 0, default: Any = REQUIRED, most: float = float("inf")) -> Any:
    """A whole number from `least` to `most`."""

    def check(name: str, value: Any) -> None:
        require_whole(name, value, least)
        require_number(name, value, least, most)

    return setting(help, check, default, f"a whole number, at least {least}")


def number(
    help: str,
    low: float = 0.0,
    high: float = float("inf"),
    above: bool = False,
    default: Any = REQUIRED,
    optional: bool = False,
) -> Any:
    """A number from `low` (with `above`: above it) to `high`; `optional`: or None."""

    def check(name: str, value: Any) -> None:
        if value is not None or not optional:
            require_number(name, value, low, high, above)

    expected = f"{'above' if above else 'at least'} {low:g}"
    expected += f", at most {high:g}" if high < float("inf") else ""
    return setting(help, check, default, expected + (", or None" if optional else ""))


def text(help: str, default: Any = REQUIRED) -> Any:
    """A text."""

    def check(name: str, value: Any) -> None:
        if not isinstance(value, str):
            raise ValueError(f"{name}: expected text, found {shown(value)}.")

    return setting(help, check, default, "text")


def switch(help: str, default: Any = REQUIRED) -> Any:
    """True or False."""

    def check(name: str, value: Any) -> None:
        if not isinstance(value, bool):
            raise ValueError(f"{name}: expected True or False, found {shown(value)}.")

    return setting(help, check, default, "True or False")


def choice(help: str, choices: Sequence[str], default: Any = REQUIRED) -> Any:
    """One of some texts."""
    expected = " or ".join(repr(c) for c in choices)
    return setting(help, lambda name, value: one_of(name, value, choices), default, expected)


def fields_of(schema: type) -> Iterator[tuple[dataclasses.Field, Any]]:
    """Each field with its type."""
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        yield field, hints[field.name]


def default_of(field: dataclasses.Field) -> Any:
    """The field's default, or REQUIRED."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def config_dict(schema: type) -> ConfigDict:
    """Every field at its default, None where it has none: what a config file begins with."""
    config = ConfigDict()
    for field, kind in fields_of(schema):
        if dataclasses.is_dataclass(kind):
            config[field.name] = config_dict(typing.cast(type, kind))
            continue
        default = default_of(field)
        value = None if default is REQUIRED else default
        if typing.get_origin(kind) is dict:
            config[field.name] = ConfigDict(value or {})
        elif value is None or isinstance(kind, types.UnionType) or kind is Any:
            config[field.name] = placeholder(_one_type(kind))
            config[field.name] = value
        else:
            config[field.name] = value
    return config


def _one_type(kind: Any) -> type:
    """The type that a flag's text becomes: `object` where there are several."""
    kinds = [k for k in typing.get_args(kind) if k is not type(None)]
    if isinstance(kind, types.UnionType):
        kind = kinds[0] if len(kinds) == 1 else object
    return object if kind is Any else typing.get_origin(kind) or kind


def read(schema: type[Settings], given: Any, where: str) -> Settings:
    """The settings that a mapping holds, checked.

    Args:
      schema: a dataclass of the fields above.
      given: values by name; sections are mappings.
      where: what to call it in messages.

    Raises:
      ValueError: a field is missing, is none of the schema's, or out of its range; names it.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"{where}: expected a section of fields, found {shown(given)}.")
    fields = {field.name: (field, kind) for field, kind in fields_of(schema)}
    for name, (field, _) in fields.items():
        if name not in given and default_of(field) is REQUIRED:
            raise ValueError(f"{where}.{name} is missing.")
    for name in given:
        if name not in fields:
            raise ValueError(f"{where}.{name}: no such field; expected some of {sorted(fields)}.")
    values = {}
    for name, value in given.items():
        field, kind = fields[name]
        if dataclasses.is_dataclass(kind):
            value = read(typing.cast(type, kind), value, f"{where}.{name}")
        elif field.metadata["check"] is not None:
            field.metadata["check"](f"{where}.{name}", value)
        values[name] = value
    return schema(**values)


def reference(schema: type, where: str) -> list[tuple[str, str, str, str]]:
    """Rows (name, default, range, meaning) of all fields, section by section."""
    rows = []
    for field, kind in fields_of(schema):
        name = f"{where}.{field.name}"
        if dataclasses.is_dataclass(kind):
            rows += reference(typing.cast(type, kind), name)
            continue
        default = default_of(field)
        written = "" if default is REQUIRED else repr(default)
        rows.append((name, written, field.metadata["expected"], field.metadata["help"]))
    return rows

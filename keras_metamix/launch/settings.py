"""Typed settings: a dataclass says of each field its type, default, range and meaning.

From such a class come the ConfigDict that a config file changes, whose fields are flags; the checks
of what it then holds; and the reference page.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from keras_metamix.checks import one_of, require_number, require_whole, shown

Settings = TypeVar("Settings")
REQUIRED: Any = dataclasses.MISSING


def setting(
    help: str,
    default: Any = REQUIRED,
    least: float = 0,
    most: float = math.inf,
    above: bool = False,
    check: Callable[[str, Any], Any] | None = None,
) -> Any:
    """A field of a settings class, whose type is checked: a number, text, bool, Literal, or None.

    Args:
      help: what it is, for the reference page.
      default: without one the field has to be given.
      least, most, above: range of a number; `above`: `least` itself is outside it.
      check: in place of the check of the type, called with the field's full name and its value.
    """
    range_ = {"least": least, "most": most, "above": above}
    return dataclasses.field(
        default=default, metadata={"help": help, "range": range_, "check": check}
    )


def _bare(kind: Any) -> Any:
    """A type without None."""
    if isinstance(kind, types.UnionType):
        kinds = [k for k in typing.get_args(kind) if k is not type(None)]
        return kinds[0] if len(kinds) == 1 else object
    return kind


def _check(name: str, field: dataclasses.Field, kind: Any, value: Any) -> None:
    bounds, bare = field.metadata["range"], _bare(kind)
    if field.metadata["check"] is not None:
        field.metadata["check"](name, value)
    elif value is None and bare is not kind:
        return
    elif typing.get_origin(bare) is typing.Literal:
        one_of(name, value, typing.get_args(bare))
    elif bare is str and not isinstance(value, str):
        raise ValueError(f"{name}: expected text, found {shown(value)}.")
    elif bare is bool and not isinstance(value, bool):
        raise ValueError(f"{name}: expected True or False, found {shown(value)}.")
    elif bare is int:
        require_whole(name, value, bounds["least"])
    if bare in (int, float):
        require_number(name, value, bounds["least"], bounds["most"], bounds["above"])


def _range(field: dataclasses.Field, kind: Any) -> str:
    """What `_check` lets pass, in words."""
    bounds, bare = field.metadata["range"], _bare(kind)
    names = {str: "text", bool: "True or False", int: "a whole number", float: "a number"}
    text = names.get(bare, "")
    if typing.get_origin(bare) is typing.Literal:
        text = " or ".join(repr(value) for value in typing.get_args(bare))
    if bare in (int, float):
        text += f" {'above' if bounds['above'] else 'from'} {bounds['least']:g}"
        most = f"{bounds['most']:,}" if bare is int else f"{bounds['most']:g}"
        text += f" to {most}" if bounds["most"] < math.inf else " on"
        text = text.removesuffix(" on") if bounds["above"] else text
    return text + (" or None" if text and bare is not kind else "")


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
        elif value is None or kind is Any or _bare(kind) is not kind:
            config[field.name] = placeholder(_flag_type(kind))
            config[field.name] = value
        else:
            config[field.name] = value
    return config


def _flag_type(kind: Any) -> type:
    """The type that a flag's text becomes: `object` where there are several."""
    bare = object if kind is Any else _bare(kind)
    return str if typing.get_origin(bare) is typing.Literal else typing.get_origin(bare) or bare


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
        else:
            _check(f"{where}.{name}", field, kind, value)
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
        rows.append((name, written, _range(field, kind), field.metadata["help"]))
    return rows

"""Dataclasses as schemas: what a field may hold, and one way to read them from mappings.

Configs (`launch.config`) and results (`report.results`) are such classes. A field that says nothing
of its range holds numbers from 0 on. What a `__post_init__` raises begins with a field's name.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from keras_metamix.checks import one_of, require_number, require_whole, shown

Schema = TypeVar("Schema")
REQUIRED: Any = dataclasses.MISSING
_LARGEST = 1e100  # of any number: beyond, nothing is meant and figures overflow
_NAMES: dict[Any, str] = {
    str: "text", bool: "True or False", int: "a whole number", float: "a number", list: "a list",
    dict: "a section of fields",
}  # fmt: skip


def setting(
    help: str = "",
    default: Any = REQUIRED,
    least: float = 0,
    most: float = math.inf,
    above: bool = False,
    check: Callable[[str, Any], Any] | None = None,
) -> Any:
    """A field of a schema.

    Args:
      help: what it is, for a reference page.
      default: without one the field has to be given.
      least, most, above: range of a number; `above`: `least` itself is outside it.
      check: in place of the check of the type, called with the field's full name and its value.
    """
    metadata = {"help": help, "least": least, "most": most, "above": above, "check": check}
    return dataclasses.field(default=default, metadata=metadata)


def fields_of(schema: type) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    """Each field with its type."""
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        yield field, hints[field.name]


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The field's default, or REQUIRED."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def without_none(kind: Any) -> Any:
    """A type without None."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        kinds = [k for k in typing.get_args(kind) if k is not type(None)]
        return kinds[0] if len(kinds) == 1 else object
    return kind


def read(
    schema: type[Schema], given: Any, where: str, joint: str = ".", others: bool = False
) -> Schema:
    """The dataclass that a mapping describes, checked.

    Args:
      schema: a dataclass of numbers, texts, Literals, lists, dicts, tuples, optional values and
        dataclasses, with `setting` or without.
      given: values by name.
      where: what to call it in messages.
      joint: between that and a field's name.
      others: whether names that are none of the schema's are left out; else they are errors.

    Raises:
      ValueError: a field is missing, is none of the schema's, or has another type or range; names
        it, what was expected and what was found.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"{where}: expected {_NAMES[dict]}, found {shown(given)}.")
    fields = {field.name: (field, kind) for field, kind in fields_of(schema)}
    for name, (field, _) in fields.items():
        if name not in given and default_of(field) is REQUIRED:
            raise ValueError(f"{where}{joint}{name} is missing.")
    values = {}
    for name, value in given.items():
        if name in fields:
            field, kind = fields[name]
            values[name] = _read(kind, value, f"{where}{joint}{name}", field.metadata, others)
        elif not others:
            known = sorted(fields)
            raise ValueError(f"{where}{joint}{name}: no such field; expected some of {known}.")
    try:
        return schema(**values)
    except ValueError as error:
        raise ValueError(f"{where}{joint}{error}") from error


def _read(kind: Any, value: Any, where: str, bounds: Mapping[str, Any], others: bool) -> Any:
    """A field's value, checked; of lists and dicts each one in it."""
    bare = without_none(kind)
    if check := bounds.get("check"):
        check(where, value)
        return value
    if value is None and bare is not kind:
        return None
    if dataclasses.is_dataclass(bare):
        return read(typing.cast(Any, bare), value, where, others=others)
    inside = () if _of_any_length(bare) else typing.get_args(bare)
    origin: Any = typing.get_origin(bare) or bare
    if origin is typing.Literal:
        return one_of(where, value, inside)
    if origin in (int, float):
        if isinstance(value, int) and abs(value) > _LARGEST:
            raise ValueError(f"{where}: expected a finite number, found {shown(value)}.")
        if origin is int:
            require_whole(where, value, bounds.get("least", 0))
        ends = bounds.get("least", 0), bounds.get("most", math.inf), bounds.get("above", False)
        require_number(where, value, *ends)
    elif origin is tuple and inside and inside[-1] is not ...:
        if not isinstance(value, list | tuple) or len(value) != len(inside):
            raise ValueError(f"{where}: expected {len(inside)} values, found {shown(value)}.")
        return tuple(_read(k, v, where, bounds, others) for k, v in zip(inside, value, strict=True))
    elif origin in _NAMES and not isinstance(value, origin):
        raise ValueError(f"{where}: expected {_NAMES[origin]}, found {shown(value)}.")
    elif inside and isinstance(value, list):
        return [_read(inside[0], v, f"{where}[{n}]", bounds, others) for n, v in enumerate(value)]
    elif inside and isinstance(value, Mapping):
        return {k: _read(inside[1], v, f"{where}[{k!r}]", bounds, others) for k, v in value.items()}
    return value


def _of_any_length(kind: Any) -> bool:
    """Whether a type is `tuple[Any, ...]`, whose values are checked elsewhere."""
    return typing.get_origin(kind) is tuple and typing.get_args(kind)[1:] == (...,)


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


def _range(field: dataclasses.Field[Any], kind: Any) -> str:
    """What `read` lets pass, in words."""
    bare, most = without_none(kind), field.metadata["most"]
    text = _NAMES.get(tuple if _of_any_length(bare) else bare, "")
    if typing.get_origin(bare) is typing.Literal:
        text = " or ".join(repr(value) for value in typing.get_args(bare))
    if bare in (int, float):
        above = field.metadata["above"]
        text += f" {'above' if above else 'from'} {field.metadata['least']:g}"
        if most < math.inf:
            text += f" to {most:,}" if bare is int else f" to {most:g}"
        elif not above:
            text += " on"
    return text + (" or None" if text and bare is not kind else "")

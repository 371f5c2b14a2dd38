"""Command lines as dataclasses: a field is a flag, or with `positional` an argument without one."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from absl.flags import argparse_flags

from keras_metamix.schema import REQUIRED, default_of, fields_of, without_none

Options = TypeVar("Options")


def option(
    help: str,
    default: Any = REQUIRED,
    metavar: str | None = None,
    positional: bool = False,
) -> Any:
    """A field of an options class.

    Args:
      help: what it is; a default that says something is added.
      default: without one it has to be given; None: as if it were absent.
      metavar: the name of its value in the usage.
      positional: whether it has no flag; a list takes any number.

    A list's flag is given once for each element; a tuple's is divided at commas.
    """
    metadata = {"help": help, "metavar": metavar, "positional": positional}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def parse(schema: type[Options], argv: Sequence[str]) -> Options:
    """What a command line says, the program's name first; the class's docstring describes it.

    Raises:
      SystemExit: the arguments are wrong; the usage is on stderr.
    """
    parser = argparse_flags.ArgumentParser(prog=Path(argv[0]).name, description=schema.__doc__)
    for field, kind in fields_of(schema):
        name = field.name if field.metadata["positional"] else f"--{field.name}"
        parser.add_argument(name, **_settings(field, kind))
    given = vars(parser.parse_args(argv[1:]))
    names = {field.name for field in dataclasses.fields(typing.cast(Any, schema))}
    values = {name: value for name, value in given.items() if name in names and value is not None}
    try:
        return schema(**values)
    except ValueError as error:
        return parser.error(str(error))


def _settings(field: dataclasses.Field[Any], kind: Any) -> dict[str, Any]:
    """What argparse wants to know of a field."""
    metadata, default = field.metadata, default_of(field)
    settings: dict[str, Any] = {"help": metadata["help"], "default": None}
    if without_none(kind) is bool:
        return settings | {"action": "store_true"}
    if default not in (REQUIRED, None, [], ()):
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        settings["help"] += f"; default: {shown}"
    if metadata["metavar"]:
        settings["metavar"] = metadata["metavar"]
    if not metadata["positional"]:
        settings["required"] = default is REQUIRED
    kind = without_none(kind)
    several = typing.get_origin(kind)
    if several is typing.Literal:  # checked where it is used, in the same words
        kind, several = str, None
    settings["type"] = element = typing.get_args(kind)[0] if several else kind
    if several and metadata["positional"]:
        settings["nargs"] = "*"
    elif several is list:
        settings["action"] = "append"
    elif several:
        settings["type"] = _divided(element)
    return settings


def _divided(element: Any) -> Any:
    def convert(text: str) -> Any:
        return tuple(element(part) for part in text.split(","))

    convert.__name__ = "list"  # in argparse's message
    return convert

"""The ConfigDict of a schema: what a config file changes, whose fields are flags."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from keras_metamix.schema import REQUIRED, default_of, fields_of, without_none


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
            value = ConfigDict(value or {})
        elif value is None or kind is Any or without_none(kind) is not kind:
            config[field.name] = placeholder(_flag_type(kind))
        config[field.name] = value
    return config


def _flag_type(kind: Any) -> type:
    """The type that a flag's text becomes: `object` where there are several."""
    bare = object if kind is Any else without_none(kind)
    return str if typing.get_origin(bare) is typing.Literal else typing.get_origin(bare) or bare

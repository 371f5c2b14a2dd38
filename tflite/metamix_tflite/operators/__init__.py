"""The operators of a file, a family a file: each that lies in this folder is registered.

It says how the family's integer layers are written, what `verify` holds its operators to, and which
delegates take them. Nothing here imports Keras: files are read and verified without it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

from metamix_tflite.operators.base import Family, Litert


def _families() -> Iterator[Family]:
    for found in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{found.name}")
        for cls in vars(module).values():
            own = isinstance(cls, type) and cls.__module__ == module.__name__
            if own and issubclass(cls, Family) and cls is not Family:
                yield cls()


FAMILIES: tuple[Family, ...] = tuple(_families())
# By the name of LiteRT's operator.
FAMILY: dict[str, Family] = {op.name: family for family in FAMILIES for op in family.litert}
LITERT: dict[str, Litert] = {op.name: op for family in FAMILIES for op in family.litert}
_WRITERS: dict[str, Family] = {name: family for family in FAMILIES for name in family.layers}


def writer_of(layer: Any) -> Family | None:
    """The family that writes a layer of a folded network, by the nearest class that one names."""
    names = (cls.__name__ for cls in type(layer).__mro__)
    return next((_WRITERS[name] for name in names if name in _WRITERS), None)

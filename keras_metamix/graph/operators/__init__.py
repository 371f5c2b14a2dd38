"""The families of operators, a file each: one that lies in this folder is registered.

How to add one is in CONTRIBUTING.md; `metamix_tflite/operators/` has the file of the same name.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

from keras_metamix.graph.operators.base import DataMovementOperator, Operator


def _families(base: type) -> Iterator[Any]:
    for found in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{found.name}")
        for cls in vars(module).values():
            own = isinstance(cls, type) and cls.__module__ == module.__name__
            if own and issubclass(cls, base) and cls is not base:
                yield cls()


OPERATORS: tuple[Operator, ...] = tuple(_families(Operator))
DATA_MOVEMENT: tuple[DataMovementOperator, ...] = tuple(_families(DataMovementOperator))

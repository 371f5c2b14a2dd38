"""Checks of arguments that say in one line what was expected and what was found."""

from __future__ import annotations

import contextlib
import math
import numbers
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_LONGEST = 60


def one_line(text: str, longest: int) -> str:
    """A text without line breaks, cut to `longest` characters."""
    text = " ".join(text.split())
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def shown(value: object) -> str:
    """A value in a message: its repr on one line, cut short."""
    return one_line(repr(value), _LONGEST)


def found_model(found: Any) -> str:
    """What was given in the place of a model, as the end of a message; with a path the remedy."""
    if isinstance(found, (str, os.PathLike)):
        path = shown(os.fspath(found))
        return f"the path {path}: load the file first, with keras.models.load_model"
    if hasattr(found, "layers") and not isinstance(found, type):
        return f"{type(found).__name__} {shown(getattr(found, 'name', ''))}"
    return shown(found)


def require_whole(name: str, value: Any, least: int = 0) -> None:
    """Raises ValueError unless `value` is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or int(value) < least:
        raise ValueError(
            f"{name}: expected a whole number, at least {least}, found {shown(value)}."
        )


def require_number(
    name: str, value: Any, low: float = -math.inf, high: float = math.inf, above: bool = False
) -> None:
    """Raises ValueError unless `value` is a finite number from `low` to `high`.

    Args:
      name, value: of the argument.
      low, high: the range.
      above: whether `low` itself is outside it.
    """
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        found = float(value)
        if math.isfinite(found) and low <= found <= high and (found > low or not above):
            return
    if (low, high) == (0, 1):
        expected = f"a number in {'(' if above else '['}0, 1]"
        raise ValueError(f"{name}: expected {expected}, found {shown(value)}.")
    ends = [f"{'above' if above else 'at least'} {low:g}"] if low > -math.inf else []
    ends += [f"at most {high:g}"] if high < math.inf else []
    expected = ", ".join(["a finite number", " and ".join(ends)] if ends else ["a finite number"])
    raise ValueError(f"{name}: expected {expected}, found {shown(value)}.")


def one_of(name: str, value: Any, choices: Sequence[Any]) -> Any:
    """`value`, or ValueError where it is none of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected one of {list(choices)}, found {shown(value)}.")
    return value


def require_fields(name: str, config: Any, required: Sequence[str]) -> dict[str, Any]:
    """A copy of a saved config, or ValueError where a required field is missing."""
    if not isinstance(config, Mapping) or any(config.get(field) is None for field in required):
        raise ValueError(
            f"{name}: expected a config with {' and '.join(required)}, found {shown(config)}."
        )
    return dict(config)


@contextlib.contextmanager
def naming(what: str) -> Iterator[None]:
    """Puts what is wrong, a flag, field or file, in front of what an error says of it."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what}: {error}") from error

"""Names of layers, each given once."""

from __future__ import annotations

from collections.abc import Iterable


class Names:
    """The names that the operations of one model have.

    Args:
      taken: names in use; nothing new gets one of them.
    """

    def __init__(self, taken: Iterable[str] = ()):
        self._taken = set(taken)

    def __contains__(self, name: str) -> bool:
        return name in self._taken

    def new(self, name: str) -> str:
        """`name`, with the first number behind it that makes it one of its own."""
        found, number = name, 1
        while found in self._taken:
            found, number = f"{name}_{number}", number + 1
        self._taken.add(found)
        return found

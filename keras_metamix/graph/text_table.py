"""Tables as plain text."""

from __future__ import annotations

from collections.abc import Sequence

_NUMBERS = set("0123456789,.%-")


def text_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], totals: Sequence[str] = ()
) -> str:
    """Columns of equal width, one line for each row, totals below a rule.

    Columns that hold numbers line up on the right.
    """
    lines = [headers, *rows, *([totals] if totals else [])]
    columns = list(zip(*lines, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [all(set(cell) <= _NUMBERS for cell in column[1:]) for column in columns]
    rule = "  ".join("-" * width for width in widths)
    text = [_line(line, widths, right) for line in lines]
    text.insert(1, rule)
    if totals:
        text.insert(-1, rule)
    return "".join(f"{line.rstrip()}\n" for line in text)


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    aligned = zip(cells, widths, right, strict=True)
    return "  ".join(c.rjust(w) if numbers else c.ljust(w) for c, w, numbers in aligned)

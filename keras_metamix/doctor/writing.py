"""How numbers are written in tables and pages, and the page itself."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Section(NamedTuple):
    """A part of a page.

    Attributes:
      title: of it.
      paragraphs: texts above the table.
      headers, rows: of the table; no rows, no table.
      texts: the columns that hold texts, not numbers.
    """

    title: str
    paragraphs: Sequence[str]
    headers: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    texts: Sequence[int] = ()


def write_page(
    path: str | os.PathLike[str],
    title: str,
    subtitle: str,
    facts: Sequence[tuple[str, str]],
    sections: Sequence[Section],
) -> Path:
    """Writes a page in the style of the reports.

    Args:
      path: of the file.
      title, subtitle: at its top.
      facts: values, and what they are.
      sections: of the page.

    Raises:
      OSError: the file cannot be written.
    """
    from keras_metamix.report.document import write_document  # with jinja2, for pages alone

    return write_document(path, title, subtitle, facts, [section._asdict() for section in sections])


def decibel_cell(value: float) -> str:
    """`31.4`; "exact" where nothing is lost."""
    if math.isnan(value):
        return "–"
    return "exact" if math.isinf(value) else f"{value:.1f}"


def ratio_cell(value: float) -> str:
    """`1.25x`, of a step over the best one."""
    return "–" if math.isnan(value) else f"{value:.3g}x"


def share_cell(value: float) -> str:
    """`12.5 %`."""
    return f"{100 * value:.1f} %"

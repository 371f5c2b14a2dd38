"""Pages of facts, paragraphs and tables, in the style of a run's page."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_metamix.files import written_whole
from keras_metamix.report.templates import template


def write_document(
    path: str | os.PathLike[str],
    title: str,
    subtitle: str,
    facts: Sequence[tuple[str, str]],
    sections: Sequence[Mapping[str, Any]],
) -> Path:
    """Writes a page; a failure leaves an earlier one as it was.

    Args:
      path: the file, in a folder that exists.
      title, subtitle: texts at its top.
      facts: values, and what they are.
      sections: each with `title`, `paragraphs`, `headers`, `rows` and `texts`, the columns that
        hold no numbers.

    Raises:
      OSError: the file cannot be written.
    """
    page = template("document.html.jinja").render(
        title=title, subtitle=subtitle, facts=facts, sections=sections
    )
    with written_whole(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return Path(path)

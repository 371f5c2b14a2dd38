"""What mkdocs.yml cannot say: pages outside docs/, notebooks as pages, formulas without a script.

Pages link to each other as they lie in the repository, so that they read on the host too. What
they link to outside docs/ (CONTRIBUTING.md, a licence, a source file) comes along under
`repository/`, and what that links to; the links are turned on the way.
"""

from __future__ import annotations

import html
import json
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

import latex2mathml.converter
from mkdocs.structure.files import File, Files

TOP = Path(__file__).parents[1]
OUTSIDE = "repository"  # of the site: what does not lie in docs/
LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?(\))")
FENCE = re.compile(r"^( *```.*?^ *```)", re.M | re.S)
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.S)


def on_files(files: Files, config: Any) -> Files:
    """Adds what pages link to outside docs/, and what these link to."""
    pages = [file for file in files if file.src_uri.endswith(".md")]
    seen: set[str] = set()
    while pages:
        page = pages.pop()
        for target in _targets(page):
            if target in seen or target.startswith("docs/") or not (TOP / target).is_file():
                continue
            seen.add(target)
            added = _added(target, config)
            files.append(added)
            if added.src_uri.endswith(".md"):
                pages.append(added)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turns links to where the site has their targets."""
    here = _place(page.file)

    def turned(match: re.Match) -> str:
        target = _resolved(here, match[2])
        if not (TOP / target).exists():
            return match[0]  # mkdocs warns
        found = os.path.relpath(_site_path(target), PurePosixPath(page.file.src_uri).parent)
        return f"{match[1]}{found}{match[3] or ''}{match[4]}"

    parts = FENCE.split(markdown)
    return "".join(p if FENCE.match(p) else LINK.sub(turned, p) for p in parts)


def on_page_content(html_text: str, **_: Any) -> str:
    """Writes formulas as MathML."""

    def mathml(match: re.Match) -> str:
        display = "block" if match[1] == "div" else "inline"
        return latex2mathml.converter.convert(html.unescape(match[2]).strip(), display=display)

    return FORMULA.sub(mathml, html_text)


def notebook_page(notebook: dict[str, Any]) -> str:
    """A notebook as Markdown: its text, its code, and what the code gave."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        parts += [_output(output) for output in cell.get("outputs", [])]
    return "\n\n".join(parts) + "\n"


def _output(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        png = "".join("".join(data["image/png"]).split())
        return f'<img alt="what the code above draws" src="data:image/png;base64,{png}">'
    text = "".join(output.get("text") or data.get("text/plain", ""))
    return f"```text\n{text.rstrip()}\n```"


def _added(target: str, config: Any) -> File:
    """A file of the repository in the site."""
    path = TOP / target
    if path.suffix == ".ipynb":
        text = notebook_page(json.loads(path.read_text(encoding="utf-8")))
        return File.generated(config, _site_path(target), content=text)
    return File.generated(config, _site_path(target), abs_src_path=str(path))


def _site_path(target: str) -> str:
    """Where the site has a file of the repository."""
    inside = target.removeprefix("docs/") if target.startswith("docs/") else f"{OUTSIDE}/{target}"
    return re.sub(r"\.ipynb$", ".md", inside)


def _place(file: File) -> str:
    """Where the repository has a page of the site."""
    uri = file.src_uri
    return uri.removeprefix(f"{OUTSIDE}/") if uri.startswith(f"{OUTSIDE}/") else f"docs/{uri}"


def _resolved(page: str, link: str) -> str:
    """A page's link, from the top of the repository."""
    return os.path.normpath(PurePosixPath(page).parent / link)


def _targets(page: File) -> list[str]:
    text = "".join(p for p in FENCE.split(page.content_string) if not FENCE.match(p))
    return [_resolved(_place(page), match[2]) for match in LINK.finditer(text)]

"""One self-contained HTML page: figures inlined, no script, nothing loaded from elsewhere."""

import base64
import io
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

from keras_metamix.files import written_whole
from keras_metamix.report import numbers, style, table
from keras_metamix.report.results import Results
from keras_metamix.report.sections import sections
from keras_metamix.report.templates import template

_LARGEST_SVG = 300_000  # bytes; a figure of more lines is smaller as pixels
_MOST_PANELS = 40  # a figure of more is larger than that


def write_report(results: Results, path: str | os.PathLike[str]) -> Path:
    """Writes the HTML page of a run; a failure leaves an earlier page as it was.

    Args:
        results: of a run.
        path: the file to write, in a folder that exists.

    Returns:
        `path`.

    Raises:
        OSError: the file cannot be written.
    """
    page = render_page(results)
    with written_whole(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return Path(path)


def write_figures(results: Results, folder: str | os.PathLike[str]) -> list[Path]:
    """Writes the figures that have data as PNG files, and their data; returns the paths.

    `figures.json` beside them holds the results that they draw.

    Raises:
        OSError: the folder does not exist or cannot be written.
    """
    drawings = [drawing for drawing in sections(results).drawings if drawing.has_data]
    paths = [Path(folder) / f"{drawing.key}.png" for drawing in drawings]
    for drawing, path in zip(drawings, paths, strict=True):
        style.save_figure(drawing.draw(results), path, dpi=110)
    data = Path(folder) / "figures.json"
    with written_whole(data) as temporary:
        temporary.write_text(results.to_json(), encoding="utf-8")
    return [*paths, data]


def render_page(results: Results) -> str:
    """Renders the HTML page of a run; every text of the results is escaped in it."""
    parts = sections(results)
    return template("page.html.jinja").render(
        title=results.title,
        run=results.run,
        duration=numbers.wall_time(results.run.seconds),
        parts=parts,
        figures={
            drawing.key: _figure_markup(drawing.draw(results), drawing.key, drawing.caption)
            for drawing in parts.drawings
            if drawing.has_data
        },
        result_headers=table.result_headers(results),
        result_cells=table.result_cells(results),
        files=list(dict.fromkeys(row.file for row in results.rows)),
        layer_headers=table.LAYER_HEADERS,
        layer_cells=table.layer_cells(results),
        no_layers=table.NO_LAYERS,
        bit_colours={str(bits): style.bit_colour(bits) for bits in range(1, 33)},
        config=_flatten(results.run.config),
        notes=results.notes,
    )


def _figure_markup(figure: Figure, key: str, caption: str) -> Markup:
    """A figure as inline SVG in the colours of the page, or as PNG where that is smaller."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once, not again for each format
    if len(figure.axes) > _MOST_PANELS:
        return _pixels(figure, caption)
    vector = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": key}):  # the same metrics give the same page
        figure.savefig(vector, format="svg", transparent=True, metadata={"Date": None})
    svg = vector.getvalue()
    if len(svg) > _LARGEST_SVG:
        return _pixels(figure, caption)
    svg = svg[svg.index("<svg") :]  # an XML declaration has no place inside HTML
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    # Ids are unique on a page, not only in a figure.
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{key}-", svg)
    svg = svg.replace(style.INK, "currentColor").replace(style.RULE, "var(--rule)")
    label = Markup('<svg role="img" aria-label="{}" ').format(caption)
    return Markup(svg.replace("<svg ", label, 1))  # matplotlib escapes its texts


def _pixels(figure: Figure, caption: str) -> Markup:
    pixels = io.BytesIO()
    figure.savefig(pixels, format="png", dpi=110, facecolor="white")
    data = base64.b64encode(pixels.getvalue()).decode("ascii")
    image = Markup('<img class="pixels" alt="{}" src="data:image/png;base64,{}">')
    return image.format(caption, data)


def _flatten(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A nested configuration as dotted names and values."""
    pairs = []
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            pairs += _flatten(value, f"{name}.")
        else:
            pairs.append((name, str(value)))
    return pairs

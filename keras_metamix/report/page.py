"""One self-contained HTML page: figures inlined, no script, nothing loaded from elsewhere."""

import base64
import io
import os
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

from keras_metamix.files import written_whole
from keras_metamix.report import numbers, plots, style, table
from keras_metamix.report.metrics import validate_metrics

_LARGEST_SVG = 300_000  # bytes; a figure of more lines is smaller as pixels
_MOST_PANELS = 40  # a figure of more is larger than that
_FIGURES = (
    ("rows", plots.accuracy_against_bops, "Accuracy against operations",
     "Test accuracy of each exported file over its bit operations."),
    ("layers", plots.bits_per_layer, "Bits per layer",
     "Activation bits (bars) and weight bits (ticks) of each layer in network order, above its "
     "multiply-accumulate operations."),
    ("epochs", plots.training_curves, "Training",
     "Accuracy and cost after each epoch; the shades are the phases of the search."),
    ("alphas", plots.alpha_trajectories, "Search",
     "Probability of each candidate bit-width, one panel for each searched layer."),
)  # fmt: skip


def write_report(metrics: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Writes the HTML page of a run; a failure leaves an earlier page as it was.

    Args:
        metrics: the metrics of a run, see `validate_metrics`.
        path: the file to write, in a folder that exists.

    Returns:
        `path`.

    Raises:
        ValueError: the metrics are malformed.
        OSError: the file cannot be written.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target}: expected a folder {target.parent}, found none")
    page = render_page(metrics)
    with written_whole(target) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return target


def write_figures(metrics: Mapping[str, Any], folder: str | os.PathLike[str]) -> list[Path]:
    """Writes the figures that have data as PNG files, and returns their paths.

    Raises:
        ValueError: the metrics are malformed.
        OSError: the folder does not exist or cannot be written.
    """
    validate_metrics(metrics)
    written = []
    for key, draw, _, _ in _FIGURES:
        if not _has_data(metrics, key):
            continue
        path = Path(folder) / f"{key}.png"
        with written_whole(path) as temporary:
            draw(metrics).savefig(temporary, dpi=110, facecolor="white")
        written.append(path)
    return written


def _has_data(metrics: Mapping[str, Any], key: str) -> bool:
    return bool(metrics[key].get("history") if key == "alphas" else metrics[key])


def render_page(metrics: Mapping[str, Any]) -> str:
    """Renders the HTML page of a run.

    Args:
        metrics: the metrics of a run, see `validate_metrics`.

    Returns:
        The page; every text of the metrics is escaped in it.

    Raises:
        ValueError: the metrics are malformed.
    """
    validate_metrics(metrics)
    source = (resources.files("keras_metamix.report") / "page.html.jinja").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(source).render(
        title=metrics["title"],
        run=metrics["run"],
        duration=numbers.wall_time(metrics["run"]["seconds"]),
        budget=_budget(metrics),
        facts=_facts(metrics),
        figures=_figures(metrics),
        result_headers=table.result_headers(metrics),
        result_cells=table.result_cells(metrics),
        files=[row["file"] for row in metrics["rows"]],
        layer_headers=table.LAYER_HEADERS,
        layer_cells=table.layer_cells(metrics),
        no_layers=table.NO_LAYERS,
        bit_colours={str(bits): style.bit_colour(bits) for bits in range(1, 33)},
        config=_flatten(metrics["run"]["config"]),
        notes=metrics["notes"],
    )


def _budget(metrics: Mapping[str, Any]) -> str:
    """The budget of the search; empty where there was none."""
    latency = metrics.get("latency_budget")
    if latency:
        return f"{numbers.duration(latency['target_us'])} of predicted latency ({latency['table']})"
    return f"{numbers.count(metrics['target_bops'])} BOPs" if metrics["target_bops"] else ""


def _facts(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    """The result in four numbers: the MetaMix row, and how it compares with the float row."""
    rows = {row["name"]: row for row in metrics["rows"]}
    if "MetaMix" not in rows:
        return []
    ours, reference = rows["MetaMix"], rows.get("float")
    target = metrics["target_bops"]
    compare = {"accuracy": "test accuracy", "size": "file size", "latency": "median latency"}
    if reference is not None:
        points = 100 * (ours["test_accuracy"] - reference["test_accuracy"])
        compare["accuracy"] += f", {points:+.2f} points against float"
        compare["size"] += _against(reference["file_bytes"], ours["file_bytes"], "smaller")
        compare["latency"] += _against(reference["latency_us"], ours["latency_us"], "faster")
    latency = metrics.get("latency_budget")
    if latency:
        predicted, budget = latency["predicted_us"], latency["target_us"]
        compare["latency"] += f"; {numbers.duration(predicted)} predicted"
        compare["latency"] += f", {numbers.ratio(predicted / budget)} the budget" if budget else ""
    known = target and ours["bops"] is not None
    of_target = f", {numbers.ratio(ours['bops'] / target)} the budget" if known else ""
    return [
        {"value": numbers.percent(ours["test_accuracy"]), "label": compare["accuracy"]},
        {"value": numbers.count(ours["bops"]), "label": f"BOPs{of_target}"},
        {"value": numbers.size(ours["file_bytes"]), "label": compare["size"]},
        {"value": numbers.duration(ours["latency_us"]), "label": compare["latency"]},
    ]


def _against(reference: float, ours: float, better: str) -> str:
    """`, 3.90x smaller than float`; a loss is called one: `, 1.20x slower than float`."""
    if not ours or not reference:
        return ""
    if ours <= reference:
        return f", {numbers.ratio(reference / ours)} {better} than float"
    worse = {"smaller": "larger", "faster": "slower"}[better]
    return f", {numbers.ratio(ours / reference)} {worse} than float"


def _figures(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The figures that have data, as markup, and a sentence for each that has none."""
    figures = []
    for key, draw, title, caption in _FIGURES:
        markup = _figure_markup(draw(metrics), key, caption) if _has_data(metrics, key) else None
        figures.append({"key": key, "title": title, "caption": caption, "markup": markup})
    return figures


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

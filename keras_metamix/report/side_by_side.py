"""Files of one model side by side: terminal table, Markdown page, picture.

Each takes what `metamix-benchmark --compare` measured, as its JSON file holds it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich import box
from rich.table import Table
from rich.text import Text

from keras_metamix.report import numbers, style
from keras_metamix.report.table import markdown, threads_text

BASELINE = "stock int8 PTQ"  # what sizes and latencies are ratios to
QAT = "tfmot int8 QAT"
OURS, NPU_OURS = "ours, fast", "ours, int8"
_TOP1 = "top-1 as graph"
_FEWEST = 100  # test images whose score is worth a sentence
_LEAST_SPAN = 2.0  # points of a score on the axis: hundredths are no difference to look at


def headers(comparison: Mapping[str, Any]) -> list[str]:
    """Column names: a score for each metric of the run's task."""
    tested = (f"test {metric}" for metric in comparison["metrics"])
    return ["file", *tested, "size", "latency", "XNNPACK", _TOP1, "values off"]


def _right(comparison: Mapping[str, Any]) -> range:
    """The columns of numbers: scores, size, latency."""
    return range(1, len(comparison["metrics"]) + 3)


def comparison_cells(comparison: Mapping[str, Any]) -> list[list[str]]:
    """One list of formatted cells for each file, not escaped."""
    return [
        [
            row["name"],
            *(numbers.percent(row["scores"][metric]) for metric in comparison["metrics"]),
            f"{numbers.size(row['file_bytes'])} ({numbers.ratio(row['size_ratio'])})",
            f"{numbers.duration(row['latency_us'])} ({numbers.ratio(row['latency_ratio'])})",
            "whole" if row["delegated"] else f"{row['partitions']} parts",
            numbers.percent(row["top1_agreement"]),
            _off(row),
        ]
        for row in comparison["rows"]
    ]


def _off(row: Mapping[str, Any]) -> str:
    """The share of outputs that are a step or more off, and by how many steps at most."""
    if row["differing"] is None:
        return numbers.MISSING
    if not row["differing"]:
        return f"0 of {row['outputs']:,}"
    return f"{numbers.percent(row['differing'] / row['outputs'])}, at most {row['max_steps']}"


def comparison_table(comparison: Mapping[str, Any]) -> Table:
    """The files for the terminal, without the top-1 column; names verbatim, never as markup."""
    title = Text(f"{comparison['title']}: side by side")
    table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    columns, numeric = headers(comparison), _right(comparison)
    shown = [index for index, header in enumerate(columns) if header != _TOP1]
    for index in shown:
        header = columns[index].replace(" ", "\n")
        right = index in numeric  # a number and its unit stay in one line
        table.add_column(header, justify="right" if right else "left", no_wrap=right, min_width=9)
    for cells in comparison_cells(comparison):
        table.add_row(*(Text(cells[index]) for index in shown))
    return table


def comparison_markdown(comparison: Mapping[str, Any], picture: str) -> str:
    """The page: what to conclude, table, picture, and how all of it was measured.

    Args:
      comparison: see above.
      picture: the figure's file, as the page links it.
    """
    lines = [
        f"# {comparison['title']}: side by side",
        _conclusion(comparison),
        "",
        markdown(headers(comparison), comparison_cells(comparison), _right(comparison)),
        f"![Test {comparison['metrics'][0]}, size and latency of each file]({picture})",
        "",
        *_npu_lines(comparison),
        "## How it was measured",
        *(f"- {note}" for note in _notes(comparison)),
    ]
    return "\n".join(lines) + "\n"


def _conclusion(comparison: Mapping[str, Any]) -> str:
    """What the page compares, and how the file of ours that runs in XNNPACK compares."""
    rows = {row["name"]: row for row in comparison["rows"]}
    ours, metric, images = rows[OURS], comparison["metrics"][0], comparison["images"]["test"]
    others = [name for name in (BASELINE, QAT) if name in rows]
    scores = " and ".join(
        f"{numbers.percent(rows[name]['scores'][metric])} for {name}" for name in others
    )
    parity = next(found for found in comparison["parity"] if found["name"] == OURS)
    sentences = [
        "This page compares the LiteRT files that other tools and keras-metamix (*ours*) make of "
        "the same trained float model.",
        f"*{OURS}* takes {ours['size_ratio']:.2f} times the bytes and "
        f"{ours['latency_ratio']:.2f} times the latency of {BASELINE}, TensorFlow's own "
        "post-training quantization.",
        f"Its test {metric} is {numbers.percent(ours['scores'][metric])}, compared with {scores}."
        if images >= _FEWEST
        else f"There are only {images} test images, too few to compare the {metric}.",
        f"Of its {parity['outputs']:,} output values, {parity['differing']:,} differ from those "
        "of the folded integer network in Keras.",
    ]
    npu = comparison.get("npu") or {"rows": ()}
    sentences += [
        f"On {npu['accelerator']}, *{row['name']}* is estimated to take "
        f"{row['cycles_ratio']:.2f} times the cycles and {row['stored_ratio']:.2f} times the "
        f"stored bytes of {BASELINE}."
        for row in npu["rows"]
        if row["name"] == NPU_OURS
    ]
    return " ".join(sentences)


def _notes(comparison: Mapping[str, Any]) -> list[str]:
    """What was missing, what the columns mean, and where and how all of it was measured."""
    run, images = comparison["run"], comparison["images"]
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    return [
        *(f"**Not measured: {m['name']}**: {m['reason']}" for m in comparison["missing"]),
        f"There are {images['test']:,} test images. Post-training quantization ({BASELINE}, LiteRT "
        f"Quantizer) set its ranges from {images['calibration']:,} training images. All files take "
        "and return float32.",
        f"tfmot trained for {_epochs(comparison['qat_epochs'])} from the same float model, with "
        "the same batches, optimizer, learning rate and loss; ours trained for "
        f"{_epochs(comparison['our_epochs'])}, search included.",
        "LiteRT Quantizer w4a8 has 4-bit weights in convolutions and dense layers. What the tool "
        "would then leave in float is quantized by its 8-bit recipe.",
        f"Latency is the median of {comparison['runs']} inferences of one image on "
        f"{threads_text(comparison['threads'])}, with the files taking turns. Ratios in brackets "
        f"are to {BASELINE}.",
        "The column *XNNPACK* says whether this delegate runs the whole file, or in how many "
        "parts, with other operators between them.",
        f"The columns *{_TOP1}* and *values off* compare a file with the graph that it was made "
        "from: tfmot's fake-quantized graph, our training graph or, for post-training "
        "quantization, the float model. A value is off if it is not the point of the file's grid "
        "that is nearest to the graph's value; *at most* is the largest distance, in steps.",
        *(
            f"{p['name']}: {p['differing']:,} of {p['outputs']:,} values differ from the folded "
            "integer network from which the file was written."
            for p in comparison["parity"]
        ),
        *comparison["notes"],
        f"{run['machine']}, {run['date']}; {versions}",
        f"`{run['command']}`, {numbers.wall_time(run['seconds'])}",
    ]


def _npu_lines(comparison: Mapping[str, Any]) -> list[str]:
    """What Vela estimates of the files for an NPU, where that was asked."""
    npu = comparison.get("npu")
    if npu is None:
        return []
    metric, scores = comparison["metrics"][0], {}
    for row in comparison["rows"]:
        scores[row["name"]] = row["scores"][metric]
    cells = [
        [
            row["name"],
            numbers.percent(scores[row["name"]]),
            f"{row['cycles']:,} ({numbers.ratio(row['cycles_ratio'])})",
            f"{numbers.size(row['stored_bytes'])} ({numbers.ratio(row['stored_ratio'])})",
            f"{row['on_npu']} of {row['operators']}",
        ]
        for row in npu["rows"]
    ]
    return [
        f"The next table has estimates of {npu['compiler']} for {npu['accelerator']}; no NPU was "
        f"run. Files with INT4 tensors do not compile. Ratios in brackets are to {BASELINE}.",
        "",
        markdown(
            ("file", f"test {metric}", "NPU cycles", "stored on it", "operators on it"),
            cells,
            range(1, 5),
        ),
        *_prediction_lines(npu["predictions"]),
    ]


def _prediction_lines(predictions: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the search's table predicted of the files, and what Vela makes of them."""
    if not predictions:
        return []
    cells = []
    for row in predictions:
        cells.append([row["name"]])
        for key, write in (("cycles", "{:,}".format), ("stored_bytes", numbers.size)):
            predicted, *compiled = row[key]
            cells[-1].append(write(predicted))
            cells[-1] += [f"{write(n)} ({100 * (n / predicted - 1):+.2f} %)" for n in compiled]
    each = ("predicted", "untrained", "trained")
    columns = [f"{unit}, {name}" for unit in ("cycles", "stored") for name in each]
    return [
        "The search priced bits by a table for the float network's weights. The last table "
        "compares its predictions for the chosen bits with what Vela compiles: files with the "
        "same weights (*untrained*), and the trained files.",
        "",
        markdown(("file", *columns), cells, range(1, 7)),
    ]


def _epochs(count: int) -> str:
    return f"{count} epoch" if count == 1 else f"{count} epochs"


def comparison_figure(comparison: Mapping[str, Any]) -> Figure:
    """Score as points, size and latency as bars, a row for each file; ours in colour."""
    rows, metric = comparison["rows"], comparison["metrics"][0]
    places = range(len(rows))
    height = 1.0 + 0.36 * len(rows)
    figure = Figure(figsize=(style.WIDTH, height), dpi=100, layout="constrained")
    score, size, latency = figure.subplots(1, 3, sharey=True)
    colours = [
        style.bit_colour(4) if row["name"].startswith("ours") else style.GREY for row in rows
    ]
    percents = [100 * row["scores"][metric] for row in rows]
    score.scatter(percents, places, color=colours, s=45)
    for percent, place in zip(percents, places, strict=True):
        score.annotate(f"  {percent:.2f}", (percent, place), va="center", fontsize=8)
    span = max(max(percents) - min(percents), _LEAST_SPAN)
    score.set_xlim(min(percents) - 0.2 * span, max(percents) + 0.6 * span)  # room for the texts
    score.xaxis.set_major_locator(MaxNLocator(4))
    for axis, key, write in (
        (size, "file_bytes", numbers.size),
        (latency, "latency_us", numbers.duration),
    ):
        bars = axis.barh(places, [row[key] for row in rows], color=colours)
        axis.bar_label(bars, [write(row[key]) for row in rows], padding=3, fontsize=8)
        axis.margins(x=0.3)
        axis.set_xticks([])
    score.set_yticks(places, [style.label(row["name"], 24) for row in rows])
    score.invert_yaxis()
    for axis, title in (
        (score, f"test {metric}, %"),
        (size, "file size"),
        (latency, f"latency, {threads_text(comparison['threads'])}"),
    ):
        style.finish(axis, xlabel=title)
        axis.grid(visible=False)
    return figure

"""The figures of a report, 900 pixels wide, as matplotlib figures without global state.

Each takes the results of a run, and needs the section that it draws.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from keras_metamix.report import numbers, style
from keras_metamix.report.pictures import decoded
from keras_metamix.report.results import Epoch, Layer, Mixer, Results, Search

_PHASES = {
    "bit_meta": ("bit-meta", "#cc79a7"),
    "bit_search": ("bit-search", "#e69f00"),
    "weight_training": ("weight training", "#56b4e9"),
    "activations": ("activations alone", "#cc79a7"),
    "network_wide": ("network-wide bits", "#e69f00"),
    "layer_wise": ("layer-wise bits", "#56b4e9"),
}
_FLOAT_BITS, _DECADE = 32, 10
_LEAST_SPAN = 0.04  # hundredths of a point are no difference to look at
CLASS_COLOURS = (  # of pixels; the first is the ground's
    "#e4e7eb", "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#f0e442",
)  # fmt: skip
_MAX_POINTS = 150  # of one alpha curve: finer cannot be seen in a panel


def bits_per_layer(results: Results) -> Figure:
    """Activation bits (bars) and weight bits (ticks) above MACs of each layer, in network order.

    Layers whose bits were not searched are hatched. MACs have a log axis.
    """
    layers = results.layers
    places = range(len(layers))
    figure = Figure(figsize=(style.WIDTH, 5.4), dpi=100, layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    bit_bars(top, layers)
    style.title(top, _text(results))
    bottom.bar(places, [layer.macs for layer in layers], color=style.GREY)
    counted = [layer.macs for layer in layers if layer.macs]
    bottom.set_yscale("log" if counted else "linear")
    bottom.set_ylim(bottom=0.4 * min(counted, default=1))  # the smallest bar is one too
    style.count_axis(bottom.yaxis)
    style.finish(top, ylabel="bits")
    style.finish(bottom, ylabel="MACs")
    style.name_layers(bottom, [layer.name for layer in layers])
    style.legend_above(figure, bit_handles(layers))
    return figure


def bit_bars(axis: Axes, layers: Sequence[Layer]) -> None:
    """A bar of each layer's activation bits, and a tick at its weight bits.

    Bars have the bits' colour, and are hatched if nothing of the layer was searched.
    """
    colours = [style.bit_colour(layer.activation_bits) for layer in layers]
    heights = [layer.activation_bits for layer in layers]
    bars = axis.bar(range(len(layers)), heights, color=colours)
    for bar, layer in zip(bars, layers, strict=True):
        if not layer.searched:
            bar.set(hatch="///", edgecolor="white", linewidth=0)
    weights = [layer.weight_bits for layer in layers]
    width = min(30.0, 0.8 * 560 / max(1, len(layers)))  # of a bar, in points
    axis.scatter(range(len(layers)), weights, marker="_", s=width**2, color=style.INK, linewidth=2)
    used = sorted({*heights, *weights})
    axis.set_yticks(used)
    axis.set_ylim(0, 1.08 * max(used, default=8))


def _text(results: Results) -> str:
    """The title of a run, and what its layers come to."""
    row, title = results.layers_row, style.label(results.title, 60)
    if row is None:
        return title
    activations, weights = map(numbers.bits, row.average_bits)
    return (
        f"{title}, {style.label(row.name, 30)}: {activations} bits of activations and {weights} of "
        f"weights on average, {numbers.count(row.bops)} BOPs"
    )


def search_moves(results: Results) -> Figure:
    """Where the search left the probabilities of each layer's candidates, and what was chosen.

    Stacked bars, the most bits below; dashed where equal probabilities would divide them, as at the
    search's beginning; a dot in what was chosen.
    """
    if results.search is None:
        raise ValueError("search_moves: expected the results of a search.")
    alphas, chosen = results.search.alphas, results.chosen_bits
    names = list(alphas.history)
    figure = Figure(figsize=(style.WIDTH, 3.9), dpi=100, layout="constrained")
    axis = figure.subplots()
    used: set[int] = set()
    for place, name in enumerate(names):
        bottom, candidates = 0.0, alphas.candidates[name]
        used |= {*candidates}
        for bits, share in zip(candidates, alphas.history[name][-1], strict=True):
            axis.bar(place, share, bottom=bottom, color=style.bit_colour(bits), width=0.8)
            if bits == chosen.get(name):
                middle = bottom + share / 2
                axis.scatter(place, middle, s=36, color="white", edgecolor=style.INK, zorder=3)
            bottom += share
        for part in range(1, len(candidates)):
            level = part / len(candidates)
            axis.plot([place - 0.4, place + 0.4], [level] * 2, "--", color=style.INK, linewidth=1)
    style.finish(axis, ylabel="probability after the search")
    axis.set_ylim(0, 1)
    style.name_layers(axis, names)
    handles: list[Any] = [
        Patch(color=style.bit_colour(bits), label=f"{bits} bits") for bits in sorted(used)[::-1]
    ]
    handles.append(
        Line2D([], [], linestyle="--", color=style.INK, linewidth=1, label="at its beginning")
    )
    dot: dict[str, Any] = {"marker": "o", "linestyle": "", "markerfacecolor": "white"}
    handles.append(Line2D([], [], color=style.INK, label="chosen under the budget", **dot))
    style.legend_above(figure, handles)
    return figure


def alpha_trajectories(results: Results) -> Figure:
    """The probability of each candidate bit-width over the steps, one panel a searched layer."""
    if results.search is None:
        raise ValueError("alpha_trajectories: expected the results of a search.")
    alphas = results.search.alphas
    names = list(alphas.history)
    columns = min(4, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(style.WIDTH, 0.9 + 1.45 * rows), dpi=100, layout="constrained")
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    count = len(alphas.steps)
    kept = np.linspace(0, count - 1, min(count, _MAX_POINTS)).astype(int)  # the last among them
    steps = [alphas.steps[index] for index in kept]
    handles: dict[int, Line2D] = {}
    for axis, name in zip(axes.flat, names, strict=False):
        for place, bits in enumerate(alphas.candidates[name]):
            curve = [alphas.history[name][index][place] for index in kept]
            width = max(1.2, 2.6 - 0.6 * place)  # equal curves stay visible beneath each other
            look = {"color": style.bit_colour(bits), "label": f"{bits} bits"}
            (handles[bits],) = axis.plot(steps, curve, linewidth=width, **look)
        axis.set_title(style.label(name, 26), fontsize=9, color=style.INK, loc="left")
        axis.set_ylim(-0.04, 1.04)
        axis.set_yticks([0, 0.5, 1])
        axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        style.finish(axis)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    for index in range(max(0, len(names) - columns), len(names)):
        axes.flat[index].tick_params(labelbottom=True)  # also above an unused place
    figure.supxlabel("step", fontsize=9, color=style.INK)
    figure.supylabel("probability", fontsize=9, color=style.INK)
    style.legend_above(figure, [handles[bits] for bits in sorted(handles, reverse=True)])
    return figure


def training_curves(results: Results) -> Figure:
    """Score per epoch, above a panel for the cost that each budget counts; phases are shaded.

    A budget is a dashed line; where nothing was searched there is the score alone.
    """
    epochs, budgets, metric = results.epochs, results.budgets, results.metric
    places = [epoch.epoch for epoch in epochs]
    count = 1 + len(budgets)
    figure = Figure(figsize=(style.WIDTH, 1.4 + 1.7 * count), dpi=100, layout="constrained")
    axes = list(figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0])
    marker = "o" if len(epochs) <= 40 else None
    line = {"marker": marker, "markersize": 4, "linewidth": 1.8}
    curve = [epoch.score for epoch in epochs]
    handles = axes[0].plot(places, curve, color=style.GREY, label=f"training {metric}", **line)
    validation = [epoch.validation_score for epoch in epochs]
    gaps = [math.nan if value is None else value for value in validation]
    validated = axes[0].plot(places, gaps, color="#0072b2", label=f"validation {metric}", **line)
    if any(value is not None for value in validation):
        handles += validated
    axes[0].yaxis.set_major_formatter(PercentFormatter(1, 1, " %"))
    style.finish(axes[0], ylabel=metric)
    for axis, budget in zip(axes[1:], budgets, strict=True):
        name = numbers.cost_name(budget.cost)
        curve = [epoch.costs[budget.cost] for epoch in epochs]
        handles += axis.plot(places, curve, color="#d55e00", label=name, **line)
        limit = axis.axhline(budget.limit, **style.BUDGET)
        axis.set_ylim(0, 1.06 * axis.get_ylim()[1])
        axis.yaxis.set_major_formatter(
            FuncFormatter(lambda value, _, kind=budget.cost: numbers.cost(kind, value, round=True))
        )
        style.finish(axis, ylabel=name)
        if axis is axes[-1]:
            handles.append(limit)
    axes[-1].set_xlim(places[0] - 0.5, places[-1] + 0.5)
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[-1].set_xlabel("epoch", color=style.INK, fontsize=9)
    style.legend_above(figure, [*handles, *_shade_phases(axes, epochs)])
    return figure


def score_against_cost(results: Results) -> Figure:
    """Test score over what the first budget counts, one marker a file, the budget a dashed line.

    That is the bytes of the file, or BOPs. A float model, which would squeeze the others into
    a corner, and one whose cost is not known are a dotted line at their score.
    """
    kind = "size_bytes" if [b.cost for b in results.budgets[:1]] == ["size_bytes"] else "bops"
    name = numbers.cost_name(kind)
    figure, axis = _scores(f"test {results.metric}", name)
    colours = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
    for index, row in enumerate(results.rows):
        score, cost = row.scores[results.metric], row.bops
        if kind == "size_bytes":
            cost = row.file_bytes
        look: dict[str, Any] = {"color": colours[index % len(colours)]}
        look["label"] = f"{style.label(row.name, 30)}: {numbers.percent(score)}"
        if cost is not None:
            look["label"] += f", {numbers.cost(kind, cost)}{' BOPs' if kind == 'bops' else ''}"
        if cost is None or min(row.average_bits) >= _FLOAT_BITS:
            axis.axhline(score, linestyle=":", linewidth=2, **look)
        else:
            marker = "osD^vP"[index % 6]
            axis.scatter([cost], [score], marker=marker, s=90, zorder=3, **look)
    for budget in results.budgets:
        if budget.cost == kind:
            axis.axvline(budget.limit, **style.BUDGET)
    costs = [float(x) for found in axis.collections for x, _ in np.asarray(found.get_offsets())]
    if costs and max(costs) > _DECADE * min(costs):
        axis.set_xscale("log")
        style.count_axis(axis.xaxis)
    else:  # a log axis has no ticks within a decade
        axis.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: numbers.cost(kind, value, round=True))
        )
    axis.margins(x=0.12, y=0.2)
    low, high = axis.get_ylim()
    short = max(0.0, _LEAST_SPAN - (high - low)) / 2
    axis.set_ylim(low - short, high + short)
    figure.legend(loc="outside right upper", **style.LEGEND)
    return figure


def _scores(measured: str, cost: str) -> tuple[Figure, Axes]:
    """A figure of scores, in percent, over a cost."""
    figure = Figure(figsize=(style.WIDTH, 3.6), dpi=100, layout="constrained")
    axis = figure.subplots()
    axis.yaxis.set_major_formatter(PercentFormatter(1, 1, " %"))
    style.finish(axis, ylabel=measured, xlabel=cost)
    return figure, axis


def operating_points(mixer: Mixer, metric: str) -> Figure:
    """`pareto_front` of a Bit-Mixer's run, whose scores are of a metric."""
    return pareto_front(
        [(p.cost, p.score, p.name) for p in mixer.points],
        [(u.cost, u.score, u.bits) for u in mixer.uniform],
        mixer.unit,
        f"test {metric}",
    )


def searched_points(search: Search, metric: str) -> Figure:
    """`pareto_front` of the budgets of one search, whose scores are of a metric."""
    points = [(p.cost, p.score, p.name) for p in search.points]
    return pareto_front(points, [], search.unit, f"test {metric}")


def pareto_front(
    points: Sequence[tuple[float, float, str]],
    uniform: Sequence[tuple[float, float, int]],
    unit: str,
    measured: str = "accuracy",
) -> Figure:
    """Accuracy over cost of operating points, beside uniform bit-widths.

    Args:
      points: cost, accuracy and name of each; those of the file have one.
      uniform: cost, accuracy and bit-width of each.
      unit: of the cost.
      measured: what the accuracy is called.
    """
    figure, axis = _scores(measured, unit)
    line = sorted((cost, accuracy) for cost, accuracy, _ in points)
    axis.plot(*zip(*line, strict=True), color=style.GREY, marker="o", label="chosen by budget")
    for cost, accuracy, name in points:
        if name:
            below = {"xytext": (5, -12), "textcoords": "offset points"}
            axis.annotate(style.label(name, 20), (cost, accuracy), fontsize=9, **below)
    for cost, accuracy, bits in uniform:
        look = {"s": 90, "color": style.bit_colour(bits), "zorder": 3}
        axis.scatter(
            cost, accuracy, label=f"uniform, {bits} bits: {numbers.percent(accuracy)}", **look
        )
    axis.xaxis.set_major_formatter(FuncFormatter(style.tick))
    axis.margins(x=0.1, y=0.15)
    figure.legend(loc="outside right upper", **style.LEGEND)
    return figure


def masks(results: Results) -> Figure:
    """Test images, above the true classes of their pixels and those that a file gives."""
    if results.masks is None:
        raise ValueError("masks: expected the results of a segmentation.")
    found, strips = results.masks, {}
    for title, text in (("image", found.images), ("truth", found.truth), ("file", found.found)):
        strips[title] = decoded(text)
    height, width = strips["image"].shape[:2]
    size = (style.WIDTH, 3.2 * style.WIDTH * height / width + 0.6)
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    palette = to_rgba_array(
        [CLASS_COLOURS[n % len(CLASS_COLOURS)] for n in range(len(found.classes))]
    )
    for axis, (title, strip) in zip(figure.subplots(3, 1), strips.items(), strict=True):
        axis.imshow(strip if title == "image" else palette[strip[..., 0]], interpolation="nearest")
        axis.set_ylabel(title, color=style.INK, fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_visible(False)
    handles = [
        Patch(color=colour, label=style.label(name, 20))
        for name, colour in zip(found.classes, palette, strict=True)
    ]
    style.legend_above(figure, handles)
    return figure


def bit_handles(layers: Sequence[Layer]) -> list[Any]:
    """The legend of `bit_bars`."""
    used = sorted({layer.activation_bits for layer in layers}, reverse=True)
    handles = [Patch(color=style.bit_colour(b), label=f"{b}-bit activations") for b in used]
    if any(not layer.searched for layer in layers):
        grey = Patch(facecolor=style.GREY, edgecolor="white", hatch="///", label="not searched")
        handles.append(grey)
    return [*handles, Line2D([], [], color=style.INK, linewidth=2, label="weight bits")]


def _shade_phases(axes: Sequence[Axes], epochs: Sequence[Epoch]) -> list[Patch]:
    """Shades each run of epochs in one phase, and returns the legend of the phases that occur."""
    start = 0
    for index, epoch in enumerate(epochs):
        last = index == len(epochs) - 1
        if last or epochs[index + 1].phase != epoch.phase:
            _, colour = _PHASES.get(epoch.phase, (None, style.RULE))
            for axis in axes:
                span = (epochs[start].epoch - 0.5, epoch.epoch + 0.5)
                axis.axvspan(*span, color=colour, alpha=0.18, linewidth=0)
            start = index + 1
    occurring = dict.fromkeys(epoch.phase for epoch in epochs)
    known = [_PHASES.get(phase, (style.label(phase, 20), style.RULE)) for phase in occurring]
    return [Patch(color=colour, alpha=0.3, linewidth=0, label=label) for label, colour in known]

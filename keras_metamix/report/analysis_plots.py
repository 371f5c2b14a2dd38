"""The figures of an analysis, in the style of `plots.py`: what the MetaMix paper's show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from keras_metamix.report import style
from keras_metamix.report.analysis import Analysis, Instability, State
from keras_metamix.report.plots import bit_bars, bit_handles
from keras_metamix.report.results import Layer

_MARKERS = "o^Dsv"  # of states, in their order
_TRAININGS = ("#8b949e", "#d55e00", "#0072b2")
_GRIDS = {"signed": "a Gaussian, signed grid", "unsigned": "behind a ReLU, unsigned grid"}
_RULES = {
    "lsq": ("LSQ's initial step, 2 mean|v| / √Qp", "#d55e00", "o"),
    "mse": ("step of least squared error", "#0072b2", "s"),
}


def instability(found: Instability) -> Figure:
    """How far each layer's running variances move from the most bits to fewer, by state."""
    kinds = list(dict.fromkeys(state.weights for state in found.states))
    figure = Figure(figsize=(style.WIDTH, 5.6), dpi=100, layout="constrained")
    axes = figure.subplots(len(kinds), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    names = list(found.states[0].change)
    places = np.arange(len(names))
    states = list(dict.fromkeys(state.name for state in found.states))
    for axis, weights in zip(axes, kinds, strict=True):
        for state in found.states:
            if state.weights != weights:
                continue
            shift = 0.16 * (states.index(state.name) - (len(states) - 1) / 2)
            for number, bits in enumerate(found.bits[1:]):
                values = [state.change.get(name, [np.nan] * 9)[number] for name in names]
                look: dict[str, Any] = {"color": style.bit_colour(bits), "markersize": 6}
                marker = _MARKERS[states.index(state.name) % len(_MARKERS)]
                hollow = {} if state is _last(found, weights) else {"markerfacecolor": "none"}
                axis.plot(places + shift, values, marker, **look, **hollow)
        style.title(axis, f"weights {_weights(found, weights)}")
        axis.set_xlim(-0.6, len(names) - 0.4)
        axis.set_ylim(bottom=0)
        style.finish(axis, ylabel=f"mean |ln(var_b / var_{found.bits[0]})|")
    style.name_layers(axes[-1], names)
    handles = [
        Line2D([], [], color=style.INK, marker=marker, linestyle="", label=name)
        for name, marker in zip(states, _MARKERS, strict=False)
    ]
    for handle in handles[:-1]:
        handle.set_markerfacecolor("none")
    colours = [Patch(color=style.bit_colour(b), label=f"b = {b} bits") for b in found.bits[1:]]
    style.legend_above(figure, [*handles, *colours])
    return figure


def distributions(found: Instability) -> Figure:
    """What one layer's quantizer reads at each bit-width: states side by side, weights in rows."""
    states = list(dict.fromkeys(state.name for state in found.states))
    kinds = list(dict.fromkeys(state.weights for state in found.states))
    figure = Figure(figsize=(style.WIDTH, 1.0 + 2.1 * len(kinds)), dpi=100, layout="constrained")
    axes = figure.subplots(len(kinds), len(states), sharex=True, sharey=True, squeeze=False)
    for state in found.states:
        axis = axes[kinds.index(state.weights), states.index(state.name)]
        for number, (bits, shares) in enumerate(zip(found.bits, state.histogram, strict=True)):
            width = max(1.2, 2.6 - 0.6 * number)  # equal curves stay visible beneath each other
            look: dict[str, Any] = {"color": style.bit_colour(bits), "linewidth": width}
            axis.stairs(shares, found.edges, baseline=None, **look)
        axis.set_ylim(bottom=0)
        axis.set_yticks([])
        axis.xaxis.set_major_locator(MaxNLocator(5, prune="both"))
        style.finish(axis)
        if state.weights == kinds[0]:
            style.title(axis, state.name)
    for axis, weights in zip(axes[:, 0], kinds, strict=True):
        axis.set_ylabel(
            f"share of values,\nweights {_weights(found, weights)}", fontsize=9, color=style.INK
        )
    figure.supxlabel(
        f"what the quantizer of {style.label(found.layer, 40)} reads", fontsize=9, color=style.INK
    )
    style.legend_above(
        figure,
        [Patch(color=style.bit_colour(b), label=f"{b} bits in all layers") for b in found.bits],
    )
    return figure


def running_variance(found: Instability) -> Figure:
    """One layer's running variance over the steps of each training."""
    figure = Figure(figsize=(style.WIDTH, 3.4), dpi=100, layout="constrained")
    axis = figure.subplots()
    for (name, curve), colour in zip(found.traces.items(), _TRAININGS, strict=False):
        axis.plot(range(1, len(curve) + 1), curve, color=colour, linewidth=1.8, label=name)
    axis.axhline(1, color=style.RULE, linewidth=1)
    style.finish(axis, ylabel="running variance / that before", xlabel="step")
    style.legend_above(figure, axis.get_lines()[:-1])
    return figure


def quantized_gaussian(analysis: Analysis) -> Figure:
    """Variance of a quantized Gaussian over bits, by the rule of the step, for each grid."""
    figure = Figure(figsize=(style.WIDTH, 3.2), dpi=100, layout="constrained")
    axes = figure.subplots(1, len(_GRIDS), sharey=True)
    handles: dict[str, Line2D] = {}
    for axis, (grid, title) in zip(axes, _GRIDS.items(), strict=True):
        axis.axhline(1, color=style.RULE, linewidth=1)
        for curve in analysis.gaussian:
            if curve.grid == grid:
                label, colour, marker = _RULES[curve.rule]
                look: dict[str, Any] = {"color": colour, "marker": marker, "label": label}
                (handles[label],) = axis.plot(curve.bits, curve.variance, **look)
        axis.set_xticks(sorted({bits for curve in analysis.gaussian for bits in curve.bits}))
        axis.invert_xaxis()
        style.title(axis, title)
        style.finish(axis, xlabel="bits")
    axes[0].set_ylabel("variance, quantized / not", fontsize=9, color=style.INK)
    style.legend_above(figure, list(handles.values()))
    return figure


def traces(analysis: Analysis, layers: Sequence[Layer]) -> Figure:
    """Chosen bits above the Hessian's trace and that by operation, layer by layer."""
    shown = [layer for layer in layers if layer.name in analysis.traces]
    places = np.arange(len(shown))
    found = [analysis.traces[layer.name] for layer in shown]
    figure = Figure(figsize=(style.WIDTH, 5.6), dpi=100, layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    bit_bars(top, shown)
    values = np.array([trace.trace for trace in found])
    errors = np.array([trace.error for trace in found])
    macs = np.array([max(layer.macs, 1) for layer in shown])
    for axis, scale in ((middle, np.ones(len(shown))), (bottom, macs)):
        positive = values > 0
        heights = np.where(positive, values, np.nan) / scale
        lower = np.minimum(errors, 0.9 * values) / scale
        bars = (np.where(positive, lower, 0), errors / scale)
        look: dict[str, Any] = {"ecolor": style.INK, "error_kw": {"linewidth": 1}}
        axis.bar(places, heights, yerr=bars, color=style.GREY, **look)
        if positive.any():
            axis.set_yscale("log")
            axis.set_ylim(bottom=0.3 * float(np.nanmin(heights)))
    style.finish(top, ylabel="bits")
    style.finish(middle, ylabel="trace")
    style.finish(bottom, ylabel="trace / MACs")
    style.name_layers(bottom, [layer.name for layer in shown])
    style.legend_above(figure, bit_handles(shown))
    return figure


def _weights(found: Instability, weights: str) -> str:
    return "in float" if weights == "float" else f"at {found.weight_bits}"


def _last(found: Instability, weights: str) -> State:
    """The state that the search begins with."""
    return [state for state in found.states if state.weights == weights][-1]

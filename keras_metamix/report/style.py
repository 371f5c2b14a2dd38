"""What every figure of a report looks like: colours, ticks, axes and legends.

Bit-widths have one colour everywhere, from the colour-blind-safe palette of Okabe and Ito. Texts
and lines are drawn in `INK` and `RULE`, which the page turns into the colours of its theme.
"""

import math
import os
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from keras_metamix.files import written_whole
from keras_metamix.report import numbers

INK, RULE = "#1f2328", "#c9cfd6"
GREY = "#8b949e"  # readable on white and on black
_BIT_COLOURS = {8: "#0072b2", 4: "#009e73", 3: "#e69f00", 2: "#d55e00"}
_OTHER_COLOURS = ("#cc79a7", "#56b4e9", "#8c7ae6", "#999999")
WIDTH = 9.0  # inches, of 100 pixels
BUDGET = {"color": INK, "linestyle": "--", "linewidth": 1.2, "label": "budget"}
LEGEND = {"frameon": False, "fontsize": 9, "labelcolor": INK}


def bit_colour(bits: int) -> str:
    """The colour of a bit-width, the same in every figure."""
    return _BIT_COLOURS.get(bits, _OTHER_COLOURS[bits % len(_OTHER_COLOURS)])


def label(name: str, limit: int) -> str:
    """A name cut to `limit` characters, in which matplotlib sees no mathematics."""
    return numbers.shorten(name, limit).replace("\n", " ").replace("$", r"\$")


def tick(value: float, _position: int | None) -> str:
    """A round count without its zeros: `10 k`, where a table has `10.0 k`."""
    number, _, unit = numbers.count(value).partition(" ")
    return f"{float(number):g} {unit}".strip()


def count_axis(axis: Any) -> None:
    """Writes the ticks of a log axis as `10 k`, not as powers."""
    axis.set_major_formatter(FuncFormatter(tick))
    axis.set_minor_formatter(NullFormatter())


def finish(axis: Axes, ylabel: str = "", xlabel: str = "") -> None:
    """The look that all axes share."""
    axis.set_ylabel(ylabel, color=INK, fontsize=9)
    axis.set_xlabel(xlabel, color=INK, fontsize=9)
    axis.patch.set_visible(False)
    axis.set_axisbelow(True)
    axis.grid(axis="y", color=RULE, linewidth=0.7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(RULE)
    axis.tick_params(which="both", color=RULE, labelcolor=INK, labelsize=8)


def title(axis: Axes, text: str) -> None:
    """A panel's title, at its left."""
    axis.set_title(text, fontsize=9, color=INK, loc="left")


def name_layers(axis: Axes, names: Sequence[str]) -> None:
    """Names below an axis of layers at 0, 1, 2, ..., of a deep network some of them."""
    every = math.ceil(len(names) / 64) or 1
    labels = [label(name, 22) for name in names[::every]]
    size = 8 if len(labels) < 40 else 6.5
    axis.set_xticks(range(0, len(names), every), labels, rotation=90, fontsize=size)
    axis.set_xlim(-0.6, len(names) - 0.4)


def legend_above(figure: Figure, handles: Sequence[Any]) -> None:
    """One legend above all panels."""
    columns = min(len(handles), 5) or 1
    figure.legend(handles=list(handles), loc="outside upper left", ncols=columns, **LEGEND)


def save_figure(figure: Figure, path: str | os.PathLike[str], dpi: Any = "figure") -> None:
    """Writes a PNG on white, as it is seen outside of a page."""
    with written_whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi, facecolor="white")

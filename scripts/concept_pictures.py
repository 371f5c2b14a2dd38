"""Draws the pictures of the README and of docs/concepts.md, as SVG, into docs/pictures/.

    python scripts/concept_pictures.py

They are drawings of the rules, computed by the rules: levels, rounding and costs are not placed by
hand. The same text comes out on every machine, and a test holds the pages to it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "docs" / "pictures"
WIDTH = 720
INK, SOFT, LINE, GROUND = "#1f2430", "#5b6472", "#c3c9d3", "#ffffff"
BITS = {8: "#0072b2", 4: "#009e73", 3: "#e69f00", 2: "#d55e00"}  # as in reports
FILL = {"mac": "#e6edfb", "other": "#f1f3f6", "edge": "#e9ebef"}
BAD, GOOD = "#c2410c", "#15803d"


class Picture:
    """An SVG of a fixed width: x to the right, y down, in pixels."""

    def __init__(self, height: int, title: str):
        self.height, self.title, self.parts = height, title, []

    def rect(self, x: float, y: float, w: float, h: float, fill: str, edge: str = LINE) -> None:
        self._add(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="4" fill="{fill}" '
            f'stroke="{edge}"/>'
        )

    def line(self, *points: tuple[float, float], color: str = SOFT, **more: str) -> None:
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        settings = {"fill": "none", "stroke": color, "stroke-width": "1.5"} | {
            name.replace("_", "-"): value for name, value in more.items()
        }
        self._add(f'<polyline points="{path}" {_attributes(settings)}/>')

    def arrow(self, *points: tuple[float, float], color: str = SOFT) -> None:
        self.line(*points, color=color, marker_end="url(#head)")

    def dot(self, x: float, y: float, color: str, radius: float = 4) -> None:
        self._add(f'<circle cx="{x:g}" cy="{y:g}" r="{radius:g}" fill="{color}"/>')

    def text(
        self,
        x: float,
        y: float,
        words: str,
        color: str = INK,
        size: int = 13,
        anchor: str = "middle",
        weight: str = "400",
    ) -> None:
        self._add(
            f'<text x="{x:g}" y="{y:g}" fill="{color}" font-size="{size}" '
            f'text-anchor="{anchor}" font-weight="{weight}">{_escaped(words)}</text>'
        )

    def _add(self, part: str) -> None:
        self.parts.append(part)

    def svg(self) -> str:
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height}" '
            f'width="{WIDTH}" height="{self.height}" role="img" '
            'font-family="Helvetica, Arial, sans-serif">'
        )
        arrow = (
            '<defs><marker id="head" markerWidth="9" markerHeight="8" refX="7" refY="4" '
            f'orient="auto"><path d="M0,0 L8,4 L0,8 z" fill="{SOFT}"/></marker></defs>'
        )
        ground = f'<rect width="{WIDTH}" height="{self.height}" rx="6" fill="{GROUND}"/>'
        title = f"<title>{_escaped(self.title)}</title>"
        return "\n".join([head, title, arrow, ground, *self.parts, "</svg>", ""])


def _escaped(words: str) -> str:
    return words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _attributes(settings: dict[str, str]) -> str:
    return " ".join(f'{name}="{value}"' for name, value in settings.items())


def levels(bits: int) -> range:
    """Integers of a weight: symmetric, narrow."""
    high = 2 ** (bits - 1) - 1
    return range(-high, high + 1)


def quantized(value: float, step: float, bits: int) -> float:
    """`round(clip(value / step)) * step`."""
    high = 2 ** (bits - 1) - 1
    return round(min(max(value / step, -high), high)) * step


def pipeline() -> Picture:
    """From a float model to a file and its proof, with the calls that lead there."""
    picture = Picture(176, "From a float model to a file whose integers are the trained ones")
    stages = (  # name, what it is, its fill
        ("float model", ("your own,", "trained in Keras"), "edge"),
        ("searchable", ("every layer at", "several bits"), "mac"),
        ("bits", ("as few a layer as", "a budget allows"), "mac"),
        ("integers", ("the trained ones,", "none rounded anew"), "mac"),
        ("file", ("one .tflite for", "LiteRT"), "other"),
        ("proof", ("0 values differ", "from Keras"), "other"),
    )
    calls = (("from_float",), ("fit with", "MetaMixCallback"), ("fit, to its end",), ("convert",),
             ("verify, parity",))  # fmt: skip
    width, gap, y, height = 99, 20, 48, 64
    lefts = [13 + number * (width + gap) for number in range(len(stages))]
    for left, (name, lines, kind) in zip(lefts, stages, strict=True):
        color = GOOD if name == "proof" else INK
        picture.rect(left, y, width, height, FILL[kind], GOOD if name == "proof" else SOFT)
        picture.text(left + width / 2, y + 21, name, color, 14, weight="600")
        for row, line in enumerate(lines):
            picture.text(left + width / 2, y + 39 + 14 * row, line, SOFT, 10)
    for left, words in zip(lefts, calls, strict=False):
        middle = left + width + gap / 2
        picture.arrow((left + width + 1, y + height / 2), (middle + gap / 2 - 1, y + height / 2))
        for row, word in enumerate(reversed(words)):
            picture.text(middle, y - 9 - 14 * row, word, INK, 11)
    for number, bits in enumerate((8, 4, 2, 4, 8)):
        x, tall = lefts[2] + 9 + 17 * number, 4 * bits
        picture.rect(x, 158 - tall, 13, tall, BITS[bits], GROUND)
        picture.text(x + 6.5, 170, str(bits), SOFT, 10)
    return picture


def bit_widths() -> Picture:
    """The levels of a weight at 8, 4, 3 and 2 bits, over the same range."""
    picture = Picture(236, "The values that a weight can take at 8, 4, 3 and 2 bits")
    left, right = 150, 660
    for row, bits in enumerate(BITS):
        y = 48 + 50 * row
        picture.line((left, y), (right, y), color=LINE)
        found = levels(bits)
        for level in found:
            x = left + (right - left) * (level - found[0]) / (found[-1] - found[0])
            half = 11 if bits < 8 else 7
            width = "2.5" if bits < 8 else "1"
            picture.line((x, y - half), (x, y + half), color=BITS[bits], stroke_width=width)
        picture.text(left - 16, y - 1, f"{bits} bits", INK, 15, "end", "600")
        picture.text(left - 16, y + 15, f"{len(found)} values", SOFT, 12, "end")
    picture.text((left + right) / 2, 226, "the range of one output channel's weights", SOFT)
    return picture


def step_size() -> Picture:
    """Rounding with a small, a middling and a large step at 3 bits."""
    picture = Picture(300, "A step size that is too small clips, one that is too large rounds")
    scale, low, high = 34, -2.6, 2.6
    cases = (("too small: clips", 0.35, BAD), ("fits", 0.75, GOOD), ("too large: rounds", 1.8, BAD))
    for number, (name, step, color) in enumerate(cases):
        middle = 124 + 236 * number
        y0 = 142

        def at(x: float, y: float, middle: float = middle, y0: float = y0) -> tuple[float, float]:
            return middle + scale * x, y0 - scale * y

        picture.line(at(low, 0), at(high, 0), color=LINE)
        picture.line(at(0, low), at(0, high), color=LINE)
        picture.line(at(low, low), at(high, high), color=LINE, stroke_dasharray="4 4")
        values = [low + (high - low) * i / 520 for i in range(521)]
        stairs = [(x, quantized(x, step, 3)) for x in values]
        corners = [
            b for a, b, c in zip(stairs, stairs[1:], stairs[2:], strict=False)
            if a[1] != b[1] or b[1] != c[1]
        ]  # fmt: skip
        points = [stairs[0], *corners, stairs[-1]]
        picture.line(*(at(*p) for p in points), color=color, stroke_width="2.5")
        picture.text(middle, 26, name, color, 15, weight="600")
        picture.text(middle, 262, f"step size {step:g}", INK)
    picture.text(WIDTH / 2, 288, "value before (across) and after (up), 3 bits: 7 values", SOFT)
    return picture


def network() -> Picture:
    """A small residual network: groups, streams, edges, and where quantizers are."""
    picture = Picture(262, "Groups, streams and edges of a small residual network")
    boxes = (
        ("stem", "conv, norm, ReLU", 40, "edge"),
        ("a", "conv, norm, ReLU", 200, "mac"),
        ("b", "conv, norm", 360, "mac"),
        ("add", "sum", 506, "other"),
        ("logits", "dense", 600, "edge"),
    )
    widths = {"stem": 116, "a": 116, "b": 96, "add": 52, "logits": 76}
    y, height = 112, 54
    for name, inside, x, kind in boxes:
        picture.rect(x, y, widths[name], height, FILL[kind], SOFT if kind != "other" else LINE)
        picture.text(x + widths[name] / 2, y + 23, name, INK, 14, weight="600")
        picture.text(x + widths[name] / 2, y + 41, inside, SOFT, 11)
    line = y + height / 2
    picture.arrow((8, line), (38, line))
    for (name, _, x, _), (_, _, next_x, _) in itertools.pairwise(boxes):
        picture.arrow((x + widths[name], line), (next_x - 2, line))
    picture.arrow((676, line), (712, line))
    picture.arrow((178, line), (178, 66), (532, 66), (532, y - 2))
    marks = ((22, 8), (178, 8), (338, 4), (481, 8), (579, 8), (694, 8))
    for x, bits in marks:
        picture.dot(x, line, BITS[bits], 7)
    picture.dot(190, line, BITS[4], 7)
    picture.text(98, 92, "edge: 8 bits", SOFT, 12)
    picture.text(638, 92, "edge: 8 bits", SOFT, 12)
    picture.text(
        355, 52, "a stream: two operations read it, so it has a quantizer of its own", SOFT, 12
    )
    picture.text(328, 196, "groups: each is one operator of the file", SOFT, 12)
    picture.dot(206, 232, BITS[4], 7)
    picture.text(220, 237, "input of a searched layer", INK, 12, "start")
    picture.dot(404, 232, BITS[8], 7)
    picture.text(418, 237, "8 bits: streams, ends", INK, 12, "start")
    return picture


def container() -> Picture:
    """4-bit integers in INT8 and in INT4."""
    picture = Picture(236, "Six 4-bit weights in an INT8 and in an INT4 container")
    values, size, left = (3, -2, 7, 0, -5, 1), 56, 150
    for row, (name, note, packed) in enumerate(
        (("INT8", "6 bytes: fewer than 8 bits save nothing here", False),
         ("INT4", "3 bytes: two integers share a byte", True))
    ):  # fmt: skip
        y = 40 + 104 * row
        picture.text(left - 18, y + 26, name, INK, 16, "end", "600")
        for number, value in enumerate(values):
            if packed:
                x, half = left + size * (number // 2) + size / 2 * (number % 2), size / 2
                picture.rect(x, y, half, 40, BITS[4], GROUND)
                picture.text(x + half / 2, y + 26, str(value), GROUND, 14, weight="600")
            else:
                x = left + size * number
                picture.rect(x, y, size, 40, FILL["other"], LINE)
                picture.rect(x + size / 2, y, size / 2, 40, BITS[4], GROUND)
                picture.text(x + size * 3 / 4, y + 26, str(value), GROUND, 14, weight="600")
        picture.text(left, y + 64, note, SOFT, 13, "start")
    return picture


# Layer, MACs in millions, bits of its input and of its weights.
LAYERS = (
    ("stem", 1.1, 8, 8),
    ("a", 3.6, 8, 4),
    ("b", 3.6, 4, 4),
    ("c", 1.8, 3, 4),
    ("logits", 0.1, 8, 8),
)


def cost_at(share: float) -> float:
    """A share of the way from the fewest bits to the most; a, b and c take 8, 4 or 3."""
    least, most = (
        sum(macs * (bits if w == 4 else a) * w for _, macs, a, w in LAYERS) for bits in (3, 8)
    )
    return least + share * (most - least)


def budget() -> Picture:
    """What layers cost at the bits chosen, and what the budget allows."""
    picture = Picture(270, "The cost of each layer, and the budget that their sum has to meet")
    x = left = 110
    scale, limit = 1.35, cost_at(0.5)
    for row, (name, macs, a, w) in enumerate(LAYERS):
        y, cost = 30 + 34 * row, macs * a * w
        picture.text(left - 14, y + 17, name, INK, 13, "end", "600")
        picture.rect(x, y, cost * scale, 24, BITS[a], GROUND)
        x += cost * scale
        words = f"{macs:g} M MACs × {a} × {w} = {cost:.1f} M"
        picture.text(500, y + 17, words, SOFT, 12, "start")
    end = left + limit * scale
    picture.line((end, 16), (end, 222), color=BAD, stroke_dasharray="5 4")
    picture.line((left, 210), (x, 210), color=INK, stroke_width="2")
    picture.text(
        left, 232, f"sum: {(x - left) / scale:.1f} M bit operations", INK, 13, "start", "600"
    )
    picture.text(end, 250, f"budget, share=0.5: {limit:.1f} M", BAD, 13)
    return picture


# docs/results.md: the operating points of the Bit-Mixer on the extract.
POINTS = (("eco", 17.6, 88.40), ("balanced", 26.2, 88.35), ("full", 42.2, 88.70))


def operating_points() -> Picture:
    """One file, three signatures, and what each costs."""
    picture = Picture(262, "One file with three operating points")
    picture.rect(28, 46, 236, 168, FILL["other"], LINE)
    picture.text(146, 36, "model.tflite", INK, 14, weight="600")
    picture.rect(52, 164, 188, 34, FILL["mac"], LINE)
    picture.text(146, 186, "constants that they share", INK, 12)
    colors = dict(zip(("eco", "balanced", "full"), (BITS[2], BITS[3], BITS[4]), strict=True))
    for row, (name, _, _) in enumerate(reversed(POINTS)):
        y = 60 + 32 * row
        picture.rect(52, y, 188, 26, colors[name], GROUND)
        picture.text(146, y + 18, f'signature "{name}"', GROUND, 13, weight="600")
    left, bottom = 350, 214
    picture.line((left, 40), (left, bottom), (690, bottom), color=LINE)

    def at(cost: float, accuracy: float) -> tuple[float, float]:
        return left + cost * 7.2, bottom - (accuracy - 88) * 200

    for name, cost, accuracy in POINTS:
        x, y = at(cost, accuracy)
        picture.dot(x, y, colors[name], 7)
        beside = {"eco": (4, -14, "end"), "balanced": (0, 24, "start"), "full": (0, -14, "middle")}
        dx, dy, anchor = beside[name]
        picture.text(x + dx, y + dy, f"{name}: {accuracy:.2f} %", INK, 12, anchor)
        picture.text(x, bottom + 18, f"{cost:g} M", SOFT, 12)
    picture.text((left + 690) / 2, bottom + 38, "bit operations of one image", SOFT)
    picture.text(left, 30, "test accuracy", SOFT, 13, "start")
    return picture


def exactness() -> Picture:
    """Training graph, integers, file, runtime: where the same numbers come out."""
    picture = Picture(226, "From the training graph to the file, and what is compared")
    boxes = (
        ("training graph", "float32, rounded", "to levels"),
        ("folded network", "Keras layers that", "compute in integers"),
        ("file", "INT4, INT8, INT32", "constants"),
        ("LiteRT", "with XNNPACK, on", "the device"),
    )
    width, gap = 142, 38
    for number, (name, first, second) in enumerate(boxes):
        x = 20 + (width + gap) * number
        picture.rect(x, 62, width, 84, FILL["mac"] if number % 3 else FILL["other"], LINE)
        picture.text(x + width / 2, 88, name, INK, 14, weight="600")
        picture.text(x + width / 2, 110, first, SOFT, 12)
        picture.text(x + width / 2, 127, second, SOFT, 12)
        if number:
            picture.arrow((x - gap, 104), (x - 2, 104))
    for middle, words in ((181, "fold_batch_norm"), (361, "convert"), (541, "run")):
        picture.text(middle, 52, words, SOFT, 12)
    picture.line((271, 150), (271, 176), (631, 176), (631, 150), color=GOOD, stroke_width="2")
    picture.text(451, 198, "parity: the same integer at every output value", GOOD, 13, weight="600")
    picture.line((451, 150), (451, 176), color=GOOD, stroke_width="2")
    picture.text(451, 216, "verify: the file holds what it declares", GOOD, 12)
    return picture


PICTURES: dict[str, Callable[[], Picture]] = {
    "pipeline": pipeline,
    "bit_widths": bit_widths,
    "step_size": step_size,
    "network": network,
    "container": container,
    "budget": budget,
    "operating_points": operating_points,
    "exactness": exactness,
}


def main() -> None:
    """Writes all of them."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        (FOLDER / f"{name}.svg").write_text(draw().svg(), encoding="utf-8")


if __name__ == "__main__":
    main()

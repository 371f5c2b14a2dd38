"""What a run's page shows: head figures, drawings, a line on the budget, as its method has them."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Callable, Sequence

from matplotlib.figure import Figure

from keras_metamix.report import analysis_plots, numbers, plots
from keras_metamix.report.analysis import Analysis
from keras_metamix.report.results import METAMIX, Budget, Layer, Mixer, Point, Results, Row, Search

_EPOCHS_OF_METAMIX = (
    "{Metric} and cost after each epoch; the shades are the phases of the search. Validation "
    "{metric} is of images held out of training, at the bits whose cost is shown below it; before "
    "weight training, training {metric} is that of the fewest candidate bits in all layers."
)
_EPOCHS_OF_BITMIXER = (
    "{Metric} after each epoch; the shades are the stages. Validation {metric} is of images held "
    "out of training, at the most bits in all layers; training {metric} is of the bits that each "
    "step drew."
)
_MASKS = (
    "Test images, the true classes of their pixels, and the classes that the file of {name} gives."
)
_PARETO = (
    "Test {metric} of one network over what its bits cost: the operating points of the file by "
    "name, others chosen by budget, and uniform bit-widths."
)
_FRONT = (
    "Test {metric} over cost of the bits that one search gave under several budgets, the training "
    "graph's, each a file of its own."
)


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A figure of a page.

    Attributes:
      key: its name, that of its file too.
      section: the title above it.
      caption: the sentence below it.
      draw: makes it, where the run has what it draws.
      has_data: whether it has.
      empty: a sentence in its place where it has not.
    """

    key: str
    section: str
    caption: str
    draw: Callable[[Results], Figure]
    has_data: bool
    empty: str = ""


@dataclasses.dataclass(frozen=True)
class Sections:
    """A page's own parts.

    Attributes:
      facts: numbers at its head, and what each is.
      ours: names of the rows to set off.
    """

    budget: str
    facts: list[tuple[str, str]]
    drawings: list[Drawing]
    ours: list[str]


def sections(results: Results) -> Sections:
    """The parts of a run's page."""
    mixer, search, rows = results.mixer, results.search, {row.name: row for row in results.rows}
    names = [point.name for point in mixer.points if point.name] if mixer else []
    layers = (
        "Activation bits (bars) and weight bits (ticks) of each layer in network order, above its "
        f"multiply-accumulate operations{f', at operating point {names[-1]!r}' if names else ''}."
    )
    metric, masks = results.metric, results.masks
    names_of_metric = {"metric": metric, "Metric": metric[0].upper() + metric[1:]}
    epochs = (_EPOCHS_OF_BITMIXER if mixer else _EPOCHS_OF_METAMIX).format(**names_of_metric)
    shared = [
        Drawing(
            "masks",
            "Results",
            _MASKS.format(name=masks.name if masks else ""),
            plots.masks,
            masks is not None,
        ),
        Drawing(
            "rows",
            "Results",
            f"Test {metric} of each exported file over its bit operations, or over its bytes where "
            "the budget is of these; the float file, which has many times as many, is a line.",
            plots.score_against_cost,
            bool(results.rows),
        ),
        Drawing("layers", "Bits per layer", layers, plots.bits_per_layer, bool(results.layers)),
        Drawing(
            "epochs",
            "Training",
            epochs,
            plots.training_curves,
            bool(results.epochs),
            "No epochs were recorded.",
        ),
    ]
    if mixer:
        drawn = bool(mixer.points and mixer.uniform)
        pareto = Drawing(
            "pareto",
            "Results",
            _PARETO.format(metric=metric),
            lambda _: plots.operating_points(mixer, metric),
            drawn,
        )
        facts = _mixer_facts(rows, mixer, names, metric)
        return Sections("", facts, [pareto, *shared], names)
    searched = bool(search and search.alphas.history and search.alphas.steps)
    moves = Drawing(
        "moves",
        "Search",
        _moved(search, results.chosen_bits) if searched and search else "",
        plots.search_moves,
        searched,
    )
    alphas = Drawing(
        "alphas",
        "Search",
        "Probability of each candidate bit-width, one panel for each searched layer.",
        plots.alpha_trajectories,
        bool(search and search.alphas.history),
        "No search was recorded: the bits were given.",
    )
    words = " and ".join(map(_text, results.budgets))
    facts = _search_facts(rows, results.budgets, metric)
    drawings = [*shared, moves, alphas, *_analysed(results)]
    if search and search.points:
        caption = f"{_FRONT.format(metric=metric)}{_trained_on(search.points)}"
        front = Drawing(
            "pareto", "Results", caption, lambda _: plots.searched_points(search, metric), True
        )
        drawings.insert(0, front)
    return Sections(words, facts, drawings, [METAMIX])


def _trained_on(points: Sequence[Point]) -> str:
    """How much longer the points of further budgets were trained, in words.

    The dearest of them goes on from the search's own, and each other one from the next dearer.
    """
    trained = sorted((point for point in points if point.epochs), key=lambda point: -point.cost)
    if not trained:
        return ""
    totals = itertools.accumulate(point.epochs for point in trained)
    each = [f"{point.name} {n:+d}" for point, n in zip(trained, totals, strict=True)]
    return f" Those of further budgets were trained on, for more epochs: {', '.join(each)}."


def _moved(search: Search, chosen: dict[str, int]) -> str:
    """What a search moved, in words."""
    alphas, moves, others = search.alphas, [], 0
    ends: dict[int, list[float]] = {}
    for name, records in alphas.history.items():
        pairs = list(zip(alphas.candidates[name], records[0], records[-1], strict=True))
        moves += [(abs(end - start), name, bits, start, end) for bits, start, end in pairs]
        probable = max(pairs, key=lambda pair: pair[2])[0]
        others += chosen.get(name, probable) != probable
        for bits, _, end in pairs:
            ends.setdefault(bits, []).append(end)
    _, name, bits, start, end = max(moves)
    text = (
        "Probability of each candidate when the search ended. What it moved most is "
        f"{name} at {bits} bits, from {start:.2f} to {end:.2f}"
    )
    apart = max(max(values) - min(values) for values in ends.values())
    text += f"; between layers the same bits differ by {apart:.2f} at most"
    if others:
        text += (
            f"; in {others} of {len(alphas.history)} the budget chose another than the most "
            "probable one"
        )
    return f"{text}."


def _analysed(results: Results) -> list[Drawing]:
    """The figures of an analysis, if there is one."""
    analysis = results.analysis
    if analysis is None:
        return []
    found, section = analysis.instability, "Activation instability"
    drawings = []
    if found is not None:
        steps, most = f"{found.steps} steps", found.bits[0]
        drawings = [
            Drawing(
                "instability",
                section,
                f"How far fewer bits in all layers move the variance of what each batch norm reads "
                f"(0.1: by about a tenth), of the float network and after {steps} of training at "
                "bits drawn for each layer and step, and of bit-meta.",
                lambda _: analysis_plots.instability(found),
                True,
            ),
            Drawing(
                "distributions",
                section,
                f"What the quantizer of {found.layer} reads at each bit-width, before a ReLU that "
                "it computes itself; batch norms have their running statistics. In the float "
                "network no other layer's spread differs more.",
                lambda _: analysis_plots.distributions(found),
                True,
            ),
            Drawing(
                "running_variance",
                section,
                f"Running variance of {found.traced}, the least stable of the float network, while "
                f"that trains for {steps} at {most} bits, at random bits, and by bit-meta; the "
                "geometric mean of its channels.",
                lambda _: analysis_plots.running_variance(found),
                True,
            ),
        ]
    gaussian = Drawing(
        "gaussian",
        section,
        "Variance of a quantized Gaussian: whether fewer bits raise or lower it is a matter of the "
        "rule that sets the step. Activations begin with LSQ's.",
        lambda _: analysis_plots.quantized_gaussian(analysis),
        bool(analysis.gaussian),
    )
    traces = Drawing(
        "traces",
        "Hessian",
        "Chosen bits, the trace of the Hessian of the float network's loss by each "
        "layer's weights with its standard error, and the trace by operation. "
        f"{_correlated(analysis, results.layers)}{analysis.note}",
        lambda _: analysis_plots.traces(analysis, results.layers),
        any(layer.name in analysis.traces for layer in results.layers),
        analysis.note,
    )
    return [*drawings, gaussian, traces]


def _correlated(analysis: Analysis, layers: list[Layer]) -> str:
    """How the order of searched layers by bits agrees with that by trace, in words."""
    known = [layer for layer in layers if layer.searched and layer.name in analysis.traces]
    traces = [analysis.traces[layer.name].trace for layer in known]
    by_operation = [t / max(layer.macs, 1) for t, layer in zip(traces, known, strict=True)]
    found = ""
    for kind in ("activation", "weight"):
        bits = [getattr(layer, f"{kind}_bits") for layer in known]
        if len({*bits}) > 1:
            found += (
                f"Rank correlation of the {len(known)} searched layers' {kind} bits with the "
                f"trace: {rank_correlation(bits, traces):.2f}, with the trace by operation: "
                f"{rank_correlation(bits, by_operation):.2f}. "
            )
    return found


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's, equal values having the mean of their ranks; neither is of one value alone."""

    def ranks(values: Sequence[float]) -> list[float]:
        return [
            sum(other < value for other in values) + sum(other == value for other in values) / 2
            for value in values
        ]

    return statistics.correlation(ranks(first), ranks(second))


def _text(budget: Budget) -> str:
    """`38.0 M BOPs`, `220 µs of predicted latency (table.json)`."""
    limit = numbers.cost(budget.cost, budget.limit)
    name = numbers.cost_name(budget.cost)
    text = f"{limit} {name}" if budget.cost == "bops" else f"{limit} of {name}"
    return f"{text} ({budget.source})" if budget.source else text


def _search_facts(
    rows: dict[str, Row], budgets: list[Budget], metric: str
) -> list[tuple[str, str]]:
    """The result in four numbers, and how it compares with the float row."""
    if METAMIX not in rows:
        return []
    ours, reference = rows[METAMIX], rows.get("float")
    score, size, latency, bops = f"test {metric}", "file size", "median latency", "BOPs"
    if reference is not None:
        score += _points_against(reference, ours, metric)
        size += _against(reference.file_bytes, ours.file_bytes, "smaller", "larger")
        latency += _against(reference.latency_us, ours.latency_us, "faster", "slower")
    for budget in budgets:
        share = f"{numbers.ratio(budget.found / budget.limit)} the budget"
        if budget.cost == "bops":
            bops += f", {share}"
        elif budget.cost == "latency_us":
            latency += f"; {numbers.cost(budget.cost, budget.found)} predicted, {share}"
        elif budget.cost == "size_bytes":
            size += f"; {share}"
    return [
        (numbers.percent(ours.scores[metric]), score),
        (numbers.count(ours.bops), bops),
        (numbers.size(ours.file_bytes), size),
        (numbers.duration(ours.latency_us), latency),
    ]


def _mixer_facts(
    rows: dict[str, Row], mixer: Mixer, names: list[str], metric: str
) -> list[tuple[str, str]]:
    """The best and the cheapest operating point, the range of BOPs, and the one file."""
    points = sorted((rows[name] for name in names if name in rows), key=lambda r: -(r.bops or 0))
    if not points:
        return []
    most, fewest, reference = points[0], points[-1], rows.get("float")
    best = f"test {metric} at {most.name!r}"
    size = f"one file with {len(points)} operating points"
    if reference is not None:
        best += _points_against(reference, most, metric)
        size += _against(reference.file_bytes, most.file_bytes, "smaller", "larger")
    if mixer.separate_bytes:
        size += f"; {numbers.size(mixer.separate_bytes)} as files of their own"
    lost = _points_against(most, fewest, metric, repr(most.name))
    ratio = (most.bops or 0) / fewest.bops if fewest.bops else 1
    return [
        (numbers.percent(most.scores[metric]), best),
        (numbers.percent(fewest.scores[metric]), f"test {metric} at {fewest.name!r}{lost}"),
        (numbers.count(fewest.bops), f"BOPs at {fewest.name!r}, {numbers.ratio(ratio)} fewer"),
        (numbers.size(most.file_bytes), size),
    ]


def _against(reference: float, ours: float, better: str, worse: str) -> str:
    """`, 3.90x smaller than float`; a loss is called one: `, 1.20x slower than float`."""
    ratio, word = (reference / ours, better) if ours <= reference else (ours / reference, worse)
    return f", {numbers.ratio(ratio)} {word} than float"


def _points_against(reference: Row, ours: Row, metric: str, whom: str = "float") -> str:
    """`, -0.69 points against float`."""
    gained = ours.scores[metric] - reference.scores[metric]
    return f", {100 * gained:+.2f} points against {whom}"

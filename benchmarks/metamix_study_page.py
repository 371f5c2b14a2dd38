"""The page of benchmarks/metamix_study.py: tables, pictures, and what they say."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from keras_metamix.files import written_whole
from keras_metamix.report import style

SETTINGS = {
    "A842": "activations of 8, 4 or 2 bits, weights of 4, at 0.65 of the BOPs of A4W4",
    "A843": "activations of 8, 4 or 3 bits, weights of 4, at 0.85 of the BOPs of A4W4",
    "W8432": "weights of 8, 4, 3 or 2 bits, activations of 8, at 0.32 of the bytes of W8",
}
NETWORKS = {
    "mobilenet": "a small MobileNetV2 (`zoo.small_mobilenet(width=8)`)",
    "resnet": "a small ResNet (`zoo.small_resnet(width=8, stem_strides=2)`)",
    "deep": "MobileNetV2 0.35 (`zoo.mobilenet_v2`, 53 layers)",
}
ORDER = (
    "metamix",
    "sensitivity, meta-state",
    "sensitivity, float network",
    "hessian",
    "sensitivity, no meta-state",
    "split",
    "bits of split",
    "moving",
    "bits of moving",
    "joint",
    "bits of joint",
)
CONFIDENCE, WIDTH = 0.95, 120
_ACROSS = 30  # layers of a table that has one in each column
_INTRODUCTION = (
    "This study compares the bits that MetaMix's search finds with bits of the same cost that were "
    "drawn at random or chosen by each layer's sensitivity. Each choice is trained for the same "
    "number of steps, from the same weights unless its name says otherwise. Each line below gives "
    "a difference of test accuracies and its 95 % interval; a difference within it is a tie."
)

Seeds = Mapping[str, Mapping[str, Any]]  # seed -> arm -> result


def write_page(output: Path, study: dict[str, Any]) -> None:
    """Writes OUTPUT.md and a picture for each network that has results."""
    results = study["results"]
    lines = ["# Does the search earn its keep?", _filled(_INTRODUCTION), ""]
    lines += [f"- {line}" for line in _verdicts(results)]
    lines += ["", *_method(study)]
    for network, groups in results.items():
        searched = {name: groups[name] for name in SETTINGS if name in groups}
        if not searched:
            continue
        picture = output.with_name(f"{output.name}_{network}.png")
        style.save_figure(_figure(searched, groups), picture, dpi=110)
        lines += ["", f"## {NETWORKS[network][0].upper()}{NETWORKS[network][1:]}"]
        lines += ["", *_floats(groups), "", f"![Accuracy of each choice]({picture.name})"]
        for name, seeds in searched.items():
            lines += ["", f"### {name}: {SETTINGS[name]}", "", *_table(seeds)]
            lines += ["", *_times(seeds), "", *_bits(seeds)]
        if "uniform" in groups:
            lines += ["", "### Uniform bits, whatever they cost", "", *_uniform(groups["uniform"])]
    with written_whole(output.with_suffix(".md")) as temporary:
        temporary.write_text("\n".join(lines) + "\n")


# --- numbers -------------------------------------------------------------------------------------


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and half the 95 % interval of Student's t; infinite of one value."""
    found = np.asarray(values, np.float64)
    if len(found) < 2:
        return float(found.mean()), float("inf")
    half = stats.t.ppf(0.5 + CONFIDENCE / 2, len(found) - 1) * stats.sem(found)
    return float(found.mean()), float(half)


def random_mean(arms: Mapping[str, Any], key: str = "accuracy") -> float:
    """The mean of a seed's random assignments."""
    return float(np.mean([r[key] for name, r in arms.items() if name.startswith("random ")]))


def paired(seeds: Seeds, arm: str, other: str | None = None) -> list[float]:
    """An arm's accuracy less another's, or less the mean random assignment's, of each seed."""
    found = []
    for arms in seeds.values():
        if arm not in arms or (other is not None and other not in arms):
            continue
        if other is None and not any(name.startswith("random ") for name in arms):
            continue
        base = random_mean(arms) if other is None else arms[other]["accuracy"]
        found.append(100 * (arms[arm]["accuracy"] - base))
    return found


def _points(values: Sequence[float]) -> str:
    mean, half = mean_interval(values)
    return f"{mean:+.2f}" if half == float("inf") else f"{mean:+.2f} ± {half:.2f}"


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def _seen(values: Sequence[float]) -> str:
    """What a paired difference shows."""
    mean, half = mean_interval(values)
    if half == float("inf"):
        return "one seed, which shows nothing"
    if abs(mean) <= half:
        return f"{_seeds(len(values))}: a tie within the interval"
    return f"{_seeds(len(values))}: {'better' if mean > 0 else 'worse'}"


# --- text ----------------------------------------------------------------------------------------


def _verdicts(results: Mapping[str, Any]) -> list[str]:
    lines = []
    for network, groups in results.items():
        for name in SETTINGS:
            seeds = groups.get(name, {})
            for arm in ("metamix", "sensitivity, float network"):
                values = paired(seeds, arm)
                if values:
                    lines.append(
                        f"{network}, {name}: **{arm} differs from the mean random assignment of "
                        f"the same cost by {_points(values)} points** ({_seen(values)})."
                    )
            others = [arm for arm in ORDER[1:] if len(paired(seeds, "metamix", arm)) > 1]
            found = {arm: paired(seeds, "metamix", arm) for arm in others}
            if found:
                differences = (f"{arm} by {_points(v)} ({_seen(v)})" for arm, v in found.items())
                lines.append(f"{network}, {name}: metamix differs from {'; '.join(differences)}.")
    return lines or ["No result yet."]


def _method(study: Mapping[str, Any]) -> list[str]:
    arguments = study["arguments"]
    paragraph = (
        "Intervals are 95 % intervals of Student's t over seeds; differences are paired by seed. "
        f"The data are {arguments['data']} with 5,000 training images held out, in batches of "
        f"{arguments['batch']}; weight training takes {arguments['passes']:g} pass over the "
        "images. All choices of bits in a table are trained from the very same meta-state, except "
        "those that are said to begin elsewhere: moving and joint train weights in the search too, "
        "and go on from their own, half a pass ahead; split goes on from the meta-state of "
        '`meta="split"`; no meta-state goes on from the float network. Batch norms are '
        "re-estimated from 32 training batches at the end, as `MetaMixCallback` does. Each trained "
        "network read the test images once, and they decided nothing. The first lines of "
        "`benchmarks/metamix_study.py` describe the method. This command writes the page:"
    )
    further = (
        "A seed that was interrupted has fewer than five random assignments so far. The seeds were "
        "trained on several CPUs, which round differently: two settings of one seed, and split and "
        "the other arms of mobilenet, may begin from different float networks. The same "
        "command without `--page` adds seeds, networks and arms, and does not train again what "
        "`metamix_study.json` has already."
    )
    return [
        _filled(paragraph),
        "",
        "    python benchmarks/metamix_study.py --page",
        "",
        _filled(further),
    ]


def _filled(paragraph: str) -> str:
    return textwrap.fill(paragraph, WIDTH, break_on_hyphens=False)


def _floats(groups: Mapping[str, Any]) -> list[str]:
    seeds = groups.get("float", {})
    first = [100 * arms["float network"]["accuracy"] for arms in seeds.values()]
    later = [
        100 * arms["float, trained on"]["accuracy"]
        for arms in seeds.values()
        if "float, trained on" in arms
    ]
    text = f"The float network reaches {np.mean(first):.2f} % (mean of {_seeds(len(first))})"
    if later:
        text += f", and {np.mean(later):.2f} % if trained on for as long as the quantized networks"
    return [f"{text}."]


def _arms(seeds: Seeds) -> list[str]:
    known = {arm for arms in seeds.values() for arm in arms if not arm.startswith("random ")}
    return [arm for arm in ORDER if arm in known] + sorted(known - set(ORDER))


def _table(seeds: Seeds) -> list[str]:
    lines = [
        "| bits by | seeds | accuracy, % | difference from random, points | loss "
        "| share of budget |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for arm in _arms(seeds):
        rows = [arms[arm] for arms in seeds.values() if arm in arms]
        lines.append(_row(arm, rows, _points(paired(seeds, arm)) if paired(seeds, arm) else ""))
    chance = [
        {key: random_mean(arms, key) for key in ("accuracy", "loss", "cost")}
        for arms in seeds.values()
        if any(name.startswith("random ") for name in arms)
    ]
    if chance:
        lines.append(_row("random, mean", chance, "0"))
        best = [
            {"accuracy": max(r["accuracy"] for n, r in a.items() if n.startswith("random "))}
            for a in seeds.values()
            if any(name.startswith("random ") for name in a)
        ]
        lines.append(_row("random, the best on test images", best, ""))
    return lines


def _row(arm: str, rows: Sequence[Mapping[str, float]], difference: str) -> str:
    mean, half = mean_interval([100 * row["accuracy"] for row in rows])
    interval = "" if half == float("inf") else f" ± {half:.2f}"

    def average(key: str, form: str) -> str:
        return format(np.mean([row[key] for row in rows]), form) if key in rows[0] else ""

    return (
        f"| {arm} | {len(rows)} | {mean:.2f}{interval} | {difference} | {average('loss', '.4f')} | "
        f"{average('cost', '.3f')} |"
    )


def _times(seeds: Seeds) -> list[str]:
    """What training and searching took; an arm whose bits another one has was not trained."""
    found = [
        (arm, result)
        for arms in seeds.values()
        for arm, result in arms.items()
        if result["start"] == "metamix" and not result.get("again")
    ]
    # In older results that of the first random assignment has a search in it.
    later = [f"random {number}" for number in range(1, 10)]
    training = [r["cpu_seconds"] for arm, r in found if arm in later]
    searching = [r["search_cpu_seconds"] for _, r in found if "search_cpu_seconds" in r]
    if not training:
        return []
    text = (
        "The weight training of a choice took "
        f"{np.median(training):.0f} s of CPU time (median of {len(training)})"
    )
    if searching:
        text += f", and the search before it {np.median(searching):.0f} s"
        text += f" (median of {len(searching)})" if len(searching) > 1 else ""
    return [_filled(f"{text}, each with what it compiles.")]


def _bits(seeds: Seeds) -> list[str]:
    """The bits that the choices have in common, and where they part."""
    searched = 1 if len({b.split("W")[0] for b in _all_bits(seeds)}) == 1 else 0
    columns = {}
    for arm in (*_arms(seeds), "random"):
        rows = [
            [float(text[1:].split("W")[searched]) for text in result["bits"].values()]
            for arms in seeds.values()
            for name, result in arms.items()
            if (name == arm or (arm == "random" and name.startswith("random ")))
        ]
        if rows:
            columns[arm] = [f"{value:.1f}" for value in np.mean(rows, axis=0)]
    head, rows = _short(seeds), [[arm, *means] for arm, means in columns.items()]
    if len(head) > _ACROSS:  # a table of so many columns cannot be read
        rows = [list(row) for row in zip(head, *columns.values(), strict=True)]
        head = list(columns)
    lines = [" | ".join(["| mean bits, layer by layer", *head]) + " |"]
    lines.append("| --- |" + " ---: |" * len(head))
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def _short(seeds: Seeds) -> list[str]:
    names = next(iter(next(iter(seeds.values())).values()))["bits"]
    for word, letter in (
        ("block", "b"),
        ("expand", "e"),
        ("depthwise", "dw"),
        ("project", "p"),
        ("conv", "c"),
        ("downsample", "d"),
    ):
        names = [name.replace(word, letter) for name in names]
    return names


def _all_bits(seeds: Seeds) -> set[str]:
    """Of all layers but the first and the last, whose bits are given."""
    return {
        text
        for arms in seeds.values()
        for result in arms.values()
        for text in list(result["bits"].values())[1:-1]
    }


def _uniform(seeds: Seeds) -> list[str]:
    lines = ["| bits | seeds | accuracy, % | BOPs |", "| --- | ---: | ---: | ---: |"]
    for arm in sorted({arm for arms in seeds.values() for arm in arms}):
        rows = [arms[arm] for arms in seeds.values() if arm in arms]
        mean, half = mean_interval([100 * row["accuracy"] for row in rows])
        interval = "" if half == float("inf") else f" ± {half:.2f}"
        lines.append(f"| {arm} | {len(rows)} | {mean:.2f}{interval} | {rows[0]['bops']:,.0f} |")
    return lines


# --- picture -------------------------------------------------------------------------------------


def _figure(searched: Mapping[str, Seeds], groups: Mapping[str, Any]) -> Figure:
    """A panel for each setting: every trained network a dot, an arm's mean a line."""
    figure = Figure(figsize=(style.WIDTH, 1.0 + 2.4 * len(searched)), layout="constrained")
    panels = figure.subplots(len(searched), 1, squeeze=False)[:, 0]
    for axis, (name, seeds) in zip(panels, searched.items(), strict=True):
        arms = [*_arms(seeds), "random"]
        for row, arm in enumerate(reversed(arms)):
            values = [
                100 * result["accuracy"]
                for found in seeds.values()
                for label, result in found.items()
                if label == arm or (arm == "random" and label.startswith("random "))
            ]
            chance = arm == "random"
            colour = style.GREY if chance else style.bit_colour(8 if arm == "metamix" else 4)
            axis.plot(values, [row] * len(values), "o", color=colour, alpha=0.5, markersize=5)
            axis.plot([np.mean(values)] * 2, [row - 0.3, row + 0.3], color=colour, linewidth=2.5)
        axis.set_yticks(range(len(arms)), list(reversed(arms)))
        axis.set_title(f"{name}: {SETTINGS[name]}", fontsize=9, loc="left", color=style.INK)
        style.finish(axis, "", "test accuracy, %")
        axis.grid(axis="x", color=style.RULE, linewidth=0.7)
    return figure

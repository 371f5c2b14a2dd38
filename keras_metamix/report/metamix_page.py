"""MetaMix's page: what one assignment costs and reaches, and how it was found."""

from __future__ import annotations

from keras_metamix.report import numbers, plots
from keras_metamix.report.results import Budget, Results
from keras_metamix.report.sections import (
    SEARCH,
    Drawing,
    Fact,
    Sections,
    against,
    epochs_drawing,
    layers_drawing,
    points_against,
    rows_drawing,
)

OURS = "MetaMix"
_EPOCHS = (
    "Accuracy and cost after each epoch; the shades are the phases of the search. Validation "
    "accuracy is of images held out of training, at the bits whose cost stands below it; before "
    "weight training, training accuracy is that of the fewest candidate bits in all layers."
)


def sections(results: Results) -> Sections:
    """The page's own parts."""
    budgets = results.search.budgets if results.search else []
    alphas = Drawing(
        "alphas",
        SEARCH,
        "Probability of each candidate bit-width, one panel for each searched layer.",
        plots.alpha_trajectories,
        lambda results: bool(results.search and results.search.alphas.history),
        "No search was recorded: the bits were given.",
    )
    return Sections(
        budget=" and ".join(map(_told, budgets)),
        facts=_facts(results, budgets),
        drawings=[rows_drawing(), layers_drawing(), epochs_drawing(_EPOCHS), alphas],
        ours=[OURS],
    )


def _told(budget: Budget) -> str:
    """`38.0 M BOPs`, `220 µs of predicted latency (table.json)`."""
    limit = numbers.cost(budget.cost, budget.limit)
    name = numbers.cost_name(budget.cost)
    text = f"{limit} {name}" if budget.cost == "bops" else f"{limit} of {name}"
    return f"{text} ({budget.source})" if budget.source else text


def _facts(results: Results, budgets: list[Budget]) -> list[Fact]:
    """The result in four numbers, and how it compares with the float row."""
    rows = {row.name: row for row in results.rows}
    if OURS not in rows:
        return []
    ours, reference = rows[OURS], rows.get("float")
    accuracy, size, latency, bops = "test accuracy", "file size", "median latency", "BOPs"
    if reference is not None:
        accuracy += points_against(reference.test_accuracy, ours.test_accuracy)
        size += against(reference.file_bytes, ours.file_bytes, "smaller")
        latency += against(reference.latency_us, ours.latency_us, "faster")
    for budget in budgets:
        share = f"{numbers.ratio(budget.found / budget.limit)} the budget" if budget.limit else ""
        found = numbers.cost(budget.cost, budget.found)
        if budget.cost == "bops":
            bops += f", {share}" if share else ""
        elif budget.cost == "latency_us":
            latency += f"; {found} predicted" + (f", {share}" if share else "")
        elif budget.cost == "size_bytes":
            size += f"; {share}" if share else ""
    return [
        Fact(numbers.percent(ours.test_accuracy), accuracy),
        Fact(numbers.count(ours.bops), bops),
        Fact(numbers.size(ours.file_bytes), size),
        Fact(numbers.duration(ours.latency_us), latency),
    ]

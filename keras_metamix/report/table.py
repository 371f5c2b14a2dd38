"""The results as a terminal table and as Markdown; every rendering shows the same cells."""

from collections.abc import Container, Sequence

from rich.table import Table
from rich.text import Text

from keras_metamix.report import numbers
from keras_metamix.report.results import Parity, Results, Row

LAYER_HEADERS = (
    "layer", "kind", "MACs", "BOPs", "activation bits", "weight bits", "weights", "container",
    "chosen by",
)  # fmt: skip
NO_LAYERS = "No layers were recorded."

_MARKDOWN_ESCAPES = str.maketrans(
    {"<": "&lt;", ">": "&gt;", "&": "&amp;", "\n": " "}
    | {character: f"\\{character}" for character in "\\|*`[]"}
)


def result_headers(results: Results) -> list[str]:
    """Column names of the results; the thread count is in the name when all rows share it."""
    threads = _shared_threads(results)
    latency = "latency" if threads is None else f"latency, {threads_text(threads)}"
    tested = [f"test {metric}" for metric in results.metrics]
    cycles = ["NPU cycles"] if _has_cycles(results) else []
    return ["model", *tested, "BOPs", "bits A/W", "file size", *cycles, latency, "parity"]


def result_cells(results: Results) -> list[list[str]]:
    """One list of formatted cells for each row of `results.rows`, not escaped."""
    show_threads = _shared_threads(results) is None
    target = next((budget.limit for budget in results.budgets if budget.cost == "bops"), None)
    return [
        [
            row.name,
            *(numbers.percent(row.scores[metric]) for metric in results.metrics),
            bops_cell(row.bops, target),
            "/".join(numbers.bits(average) for average in row.average_bits),
            numbers.size(row.file_bytes),
            *([numbers.count(row.npu_cycles)] if _has_cycles(results) else []),
            latency_cell(row) + (f", {threads_text(row.threads)}" if show_threads else ""),
            parity_cell(row.parity),
        ]
        for row in results.rows
    ]


def bops_cell(bops: float | None, target: float | None) -> str:
    """BOPs and their ratio to the budget: `12.1 M (0.98x target)`."""
    if bops is None or not target:
        return numbers.count(bops)
    return f"{numbers.count(bops)} ({numbers.ratio(bops / target)} target)"


def latency_cell(row: Row) -> str:
    """The median latency and its spread: `1.23 ms (1.20 ms to 1.31 ms)`."""
    low, high = (numbers.duration(bound) for bound in row.latency_spread_us)
    if low.split()[1:] == high.split()[1:]:
        low = low.split()[0]  # one unit for both ends reads better
    return f"{numbers.duration(row.latency_us)} ({low} to {high})"


def parity_cell(parity: Parity | None) -> str:
    """How many outputs of the file differ from the trained model's, and by how much."""
    if parity is None:
        return numbers.MISSING
    cell = f"{parity.differing:,} of {parity.outputs:,} differ"
    if parity.differing:
        agreement = numbers.percent(parity.top1_agreement)
        cell += f", at most {parity.max_lsb} LSB, top-1 agrees for {agreement}"
    return cell if parity.delegated else f"{cell}, not fully delegated"


def layer_cells(results: Results) -> list[list[str]]:
    """One list of formatted cells for each layer, in network order, not escaped.

    Bits that the budget moved away from the most probable candidate name it too.
    """
    cells, search = [], results.search
    activations = search.argmax_bits if search else {}
    weights = search.argmax_weight_bits if search else {}

    def words(bits: int, argmax: int | None) -> str:
        return str(bits) if argmax in (None, bits) else f"{bits} (argmax {argmax})"

    for layer in results.layers:
        found = activations if layer.searched else {}, weights if layer.searched else {}
        cells.append([
            layer.name,
            layer.kind,
            numbers.count(layer.macs),
            numbers.count(layer.bops),
            words(layer.activation_bits, found[0].get(layer.name)),
            words(layer.weight_bits, found[1].get(layer.name)),
            numbers.count(layer.weights),
            layer.container,
            "search" if layer.searched else "rule",
        ])  # fmt: skip
    return cells


def results_table(results: Results) -> Table:
    """The results for the terminal.

    Args:
        results: of a run.

    Returns:
        A `rich` table with one row for each model. Names are shown verbatim, never as markup.
    """
    cells = result_headers(results), result_cells(results)
    return terminal(results.title, *cells, _right(results))


def terminal(
    title: str,
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    right: Container[int] = (),
) -> Table:
    """A `rich` table; texts verbatim, never as markup; `right`: the columns of numbers."""
    table = Table(title=Text(title) if title else None, title_justify="left")
    for index, header in enumerate(headers):
        table.add_column(
            Text(header), justify="right" if index in right else "left", overflow="fold"
        )
    for cells in rows:
        table.add_row(*map(Text, cells))
    return table


def results_markdown(results: Results) -> str:
    """The results as a Markdown table that ends in a newline."""
    return markdown(result_headers(results), result_cells(results), _right(results))


def _right(results: Results) -> range:
    """The columns of numbers: scores, BOPs, bits, size, cycles."""
    return range(1, len(results.metrics) + 4 + _has_cycles(results))


def _has_cycles(results: Results) -> bool:
    return any(row.npu_cycles is not None for row in results.rows)


def layers_markdown(results: Results) -> str:
    """The layers as a Markdown table that ends in a newline, or a sentence if there are none."""
    if not results.layers:
        return f"{NO_LAYERS}\n"
    return markdown(LAYER_HEADERS, layer_cells(results), range(2, 7))


def markdown(headers: Sequence[str], rows: Sequence[Sequence[str]], right: range) -> str:
    """A GitHub-flavoured table with escaped cells; `right`: the columns of numbers."""
    rule = ["---:" if index in right else "---" for index in range(len(headers))]
    escaped = [[cell.translate(_MARKDOWN_ESCAPES) for cell in row] for row in rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [headers, rule, *escaped])


def threads_text(number: int) -> str:
    """`1 thread`, `2 threads`."""
    return f"{number} thread" if number == 1 else f"{number} threads"


def _shared_threads(results: Results) -> int | None:
    """The thread count of every row, or None if they were not measured alike."""
    counts = {row.threads for row in results.rows}
    return counts.pop() if len(counts) == 1 else None

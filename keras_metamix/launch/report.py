"""Writes the HTML report of a run and prints its results.

    metamix-report RUN_DIR_or_metrics.json [--output=report.html] [--figures=DIR] [--analyse]

Reads `metrics.json` alone: no model, no data. Without `--output` the page goes beside the
metrics, as `report.html`. With `--analyse` it first trains and measures the run's float network for
some minutes, and puts what the figures of the MetaMix paper show into `metrics.json`.
"""

import dataclasses
import functools
import json
from pathlib import Path

from rich.console import Console

from keras_metamix.files import written_whole
from keras_metamix.launch.commands import option, parse
from keras_metamix.launch.messages import check_output, run_main
from keras_metamix.report import (
    Results,
    read_results,
    results_table,
    write_figures,
    write_report,
)


@dataclasses.dataclass(kw_only=True)
class Options:
    """Writes the HTML report of a run, prints its results."""

    source: Path = option("a run directory, or its metrics.json", positional=True)
    output: Path | None = option("the page; default: report.html beside the metrics", None)
    figures: Path | None = option(
        "a folder that takes each figure as a PNG too, and the metrics as JSON", None
    )
    analyse: bool = option(
        "first measures activation instability and the Hessian's traces on the run's networks and "
        "images, some minutes, into its metrics.json",
        False,
    )


def main(options: Options) -> None:
    """Writes the page, prints the results and the paths."""
    source: Path = options.source
    folder = source if source.is_dir() else source.parent
    results = read_results(source)
    output = options.output or folder / "report.html"
    check_output("--output", output)
    if options.figures:
        check_output("--figures", options.figures / "rows.png")
    if options.analyse:
        results = _analysed(source)
    written = [write_report(results, output)]
    if options.figures:
        written += write_figures(results, options.figures)
    Console().print(results_table(results))
    for path in written:
        print(path)


def _analysed(source: Path) -> Results:
    """Puts an analysis of the run's network into its metrics.json; the results with it."""
    # Here: data sets and training take time to load.
    from keras_metamix.launch.analysis import analyse

    file = source / "metrics.json" if source.is_dir() else source
    check_output("--analyse", file.with_name("metrics.json.new"))
    metrics = json.loads(file.read_bytes())
    metrics["analysis"] = dataclasses.asdict(analyse(file.parent))
    with written_whole(file) as temporary:
        temporary.write_text(json.dumps(metrics, indent=2) + "\n")
    return read_results(file)


parse_flags = functools.partial(parse, Options)
run = functools.partial(run_main, main, parse_flags)  # the entry point of the command

if __name__ == "__main__":
    run()

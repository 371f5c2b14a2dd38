"""Writes the HTML report of a run and prints its results.

    metamix-report RUN_DIR_or_metrics.json [--output=report.html] [--figures=DIR]

Reads `metrics.json` alone: no model, no data. Without `--output` the page goes beside the
metrics, as `report.html`.
"""

import dataclasses
import functools
from pathlib import Path

from rich.console import Console

from keras_metamix.launch.commands import option, parse
from keras_metamix.launch.messages import check_output, run_main
from keras_metamix.report import read_results, results_table, write_figures, write_report


@dataclasses.dataclass(kw_only=True)
class Options:
    """Writes the HTML report of a run, prints its results."""

    source: Path = option("a run directory, or its metrics.json", positional=True)
    output: Path | None = option("the page; default: report.html beside the metrics", None)
    figures: Path | None = option("a folder that takes each figure as a PNG too", None)


def main(options: Options) -> None:
    """Writes the page, prints the results and the paths."""
    source: Path = options.source
    folder = source if source.is_dir() else source.parent
    results = read_results(source)
    output = options.output or folder / "report.html"
    check_output("--output", output)
    if options.figures:
        check_output("--figures", options.figures / "rows.png")
    written = [write_report(results, output)]
    if options.figures:
        written += write_figures(results, options.figures)
    Console().print(results_table(results))
    for path in written:
        print(path)


parse_flags = functools.partial(parse, Options)
run = functools.partial(run_main, main, parse_flags)  # the entry point of the command

if __name__ == "__main__":
    run()

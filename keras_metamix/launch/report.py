"""Writes the HTML report of a run and prints its results.

    metamix-report RUN_DIR_or_metrics.json [--output=report.html] [--figures=DIR]

Reads `metrics.json` alone: no model, no data. Without `--output` the page goes beside the
metrics, as `report.html`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from absl.flags import argparse_flags
from rich.console import Console

from keras_metamix.launch.messages import check_output, run_main
from keras_metamix.report import read_metrics, results_table, write_figures, write_report


def parse_flags(argv: Sequence[str]) -> argparse.Namespace:
    """Parses the command line, the program's name first.

    Raises:
      SystemExit: the arguments are wrong; the usage is on stderr.
    """
    parser = argparse_flags.ArgumentParser(
        prog="metamix-report", description="Writes the HTML report of a run, prints its results."
    )
    add = parser.add_argument
    add("source", type=Path, help="a run directory, or its metrics.json")
    add("--output", type=Path, help="the page (default: report.html beside the metrics)")
    add("--figures", type=Path, help="a folder that takes each figure as a PNG too")
    return parser.parse_args(argv[1:])


def main(arguments: argparse.Namespace) -> None:
    """Writes the page, prints the results and the paths."""
    source: Path = arguments.source
    folder = source if source.is_dir() else source.parent
    metrics = read_metrics(source)
    output = arguments.output or folder / "report.html"
    check_output("--output", output)
    if arguments.figures:
        check_output("--figures", arguments.figures / "rows.png")
    written = [write_report(metrics, output)]
    if arguments.figures:
        written += write_figures(metrics, arguments.figures)
    Console().print(results_table(metrics))
    for path in written:
        print(path)


def run() -> None:
    """Entry point of `metamix-report`."""
    run_main(main, parse_flags)


if __name__ == "__main__":
    run()

"""Writes the HTML report of a run and prints its results.

    metamix-report RUN_DIR_or_metrics.json [--output=report.html]

Reads `metrics.json` and needs neither TensorFlow nor a model. Without `--output` the page goes
beside the metrics, as `report.html`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app
from absl.flags import argparse_flags
from rich.console import Console

from keras_metamix.report import read_metrics, results_table, write_report


def parse_flags(argv: Sequence[str]) -> argparse.Namespace:
    """Parses the command line.

    Args:
        argv: the program name and its arguments.

    Returns:
        `source` (run directory or metrics file) and `output` (file or None).

    Raises:
        SystemExit: the arguments are wrong; the usage is on stderr.
    """
    parser = argparse_flags.ArgumentParser(
        prog="metamix-report", description="Writes the HTML report of a run, prints its results."
    )
    parser.add_argument("source", type=Path, help="a run directory, or its metrics.json")
    parser.add_argument(
        "--output", type=Path, default=None, help="the page (default: report.html beside metrics)"
    )
    return parser.parse_args(argv[1:])


def main(arguments: argparse.Namespace) -> int:
    """Writes the page, prints the results and the path.

    Args:
        arguments: see `parse_flags`.

    Returns:
        0, or 1 after one line on stderr that says what is wrong with the input or the output.
    """
    folder = arguments.source if arguments.source.is_dir() else arguments.source.parent
    try:
        metrics = read_metrics(arguments.source)
    except (OSError, ValueError) as error:
        return _fail(error)
    try:
        written = write_report(metrics, arguments.output or folder / "report.html")
    except OSError as error:
        return _fail(error)
    Console().print(results_table(metrics))
    print(written)
    return 0


def run() -> None:
    """The entry point of the `metamix-report` command."""
    app.run(main, flags_parser=parse_flags)


def _fail(error: Exception) -> int:
    """Says what is wrong in one line on stderr; returns the exit status."""
    print(f"metamix-report: {' '.join(str(error).split())}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    run()

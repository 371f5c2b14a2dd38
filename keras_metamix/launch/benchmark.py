"""Times .tflite files, one image at a time.

    metamix-benchmark MODEL.tflite [MORE.tflite ...] [--threads=1] [--json=FILE]

The files take turns, one inference each, so that the machine's drift falls on all of them alike. Of
a file with operating points each has a row.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from absl.flags import argparse_flags
from rich.console import Console
from rich.table import Table
from rich.text import Text

from keras_metamix.files import written_whole
from keras_metamix.launch.messages import check_output, run_main
from keras_metamix.report import numbers
from metamix_tflite.latency import DEVICES, BenchmarkReport, benchmark_all
from metamix_tflite.read import read_operating_points
from metamix_tflite.run import Runner


def parse_flags(argv: Sequence[str]) -> argparse.Namespace:
    """Parses the command line, the program's name first.

    Raises:
      SystemExit: the arguments are wrong; the usage is on stderr.
    """
    parser = argparse_flags.ArgumentParser(
        prog="metamix-benchmark", description="Times .tflite files, one image at a time."
    )
    add = parser.add_argument
    add("files", type=Path, nargs="+", metavar="MODEL.tflite", help="the files, which take turns")
    add("--device", default="local", help=f"one of {', '.join(DEVICES)}; default: local")
    add("--threads", type=int, default=1, help="CPU threads; default: 1")
    add("--runs", type=int, default=200, help="timed inferences of each file; default: 200")
    add("--warmup", type=int, default=20, help="inferences before these; default: 20")
    add("--json", type=Path, metavar="FILE", help="write the measurements there as well")
    return parser.parse_args(argv[1:])


def main(arguments: argparse.Namespace) -> None:
    """Times the files that the arguments name and prints a table.

    Raises:
      ValueError, OSError: what is wrong with a file or flag, what was expected and found.
    """
    if arguments.json is not None:
        check_output("--json", arguments.json)
    files, signatures = {}, {}
    for path in arguments.files:
        flat, names = read_model(path)
        for name in names or [None]:
            label = str(path) if name is None else f"{path}:{name}"
            files[label] = flat
            if name is not None:
                signatures[label] = name
    counts = arguments.threads, arguments.runs, arguments.warmup
    reports = benchmark_all(files, arguments.device, *counts, signatures)
    Console().print(_table(reports))
    if arguments.json is not None:
        rows = [{"file": name, **dataclasses.asdict(report)} for name, report in reports.items()]
        with written_whole(arguments.json) as temporary:
            temporary.write_text(json.dumps(rows, indent=2) + "\n")


def read_model(path: Path) -> tuple[bytes, list[str]]:
    """The bytes of a .tflite that LiteRT can run, and the names of its operating points, if any.

    Raises:
      OSError, ValueError: no such file, or another kind of file; names it.
    """
    flat = path.read_bytes()
    try:
        points = list(read_operating_points(flat))
        for signature in points or [None]:
            Runner(flat, signature=signature)
    except ValueError as error:
        found = f"{len(flat)} bytes that LiteRT refuses: {error.__cause__ or error}"
        raise ValueError(f"{path}: expected a .tflite, found {found}") from error
    return flat, points


def _table(reports: dict[str, BenchmarkReport]) -> Table:
    """A row for each file; names verbatim, never as markup."""
    shared = next(iter(reports.values()))
    title = f"device {shared.device}, threads {shared.threads}, runs {shared.runs}"
    table = Table(title=title, title_justify="left")
    table.add_column("file", overflow="fold")
    for header in ("size", "median", "10 to 90 %"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("XNNPACK", no_wrap=True)
    for name, report in reports.items():
        table.add_row(
            Text(name),
            numbers.size(report.file_bytes),
            numbers.duration(report.median_us),
            f"{numbers.duration(report.low_us)} to {numbers.duration(report.high_us)}",
            "whole file" if report.delegated else f"{report.partitions} partitions",
        )
    return table


def run() -> None:
    """The entry point of the `metamix-benchmark` command."""
    run_main(main, parse_flags)


if __name__ == "__main__":
    run()

"""Measures .tflite files on a device, one image at a time.

    metamix-benchmark MODEL.tflite [MORE.tflite ...] [--device=local] [--threads=1] [--json=FILE]
    metamix-benchmark --compare=RUN [--output=RUN/comparison] [--qat_epochs=N]

Of a file with operating points each has a row. On the local machine the files take turns, one
inference each, so that its drift falls on all of them alike; docs/devices has the other devices.
--compare makes and measures what other tools make of the same model, see docs/devices/local.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl.flags import argparse_flags
from rich.console import Console
from rich.table import Table
from rich.text import Text

from keras_metamix.files import written_whole
from keras_metamix.launch.device_table import device_table
from keras_metamix.launch.messages import check_output, run_main
from keras_metamix.report import numbers
from metamix_tflite import devices
from metamix_tflite.latency import BenchmarkReport, benchmark_all
from metamix_tflite.read import only_signature, read_operating_points
from metamix_tflite.run import Runner

LOCAL = "local"
DEVICES = (LOCAL, *devices.MODULES)
_NO_OPTIONS = ("files", "device", "json", "compare")


def parse_flags(argv: Sequence[str]) -> argparse.Namespace:
    """Parses the command line, the program's name first.

    Raises:
      SystemExit: the arguments are wrong; the usage is on stderr.
    """
    parser = argparse_flags.ArgumentParser(
        prog="metamix-benchmark", description="Measures .tflite files on a device."
    )
    add = parser.add_argument
    add("files", type=Path, nargs="*", metavar="MODEL.tflite", help="the files")
    add("--device", default=LOCAL, help=f"one of {', '.join(DEVICES)}; default: local")
    add("--json", type=Path, metavar="FILE", help="write the measurements there as well")
    _add_options(parser)
    _add_comparison(parser)
    arguments = parser.parse_args(argv[1:])
    if arguments.compare is None and not arguments.files:
        parser.error("expected a MODEL.tflite, or --compare=RUN")
    return arguments


def _add_comparison(parser: argparse.ArgumentParser) -> None:
    """Flags of --compare."""
    options = parser.add_argument_group("side by side, on the local machine")
    add = options.add_argument
    add(
        "--compare",
        type=Path,
        metavar="RUN",
        help="the folder of a metamix-train run: its model as float, int8 by three tools, w4a8, "
        "and ours; takes --threads, --runs and --warmup too",
    )
    settings: dict[str, Any] = {"default": argparse.SUPPRESS}
    add(
        "--output",
        type=Path,
        metavar="NAME",
        help="writes NAME.md, .json and .png; default: RUN/comparison",
        **settings,
    )
    add("--qat_epochs", type=int, help="of tfmot; default: as many as ours took", **settings)
    add("--calibration_images", type=int, help="training images; default: 200", **settings)


def _add_options(parser: argparse.ArgumentParser) -> None:
    """Flags that some devices take: absent unless given, so that each device has its defaults."""
    options = parser.add_argument_group("of some devices")

    def add(flag: str, **settings: Any) -> None:
        options.add_argument(flag, default=argparse.SUPPRESS, **settings)

    add("--threads", type=int, help="CPU threads; default: 1")
    add(
        "--runs",
        type=int,
        help="timed inferences of each file; local, edgetpu: 200, android: 50, micro: 20",
    )
    add("--warmup", type=int, help="inferences before these; local, edgetpu: 20, android: 5")
    add("--timeout", type=int, help="all but local: seconds for one file; 600")
    add("--serial", action="append", help="android: a phone of `adb devices`; once for each")
    add("--delegates", type=_names, help="android: of cpu,xnnpack,gpu,nnapi,hexagon,npu; all")
    add("--precision", help="gpu: float32 or float16; default: float32")
    add("--kernels", type=_names, help="local, arm64: of xnnpack,builtin,reference; xnnpack")
    add("--cpus", type=_names, help="arm64: of cortex-a53,neoverse-n1,armv8.6; default: all")
    add("--arm64_root", type=Path, metavar="DIR", help="arm64: folder of the emulated system")
    add("--vulkan_icd", type=Path, metavar="FILE", help="gpu: the .json of a Vulkan driver")
    add("--binary", type=Path, metavar="FILE", help="android: TensorFlow's benchmark_model")


def _names(text: str) -> list[str]:
    """The names of a comma-separated list."""
    return text.split(",")


def main(arguments: argparse.Namespace) -> None:
    """Measures the files that the arguments name and prints a table.

    Raises:
      ValueError, OSError: what is wrong with a file or flag, what was expected and found; or what
        the device lacks.
    """
    given = vars(arguments)
    options = {name: given[name] for name in given if name not in _NO_OPTIONS}
    if arguments.compare is not None:
        _compare(arguments, options)
        return
    for name in set(options) & {"output", "qat_epochs", "calibration_images"}:
        raise ValueError(f"--{name}: expected --compare=RUN beside it.")
    if arguments.device not in DEVICES:
        expected = f"expected one of {', '.join(DEVICES)}"
        raise ValueError(f"--device: {expected}, found {arguments.device!r}.")
    if arguments.json is not None:
        check_output("--json", arguments.json)
    run = _measure_local if arguments.device == LOCAL else _measure
    table, notes, content = run(arguments.device, _read_files(arguments.files), options)
    Console().print(table)
    for note in notes:
        print(note)
    if arguments.json is not None:
        with written_whole(arguments.json) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n")


def _compare(arguments: argparse.Namespace, options: dict[str, Any]) -> None:
    """The comparison of a run's model with other tools' files."""
    for flag, given in (
        ("MODEL.tflite", arguments.files),
        ("--json", arguments.json is not None),
        ("--device", arguments.device != LOCAL),
    ):
        if given:
            raise ValueError(f"--compare: expected no {flag} beside it.")
    from keras_metamix.launch import comparison  # here: matplotlib and data sets take time

    known = [field.name for field in dataclasses.fields(comparison.Options)]
    devices.check_options("local with --compare", known, options)
    table, written = comparison.run_comparison(arguments.compare, comparison.Options(**options))
    Console().print(table)
    for path in written:
        print(f"wrote {path}")


def _read_files(paths: list[Path]) -> dict[str, tuple[bytes, str | None]]:
    """File and signature by a label; of a file with operating points a label for each."""
    files = {}
    for path in paths:
        flat, names = read_model(path)
        for name in names or [None]:
            files[str(path) if name is None else f"{path}:{name}"] = flat, name
    return files


def _measure(
    device: str, files: dict[str, tuple[bytes, str | None]], options: dict[str, Any]
) -> tuple[Table, list[str], Any]:
    """Table, notes and JSON of a device."""
    flats = {label: only_signature(flat, name) for label, (flat, name) in files.items()}
    report = devices.measure(device, flats, **options)
    return device_table(report), report.notes, dataclasses.asdict(report)


def _measure_local(
    device: str, files: dict[str, tuple[bytes, str | None]], options: dict[str, Any]
) -> tuple[Table, list[str], Any]:
    """`_measure` of this machine, whose files, with each kernel set, take turns."""
    devices.check_options(device, ("threads", "runs", "warmup", "kernels"), options)
    flats, signatures, kernels = {}, {}, {}
    for chosen in options.pop("kernels", ["xnnpack"]):
        for label, (flat, name) in files.items():
            row = label, chosen
            flats[row], kernels[row] = flat, chosen
            if name is not None:
                signatures[row] = name
    reports = benchmark_all(flats, device, signatures=signatures, kernels=kernels, **options)
    rows = [{"file": label, **dataclasses.asdict(r)} for (label, _), r in reports.items()]
    return _table(reports), [], rows


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


def _table(reports: dict[tuple[str, str], BenchmarkReport]) -> Table:
    """A row for each file; names verbatim, never as markup."""
    shared = next(iter(reports.values()))
    title = f"device {shared.device}, threads {shared.threads}, runs {shared.runs}"
    table = Table(title=title, title_justify="left")
    table.add_column("file", overflow="fold")
    for header in ("size", "median", "10 to 90 %"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("XNNPACK", no_wrap=True)
    for (name, _), report in reports.items():
        table.add_row(
            Text(name),
            numbers.size(report.file_bytes),
            numbers.duration(report.median_us),
            f"{numbers.duration(report.low_us)} to {numbers.duration(report.high_us)}",
            _kernels(report),
        )
    return table


def _kernels(report: BenchmarkReport) -> str:
    """How much XNNPACK runs, or what runs in its place."""
    if report.kernels != "xnnpack":
        return f"no: {report.kernels}"
    return "whole file" if report.delegated else f"{report.partitions} partitions"


def run() -> None:
    """The entry point of the `metamix-benchmark` command."""
    run_main(main, parse_flags)


if __name__ == "__main__":
    run()

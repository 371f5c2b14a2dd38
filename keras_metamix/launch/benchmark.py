"""Measures .tflite files on a device, one image at a time.

    metamix-benchmark MODEL.tflite [MORE.tflite ...] [--device=local] [--threads=1] [--json=FILE]
    metamix-benchmark --compare=RUN [--output=RUN/comparison] [--qat_epochs=N]

Of a file with operating points each has a row. On the local machine the files take turns, one
inference each, so that its drift falls on all of them alike; docs/devices has the other devices.
--compare makes and measures what other tools make of the same model, see docs/devices/local.md.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

from rich.console import Console

from keras_metamix.files import written_whole
from keras_metamix.launch.commands import option, parse
from keras_metamix.launch.device_table import device_table
from keras_metamix.launch.messages import check_output, run_main
from keras_metamix.launch.predictions import beside, load_estimates
from keras_metamix.launch.profile_ethosu import ETHOSU
from keras_metamix.report.numbers import duration
from metamix_tflite import devices
from metamix_tflite.file_graph import CompiledFileError, VerificationError
from metamix_tflite.read.files import only_signature, read_operating_points, read_signatures
from metamix_tflite.run.latency import BenchmarkReport, benchmark_all
from metamix_tflite.run.runner import Runner
from metamix_tflite.verification.kernels import kernels_of

LOCAL = "local"
DEVICES = (LOCAL, *devices.MODULES)
Names = tuple[str, ...] | None


@dataclasses.dataclass(kw_only=True)
class Options:
    """Measures .tflite files on a device."""

    files: list[Path] = option("the files", [], "MODEL.tflite", positional=True)
    device: str = option(f"one of {', '.join(DEVICES)}", LOCAL)
    json: Path | None = option("write the measurements there as well", None, "FILE")
    threads: int | None = option("CPU threads; default: 1; web, build threads: 2", None)
    runs: int | None = option(
        "timed inferences of each file; local, edgetpu: 200, android, web: 50, micro: 20", None
    )
    warmup: int | None = option(
        "inferences before these; local, edgetpu: 20, android, web: 5",
        None,
    )
    timeout: int | None = option("all but local: seconds for one file; 600", None)
    serial: list[str] | None = option("android: a phone of `adb devices`; once for each", None)
    delegates: Names = option("android: of cpu,xnnpack,gpu,nnapi,hexagon,npu; all", None)
    precision: str | None = option("gpu: float32 or float16; default: float32", None)
    kernels: Names = option("local, arm64: of xnnpack,builtin,reference; xnnpack", None)
    cpus: Names = option("arm64: of cortex-a53,neoverse-n1,armv8.6; default: all", None)
    arm64_root: Path | None = option("arm64: folder of the emulated system", None, "DIR")
    instructions: bool | None = option("arm64: count those of an inference", None)
    vulkan_icd: Path | None = option("gpu: the .json of a Vulkan driver", None, "FILE")
    binary: Path | None = option("android: TensorFlow's benchmark_model", None, "FILE")
    accelerator: str | None = option(
        "ethosu: as Vela names it; ethos-u55-256. Of --compare: one to estimate cycles for", None
    )
    system_config: str | None = option("ethosu: a section of --vela_config; Arm's high end", None)
    memory_mode: str | None = option("ethosu: a section of --vela_config; of that system", None)
    optimise: str | None = option("ethosu: Performance or Size; Performance", None)
    vela_config: Path | None = option("ethosu: an .ini of Vela; Arm's", None, "FILE")
    latency_table: Path | None = option(
        "ethosu: of metamix-profile, to show what it predicts", None, "FILE"
    )
    litertjs: Path | None = option("web: npm's folder node_modules/@litertjs; of here", None, "DIR")
    browser: str | None = option("web: a Chromium; the one on PATH", None)
    host: str | None = option(
        "web: an address of this machine, to open in any browser; default: start a Chromium", None
    )
    port: int | None = option("web: of --host; a free one", None)
    builds: Names = option("web: of relaxed,compat,threads; default: all", None)
    compare: Path | None = option(
        "the folder of a metamix-train run: its model as float, int8 by three tools, w4a8, and "
        "ours, on this machine; takes --threads, --runs and --warmup too",
        None,
        "RUN",
    )
    output: Path | None = option(
        "of --compare: writes NAME.md, .json and .png; default: RUN/comparison", None, "NAME"
    )
    qat_epochs: int | None = option("of --compare: of tfmot; default: as many as ours took", None)
    calibration_images: int | None = option("of --compare: training images; default: 200", None)

    def __post_init__(self) -> None:
        if self.compare is None and not self.files:
            raise ValueError("expected a MODEL.tflite, or --compare=RUN")

    def given(self) -> dict[str, Any]:
        """Options of a device or of the comparison."""
        values = {k: v for k, v in vars(self).items() if v is not None}
        apart = ("files", "device", "json", "compare", "latency_table")
        return {k: v for k, v in values.items() if k not in apart}


def main(options: Options) -> None:
    """Measures the files that the options name and prints a table.

    Raises:
      ValueError, OSError: what is wrong with a file or flag, what was expected and found; or what
        the device lacks.
    """
    given = options.given()
    if options.compare is not None:
        _compare(options.compare, options, given)
        return
    for name in set(given) & {"output", "qat_epochs", "calibration_images"}:
        raise ValueError(f"--{name}: expected --compare=RUN beside it.")
    if options.device not in DEVICES:
        expected = f"expected one of {', '.join(DEVICES)}"
        raise ValueError(f"--device: {expected}, found {options.device!r}.")
    if options.json is not None:
        check_output("--json", options.json)
    table = None
    if options.latency_table is not None:
        if options.device != ETHOSU:
            raise ValueError(f"--latency_table: expected --device={ETHOSU} beside it.")
        table = load_estimates(options.latency_table, given)
    files = _read_files(options.files)
    if options.device == LOCAL:
        report, content = _measure_local(files, given)
    else:
        flats = {label: only_signature(flat, name) for label, (flat, name) in files.items()}
        report = devices.measure(options.device, flats, **given)
        if table:
            report = beside(report, flats, table)
        content = dataclasses.asdict(report)
    Console().print(device_table(report))
    for note in report.notes:
        print(note)
    if options.json is not None:
        with written_whole(options.json) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n")


def _compare(run: Path, options: Options, given: dict[str, Any]) -> None:
    """The comparison of a run's model with other tools' files."""
    for flag, unfit in (
        ("MODEL.tflite", options.files),
        ("--json", options.json is not None),
        ("--device", options.device != LOCAL),
    ):
        if unfit:
            raise ValueError(f"--compare: expected no {flag} beside it.")
    # Here: matplotlib and data sets take time.
    from keras_metamix.launch.comparison import run as comparison

    known = ("threads", "runs", "warmup", "output", "qat_epochs", "calibration_images")
    known += ("accelerator",)
    devices.check_options("local with --compare", known, given)
    table, written = comparison.run_comparison(run, **given)
    Console().print(table)
    for path in written:
        print(f"wrote {path}")


def _read_files(paths: list[Path]) -> dict[str, tuple[bytes, str | None]]:
    """File and signature by a label; of a file with operating points a label for each.

    Raises:
      OSError, ValueError: no such file, or none that LiteRT can run; names it.
    """
    files = {}
    for path in paths:
        flat = path.read_bytes()
        try:
            for name in list(read_operating_points(flat)) or [None]:
                Runner(flat, signature=name)
                files[str(path) if name is None else f"{path}:{name}"] = flat, name
        except CompiledFileError as error:
            raise ValueError(f"{path}: {error}") from error
        except ValueError as error:
            found = f"{len(flat)} bytes that LiteRT refuses: {error.__cause__ or error}"
            raise ValueError(f"{path}: expected a .tflite, found {found}") from error
    return files


def _measure_local(
    files: dict[str, tuple[bytes, str | None]], options: dict[str, Any]
) -> tuple[devices.DeviceReport, list[dict[str, Any]]]:
    """This machine's report and JSON; the files, with each kernel set, take turns."""
    devices.check_options(LOCAL, ("threads", "runs", "warmup", "kernels"), options)
    flats, signatures, kernels = {}, {}, {}
    for chosen in options.pop("kernels", ["xnnpack"]):
        for label, (flat, name) in files.items():
            row = label, chosen
            flats[row], kernels[row] = flat, chosen
            if name is not None:
                signatures[row] = name
    reports = benchmark_all(flats, LOCAL, signatures=signatures, kernels=kernels, **options)
    rows = [
        {
            "file": label,
            "size_bytes": report.file_bytes,
            "median_us": report.median_us,
            "10 to 90 %": f"{duration(report.low_us)} to {duration(report.high_us)}",
            "XNNPACK": _run_by(report),
        }
        for (label, _), report in reports.items()
    ]
    shared = next(iter(reports.values()))
    title = f"{LOCAL}, threads {shared.threads}, runs {shared.runs}"
    content = [{"file": label, **dataclasses.asdict(r)} for (label, _), r in reports.items()]
    return devices.DeviceReport(title, rows, _kernels(files)), content


def _kernels(files: dict[str, tuple[bytes, str | None]]) -> list[str]:
    """Of each file of ours the kernels that its target has for its layers, a line."""
    lines = []
    for label, (flat, name) in files.items():
        try:
            graphs = read_signatures(flat)
        except VerificationError:  # LiteRT runs strangers' files that are none of `convert`'s
            continue
        graph = graphs[name] if name is not None else next(iter(graphs.values()))
        if graph.metadata and (found := kernels_of(graph)):
            lines.append(f"{label}: target {graph.metadata['target']}: {'; '.join(found)}")
    return lines


def _run_by(report: BenchmarkReport) -> str:
    """How much XNNPACK runs, or what runs in its place."""
    if report.kernels != "xnnpack":
        return f"no: {report.kernels}"
    return "whole file" if report.delegated else f"{report.partitions} partitions"


parse_flags = functools.partial(parse, Options)
run = functools.partial(run_main, main, parse_flags)  # the entry point of the command

if __name__ == "__main__":
    run()

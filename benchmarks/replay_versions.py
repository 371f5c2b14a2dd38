"""Replays files with other versions of LiteRT: does each give the integers that Keras computed?

    python benchmarks/replay_versions.py --versions=2.1.6,2.3.0@python3.13 [MODEL.tflite ...]

Each version gets a temporary environment of pip's ai-edge-litert of that version (one with "dev" in
its name is ai-edge-litert-nightly's), NumPy and this package's wheel without its dependencies, as
docs/devices/verify.md says, and `metamix-verify` runs there on each file with each kernel set.
Without files it replays those of golden_files.py, whose making takes TensorFlow here. The table
that it prints is Markdown.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parent.parent
SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "keras_metamix", "tflite")
KERNELS = ("xnnpack", "builtin", "reference")


@dataclasses.dataclass(frozen=True)
class Runtime:
    """A version of LiteRT and the interpreter that runs it."""

    version: str
    python: str = sys.executable

    @classmethod
    def parse(cls, text: str) -> Runtime:
        """Reads "2.3.0", or "2.3.0@python3.13".

        Raises:
          ValueError: no version, or no such interpreter on PATH.
        """
        version, at, name = text.partition("@")
        if not version:
            raise ValueError(f"--versions: expected VERSION or VERSION@PYTHON, found {text!r}.")
        if not at:
            return cls(version)
        python = shutil.which(name)
        if python is None:
            raise ValueError(f"--versions: expected an interpreter on PATH, found no {name!r}.")
        return cls(version, python)

    @property
    def requirement(self) -> str:
        """What pip installs."""
        package = "ai-edge-litert-nightly" if "dev" in self.version else "ai-edge-litert"
        return f"{package}=={self.version}"


@dataclasses.dataclass(frozen=True)
class Replay:
    """What one kernel set of a runtime made of a file, all its signatures together.

    Attributes:
      file: its name.
      kernels: "xnnpack", "builtin" or "reference".
      container: of the file's weights; "" where nothing ran.
      values, differing, max_steps: see ReplayReport.
      whole: whether one XNNPACK partition ran all of each signature.
      refused: why it did not run, in a line; "" where it did.
    """

    file: str
    kernels: str
    container: str = ""
    values: int = 0
    differing: int = 0
    max_steps: int = 0
    whole: bool = False
    refused: str = ""


@dataclasses.dataclass(frozen=True)
class Found:
    """Replays of one runtime; `versions` are what `metamix-verify` tells of it."""

    versions: Mapping[str, str]
    replays: Sequence[Replay]


def measure(versions: Sequence[str], files: Sequence[Path]) -> dict[str, Found]:
    """Replays files, or those of golden_files.py, with each version.

    Raises:
      ValueError: an unknown interpreter.
      OSError: no such file, or a wheel or an environment that cannot be made; says why.
    """
    runtimes = {text: Runtime.parse(text) for text in versions}
    if missing := [str(file) for file in files if not file.is_file()]:
        raise FileNotFoundError(f"Expected .tflite files, found no {', '.join(missing)}.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = build_wheel(folder)
        pythons = {
            text: make_environment(runtime, wheel, folder / str(number))
            for number, (text, runtime) in enumerate(runtimes.items())
        }
        files = files or make_files(folder / "files")
        return {text: replay_files([python, "-I"], files) for text, python in pythons.items()}


def make_files(folder: Path) -> list[Path]:
    """The files of golden_files.py."""
    import golden_files  # here: it takes TensorFlow and Keras

    return golden_files.write_files(folder)


def build_wheel(folder: Path) -> Path:
    """This package's wheel, built from a copy: the checkout's `build/` has no part in it."""
    copy = folder / "source"
    copy.mkdir()
    for name in SOURCES:
        source = TOP / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy)
    pip(sys.executable, "wheel", "--no-deps", f"--wheel-dir={folder}", copy)
    (wheel,) = folder.glob("*.whl")
    return wheel


def make_environment(runtime: Runtime, wheel: Path, folder: Path) -> Path:
    """Makes an environment of a runtime in a new folder and returns its interpreter.

    Raises:
      OSError: it cannot be made; says why.
    """
    run(runtime.python, "-m", "venv", folder)
    python = folder / "bin" / "python"
    pip(python, "install", "--only-binary=:all:", runtime.requirement, "numpy")
    pip(python, "install", "--no-deps", wheel)
    return python


def replay_files(python: Sequence[str | Path], files: Sequence[Path]) -> Found:
    """Replays each file with each kernel set; `python` is the command of an interpreter."""
    versions: dict[str, str] = {}
    replays: list[Replay] = []
    for file in files:
        content = verified(python, file)
        if isinstance(content, str):
            replays += [Replay(file.stem, kernels, refused=content) for kernels in KERNELS]
            continue
        versions = content["runtime"]
        for kernels in KERNELS:
            rows = [row for row in content["replays"] if row["kernels"] == kernels]
            replays.append(
                Replay(
                    file.stem,
                    kernels,
                    content["weight_container"],
                    sum(row["values"] for row in rows),
                    sum(row["differing"] for row in rows),
                    max((row["max_steps"] for row in rows), default=0),
                    all(row["delegated"] for row in rows),
                    content["refused"].get(kernels, ""),
                )
            )
    return Found(versions, replays)


def verified(python: Sequence[str | Path], file: Path) -> dict[str, Any] | str:
    """What `metamix-verify` writes of a file, or why it does not."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "found.json")
        command = [*python, "-m", "metamix_tflite.verification.main", file, f"--json={output}"]
        ended = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if output.is_file():
            return json.loads(output.read_text())
        return _reason(ended).removeprefix("metamix-verify: ").removeprefix(f"{file}: ")


# The files that promise to be exact with XNNPACK, those that do not, and other kernels.
COLUMNS: dict[str, Callable[[Replay], bool]] = {
    "XNNPACK": lambda r: r.kernels == "xnnpack" and r.container != "smallest",
    'XNNPACK, "smallest"': lambda r: r.kernels == "xnnpack" and r.container == "smallest",
    "builtin": lambda r: r.kernels == "builtin",
    "reference": lambda r: r.kernels == "reference",
}


def as_markdown(found: Mapping[str, Found]) -> str:
    """A row for each runtime, and below what the cells leave out."""
    head = ["ai-edge-litert", "NumPy", "Python", *COLUMNS]
    lines = [_row(*head), _row(*["---"] * 3, *["---:"] * len(COLUMNS))]
    for text, one in found.items():
        others = [one.versions.get(name, "") for name in ("numpy", "python")]
        cells = ([r for r in one.replays if fits(r)] for fits in COLUMNS.values())
        lines.append(_row(text.partition("@")[0], *others, *map(_cell, cells)))
    files = list(dict.fromkeys(r.file for one in found.values() for r in one.replays))
    lines += ["", f"{datetime.date.today()}, {cpu()}; {', '.join(files)}."]
    return "\n".join([*lines, *_remarks(found, len(files))]) + "\n"


def _cell(replays: Sequence[Replay]) -> str:
    """Values that differ, the largest difference in steps, and files that did not run."""
    ran = [r for r in replays if not r.refused]
    if not ran:
        return "refused" if replays else "-"
    text = f"{sum(r.differing for r in ran):,} of {sum(r.values for r in ran):,}"
    if steps := max(r.max_steps for r in ran):
        text += f", to {steps} steps"
    refused = len(replays) - len(ran)
    return f"{text}; {refused} of {len(replays)} files refused" if refused else text


def _remarks(found: Mapping[str, Found], files: int) -> list[str]:
    """Why files were refused, and where XNNPACK does not run all of one that it ought to."""
    remarks: dict[str, dict[str, list[str]]] = {}  # remark -> runtime and kernels -> files
    for text, one in found.items():
        for r in one.replays:
            if r.refused:
                remark = f"refused, {r.refused.rstrip('.')}"
            elif COLUMNS["XNNPACK"](r) and not r.whole:
                remark = "not one XNNPACK partition"
            else:
                continue
            remarks.setdefault(remark, {}).setdefault(f"{text} {r.kernels}", []).append(r.file)
    lines = []
    for remark, cases in remarks.items():
        by_files: dict[str, list[str]] = {}  # those of the same files together
        for text, of in cases.items():
            named = "all files" if len(of) == files else ", ".join(of)
            by_files.setdefault(named, []).append(text)
        listed = (f"{', '.join(texts)} ({of})" for of, texts in by_files.items())
        lines.append(f"- {remark}: {'; '.join(listed)}.")
    return lines


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def cpu() -> str:
    """This machine's CPU."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.is_file() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{next(models, 'unnamed CPU')}, {platform.machine()}"


def pip(python: str | Path, command: str, *arguments: str | Path) -> None:
    """Runs pip of an environment; raises OSError, which says why it failed."""
    quiet = ("--quiet", "--disable-pip-version-check")
    run(python, "-I", "-m", "pip", command, *quiet, *arguments)


def run(*command: str | Path) -> None:
    """Runs a program to its end; raises OSError, which says why it failed."""
    ended = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if ended.returncode:
        raise OSError(f"{' '.join(map(str, command))}: {_reason(ended)}")


def _reason(ended: subprocess.CompletedProcess[str]) -> str:
    """Why a process failed, in a line."""
    if ended.returncode < 0:
        return f"ended by {signal.Signals(-ended.returncode).name}"
    lines = ended.stderr.strip().splitlines()
    return lines[-1] if lines else f"status {ended.returncode}, without a word"


def main() -> None:
    """Replays what the command line names and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("files", nargs="*", type=Path, metavar="MODEL.tflite")
    add("--versions", required=True, help="VERSION or VERSION@PYTHON, with commas between")
    flags = parser.parse_args()
    try:
        print(as_markdown(measure(flags.versions.split(","), flags.files)), end="")
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()

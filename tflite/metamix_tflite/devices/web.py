"""A browser: LiteRT.js's WebAssembly builds, in headless Chromium here or in any browser by hand.

A web server of this process gives out the page of `verification.web_page`; the page replays the
golden inputs, times the files, and sends back outputs and times, which are judged here.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metamix_tflite.devices import Cell, DeviceReport, DeviceUnavailable, require_at_least
from metamix_tflite.devices.processes import ending
from metamix_tflite.devices.web_server import PageServer
from metamix_tflite.read.files import small_tensors
from metamix_tflite.verification.replay import compare
from metamix_tflite.verification.web_page import (
    BUILDS,
    LITERTJS,
    Plan,
    WebFile,
    find_litertjs,
    litertjs_version,
    page_content,
    web_file,
)

LOCALHOST = "127.0.0.1"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_REPORT = "report"
# Chromium's sandbox does not start as root nor in most containers; it sees this page alone.
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of a run in a browser.

    Attributes:
      litertjs: folder node_modules/@litertjs of npm; None for that of this folder or one above it.
      browser: a Chromium; None for the one on PATH.
      host: an address of this machine, at which any browser can open the page; None starts one.
      port: of that address; 0 for a free one.
      builds: of LiteRT.js, see `BUILDS`.
      threads: of the build "threads".
      runs, warmup: inferences of each file that are timed, and that are not.
      timeout: seconds for each file.
    """

    litertjs: Path | None = None
    browser: str | None = None
    host: str | None = None
    port: int = 0
    builds: Sequence[str] = tuple(BUILDS)
    threads: int = 2
    runs: int = 50
    warmup: int = 5
    timeout: int = 600

    def __post_init__(self):
        require_at_least(runs=(1, self.runs), warmup=(0, self.warmup), timeout=(1, self.timeout))
        require_at_least(threads=(1, self.threads), port=(0, self.port))
        if self.browser is not None and self.host is not None:
            raise ValueError("--browser: expected no --host beside it, which waits for a browser.")
        self.plan()

    def plan(self) -> Plan:
        """What the page is given."""
        return Plan(self.builds, self.threads, self.runs, self.warmup, _REPORT)


def measure(files: Mapping[str, bytes], options: Options) -> DeviceReport:
    """Each file in each build of LiteRT.js: values that differ from the golden ones, and latency.

    Raises:
      DeviceUnavailable: no browser, or no LiteRT.js.
      ValueError: a file whose inputs or outputs LiteRT.js does not take; names it.
      OSError: LiteRT.js fails on a file, or the browser does.
    """
    browser = None if options.host else find_browser(options.browser)
    try:
        litertjs = find_litertjs(options.litertjs)
        read = {name: _checked(name, flat) for name, flat in files.items()}
        content = page_content(read, litertjs, options.plan())
    except FileNotFoundError as error:
        raise DeviceUnavailable(str(error)) from error
    found = reported(content, browser, options, len(files))
    if "error" in found:
        raise OSError(f"the page fails: {found['error']}")
    rows, notes = _rows(read, found["builds"])
    notes = [f"LiteRT.js {litertjs_version(litertjs)} in {found['agent']}.", *notes]
    if litertjs_version(litertjs) != LITERTJS:
        notes.append(f"This was tested with LiteRT.js {LITERTJS}.")
    return DeviceReport("web", rows, [*notes, *_remarks(files, read, options)])


def _checked(name: str, flat: bytes) -> WebFile:
    try:
        return web_file(flat)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def find_browser(named: str | None) -> str:
    """The path of a Chromium: of that name, or the first of `BROWSERS` on PATH.

    Raises:
      DeviceUnavailable: there is none; says how to get one.
    """
    for candidate in BROWSERS if named is None else (named,):
        if path := shutil.which(candidate):
            return path
    missing = f"no {named}" if named else f"none of {', '.join(BROWSERS)} on PATH"
    raise DeviceUnavailable(
        f"no Chromium: found {missing}: install one (Debian: apt-get install chromium), name it by "
        f"--browser, or open the page in any browser with --host={LOCALHOST}."
    )


def reported(
    content: Mapping[str, bytes | Path], browser: str | None, options: Options, count: int
) -> dict[str, Any]:
    """Gives a page out, and returns what it sends back.

    Args:
      content: of `page_content`, with a `Plan` that reports.
      browser: of `find_browser`; None waits for one that somebody opens.
      options: address and time.
      count: of files, each of which adds to the time.

    Raises:
      OSError: the address is taken, the browser ends, or the time is over.
    """
    with PageServer(content, _REPORT, options.host or LOCALHOST, options.port) as server:
        late = f"the browser sent no result within {count * options.timeout} s (--timeout)."
        deadline = time.monotonic() + count * options.timeout
        if browser is None:
            print(f"Open {server.address} in a browser.", file=sys.stderr, flush=True)
            started = contextlib.nullcontext()
        else:
            started = _browsing(browser, server.address)
        with started as running:
            while not server.wait(1):
                if running is not None and running.poll() is not None and not server.wait(1):
                    raise OSError(f"{browser}: {ending(running.returncode)}, without a result.")
                if time.monotonic() > deadline:
                    raise OSError(late)
        return server.report()


@contextlib.contextmanager
def _browsing(browser: str, address: str) -> Iterator[subprocess.Popen[bytes]]:
    """A headless Chromium on a page, with a profile of its own; it ends with the block."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [browser, *_FLAGS, f"--user-data-dir={profile}", address]
        silent = subprocess.DEVNULL
        with subprocess.Popen(command, stdin=silent, stdout=silent, stderr=silent) as running:
            try:
                yield running
            finally:
                running.terminate()
                try:
                    running.wait(10)
                except subprocess.TimeoutExpired:
                    running.kill()


def _rows(
    files: Mapping[str, WebFile], builds: Sequence[Mapping[str, Any]]
) -> tuple[list[dict[str, Cell]], list[str]]:
    """A row for each file in each build, and of other builds why there is none.

    Raises:
      OSError: LiteRT.js fails on a file, or no build runs.
    """
    rows: list[dict[str, Cell]] = []
    notes = []
    for result in builds:
        build = result["build"]
        if "file" in result:
            raise OSError(f"{result['file']}: LiteRT.js ({build}) fails on it: {result['error']}")
        if "error" in result:
            notes.append(f"Build {build!r} does not run in this browser: {result['error']}")
            continue
        first = float(np.median(result["rows"][0]["times"]))
        for (name, file), found in zip(files.items(), result["rows"], strict=True):
            low, median, high = np.percentile(found["times"], [10, 50, 90])
            row: dict[str, Cell] = {"file": name, "build": build, **_replayed(file, found)}
            row |= {"median_us": 1e3 * median, "low_us": 1e3 * low, "high_us": 1e3 * high}
            row |= {"over_first_fraction": median / first}
            rows.append(row)
    if not rows:
        raise OSError(" ".join(notes))
    return rows, notes


def _replayed(file: WebFile, found: Mapping[str, Any]) -> dict[str, Cell]:
    """The outputs that the page sent beside the golden ones."""
    if file.golden is None:
        return {"values": None, "differing": None, "max_steps": None}
    images = iter(found["outputs"])

    def outputs(*_: np.ndarray) -> list[np.ndarray]:
        sent = zip(next(images), file.outputs, strict=True)
        return [np.frombuffer(base64.b64decode(text), end["type"]) for text, end in sent]

    report = compare(file.golden, outputs, delegated=False)
    return {"values": report.values, "differing": report.differing, "max_steps": report.max_steps}


def _remarks(
    files: Mapping[str, bytes], read: Mapping[str, WebFile], options: Options
) -> Iterator[str]:
    yield f"The files took turns, {options.runs} times in each build."
    if "threads" in options.builds:
        yield f"Build 'threads' has {options.threads} of them, and ran one file after the other."
    if any(file.golden is None for file in read.values()):
        yield "Files without golden outputs were compared with nothing."
    slow = [name for name, flat in files.items() if small_tensors(flat)]
    if slow:
        yield (
            f"{', '.join(slow)}: LiteRT.js has no SIMD kernels for weights of fewer than 8 bits; "
            'convert(target="web") holds the same integers, and takes a fraction of the time.'
        )

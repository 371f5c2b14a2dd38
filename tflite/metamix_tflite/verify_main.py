"""Checks a .tflite against what it declares, and replays its golden inputs on this machine.

    metamix-verify MODEL.tflite [--kernels=xnnpack,builtin,reference] [--threads=1] [--json=FILE]

Takes ai-edge-litert and NumPy, nothing else. The status is 1 where a file is not what it declares,
or where XNNPACK does not give the trained integers, unless it is of container "smallest", which
XNNPACK does not run all of.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metamix_tflite.file_graph import FileGraph
from metamix_tflite.read import read_signatures
from metamix_tflite.replay import ReplayReport, golden_of, replay
from metamix_tflite.run import KERNELS, check_kernels
from metamix_tflite.verification import verify

PROGRAM = "metamix-verify"


def parse_flags(argv: Sequence[str]) -> argparse.Namespace:
    """Parses the command line, without the program's name.

    Raises:
      SystemExit: the arguments are wrong; the usage is on stderr.
    """
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="Checks a .tflite against what it declares, and replays it."
    )
    add = parser.add_argument
    add("file", type=Path, metavar="MODEL.tflite", help="a file of metamix-export")
    add("--kernels", default=",".join(KERNELS), help=f"some of {', '.join(KERNELS)}; default: all")
    add("--threads", type=int, default=1, help="CPU threads; default: 1")
    add("--json", type=Path, metavar="FILE", help="write the findings there as well")
    return parser.parse_args(argv)


def main(arguments: argparse.Namespace) -> int:
    """Prints what was found and returns the exit status.

    Raises:
      ValueError, OSError, RuntimeError: what is wrong with the file or a flag.
    """
    kernels = arguments.kernels.split(",")
    for name in kernels:
        check_kernels(name)
    if arguments.threads < 1:
        raise ValueError(f"--threads: expected at least 1, found {arguments.threads}.")
    if arguments.json is not None and not arguments.json.parent.is_dir():
        raise FileNotFoundError(f"--json: expected a folder {arguments.json.parent}, found none.")
    flat = arguments.file.read_bytes()
    try:
        graphs = signatures_of(flat)
        reports = {name: replay(flat, name, arguments.threads) for name in kernels}
    except (RuntimeError, ValueError) as error:  # RuntimeError: what LiteRT raises
        raise ValueError(f"{arguments.file}: {error}") from error
    found = findings(flat, graphs, reports)
    print(f"{arguments.file}: " + "\n".join(_lines(found)))
    if arguments.json is not None:
        _write({"file": str(arguments.file), **found}, arguments.json)
    return 1 if found["exact"] is False else 0


def signatures_of(flat: bytes) -> dict[str, FileGraph]:
    """The signatures of a file, verified.

    Raises:
      VerificationError: it is not what it declares.
    """
    verify(flat)
    return read_signatures(flat)


def findings(
    flat: bytes, graphs: Mapping[str, FileGraph], reports: Mapping[str, Mapping[str, ReplayReport]]
) -> dict[str, Any]:
    """What `--json` holds.

    Args:
      flat: the file.
      graphs: of `signatures_of`.
      reports: of `replay` by kernels.

    Returns:
      Facts of the file, the replays, and "exact": whether XNNPACK gave the trained integers; None
      where it was not asked, or does not run all of such a file (container "smallest").
    """
    shared = next(iter(graphs.values())).metadata
    replays = [
        {"signature": name, "kernels": kernels, **dataclasses.asdict(report)}
        for kernels, by_name in reports.items()
        for name, report in by_name.items()
    ]
    exact = None
    if shared["weight_container"] != "smallest" and "xnnpack" in reports:
        exact = all(report.differing == 0 for report in reports["xnnpack"].values())
    return {
        "file_bytes": len(flat),
        "sha256": hashlib.sha256(flat).hexdigest(),
        **{key: shared[key] for key in ("weight_container", "io", "versions", "run")},
        "signatures": {name: _facts(graph) for name, graph in graphs.items()},
        "replays": replays,
        "exact": exact,
    }


def _facts(graph: FileGraph) -> dict[str, Any]:
    """BOPs, bits, and how many codes occur among the golden outputs: few would prove little."""
    layers = graph.metadata["layers"].values()
    codes = np.concatenate([e.reshape(-1) for e in golden_of(graph).expected])
    return {
        "bops": graph.metadata.get("bops"),
        "bits": {
            e["layer"]: [e["activation_bits"], e["weight_bits"]] for e in layers if e["layer"]
        },
        "golden_codes": int(np.unique(codes).size),
    }


def _lines(found: dict[str, Any]) -> list[str]:
    """The findings for a reader; the first line goes behind the file's name."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lines = [
        f"{found['file_bytes']:,} bytes, unchanged, as declared",
        f"  container {found['weight_container']}, io {found['io']}; {versions}",
        *(f"  {key}: {json.dumps(value)}" for key, value in found["run"].items()),
    ]
    for name, facts in found["signatures"].items():
        pairs = [*facts["bits"].values()]
        activation, weight = (sorted({p[i] for p in pairs}, reverse=True) for i in (0, 1))
        bops = "" if facts["bops"] is None else f", {facts['bops']:,} BOPs"
        bits = f"activations of {_listed(activation)} bits, weights of {_listed(weight)}"
        lines.append(f"  {name}: {len(pairs)} layers, {bits}{bops}")
        lines += [f"    {_replayed(r, facts)}" for r in found["replays"] if r["signature"] == name]
    verdict = {
        True: "exact: XNNPACK gives the trained integers",
        False: "NOT EXACT: XNNPACK differs from the trained integers",
        None: "nothing promised: exact is XNNPACK alone, on a file that it runs all of",
    }
    return [*lines, verdict[found["exact"]]]


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def _replayed(row: dict[str, Any], facts: dict[str, Any]) -> str:
    partition = ", one XNNPACK partition" if row["delegated"] else ""
    return (
        f"{row['kernels']:<9}  {row['differing']} of {row['values']} values differ, largest "
        f"{row['max_steps']} steps ({row['images']} inputs, {facts['golden_codes']} different "
        f"codes{partition})"
    )


def _write(content: dict[str, Any], path: Path) -> None:
    """Writes JSON, whole or not at all."""
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def run() -> None:
    """The entry point of the `metamix-verify` command."""
    try:
        sys.exit(main(parse_flags(sys.argv[1:])))
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"{PROGRAM}: {' '.join(str(error).split())}")


if __name__ == "__main__":
    run()

"""Checks a .tflite against what it declares, and replays its golden inputs on this machine.

    metamix-verify MODEL.tflite [--kernels=xnnpack,builtin,reference] [--threads=1] [--json=FILE]
    metamix-verify MODEL.tflite --page=FOLDER [--litertjs=node_modules/@litertjs]

Takes ai-edge-litert and NumPy, nothing else. The status is 1 where a file is not what it declares,
or where the kernels that its target promises the trained integers of do not give them: XNNPACK, or
LiteRT's reference kernels of a file for microcontrollers. Containers of which XNNPACK does not run
all promise nothing. With --page it also writes a page that replays the file in any browser.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ai_edge_litert
import numpy as np

from metamix_tflite.file_graph import FileGraph, named_signature, one_line
from metamix_tflite.read.files import changes
from metamix_tflite.run.interpreter import KERNELS, check_kernels
from metamix_tflite.verification.kernels import kernels_of, promised_kernels
from metamix_tflite.verification.replay import ReplayReport, golden_of, replay
from metamix_tflite.verification.verify import verify_contents
from metamix_tflite.verification.web_page import (
    Plan,
    find_litertjs,
    page_content,
    require_new_folder,
    web_signatures,
    write_page,
)


def parse_flags(argv: Sequence[str]) -> argparse.Namespace:
    """Parses the command line, without the program's name.

    Raises:
      SystemExit: the arguments are wrong; the usage is on stderr.
    """
    parser = argparse.ArgumentParser(
        prog="metamix-verify",
        description="Checks a .tflite against what it declares, and replays it.",
    )
    add = parser.add_argument
    add("file", type=Path, metavar="MODEL.tflite", help="a file of metamix-export")
    add("--kernels", default=",".join(KERNELS), help=f"some of {', '.join(KERNELS)}; default: all")
    add("--threads", type=int, default=1, help="CPU threads; default: 1")
    add("--json", type=Path, metavar="FILE", help="write the findings there as well")
    add("--page", type=Path, metavar="FOLDER", help="write a page that replays it in a browser")
    add("--litertjs", type=Path, metavar="DIR", help="of --page: npm's node_modules/@litertjs")
    return parser.parse_args(argv)


def main(arguments: argparse.Namespace) -> int:
    """Prints what was found and returns the exit status.

    Raises:
      ValueError, OSError: what is wrong with the file or a flag.
    """
    kernels = arguments.kernels.split(",")
    for name in kernels:
        check_kernels(name)
    if arguments.threads < 1:
        raise ValueError(f"--threads: expected at least 1, found {arguments.threads}.")
    if arguments.json is not None and not arguments.json.parent.is_dir():
        raise FileNotFoundError(f"--json: expected a folder {arguments.json.parent}, found none.")
    if arguments.litertjs is not None and arguments.page is None:
        raise ValueError("--litertjs: expected --page=FOLDER beside it.")
    flat = arguments.file.read_bytes()
    page, litertjs = arguments.page, None
    if page is not None:
        require_new_folder(page)
        litertjs = find_litertjs(arguments.litertjs)
    try:
        graphs, changed = signatures_of(flat), changes(flat)
        content = {}
        if litertjs is not None:
            shown = web_signatures(arguments.file.name, flat)
            content = page_content(shown, litertjs, Plan())
        reports, refused = replay_all(flat, kernels, arguments.threads)
    except ValueError as error:
        raise ValueError(f"{arguments.file}: {error}") from error
    found = findings(flat, graphs, reports, refused) | {"changes": changed}
    print(f"{arguments.file}: " + "\n".join(_lines(found)))
    if arguments.json is not None:
        _write({"file": str(arguments.file), **found}, arguments.json)
    if page is not None:
        write_page(page, content)
        serve = f"python -m http.server --bind 127.0.0.1 --directory {page}"
        print(f"wrote {page}: {serve}, and open http://127.0.0.1:8000/")
    return 1 if found["exact"] is False else 0


def signatures_of(flat: bytes) -> dict[str, FileGraph]:
    """The signatures of a file, verified, but for what others may have attached to it.

    Raises:
      VerificationError: it is not what it declares, or has no golden outputs that fit it.
    """
    graphs = verify_contents(flat)
    for name, graph in graphs.items():
        with named_signature(name, graphs):
            golden_of(graph)
    return graphs


_WHO = {
    "xnnpack": ("XNNPACK", "gives", "does not"),
    "reference": ("LiteRT's reference kernels", "give", "do not"),
}
_ALONE = "is XNNPACK alone, on a file that it runs all of"
Reports = dict[str, dict[str, ReplayReport]]  # by kernels and signature


def replay_all(flat: bytes, kernels: Sequence[str], threads: int) -> tuple[Reports, dict[str, str]]:
    """Replays a verified file; an older LiteRT may have an operator in some kernel sets alone.

    Returns:
      The reports, and of the other kernel sets why LiteRT does not run the file with them.

    Raises:
      ValueError: it runs with none.
    """
    reports, refused = {}, {}
    for name in kernels:
        try:
            reports[name] = replay(flat, name, threads)
        except (RuntimeError, ValueError) as error:  # RuntimeError: while it computes
            refused[name] = _said_by_litert(error)
    if not reports:
        reason = "; ".join(dict.fromkeys(refused.values()))
        raise ValueError(f"ai-edge-litert {ai_edge_litert.__version__} does not run it: {reason}")
    return reports, refused


def _said_by_litert(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())


def findings(
    flat: bytes, graphs: Mapping[str, FileGraph], reports: Reports, refused: Mapping[str, str]
) -> dict[str, Any]:
    """What `--json` holds.

    Args:
      flat: the file.
      graphs: of `signatures_of`.
      reports, refused: of `replay_all`.

    Returns:
      Facts of the file, the replays, and "exact": whether the kernels that promise it
      ("promised") gave the trained integers; None where they were not asked, or none promise it.
    """
    shared = next(iter(graphs.values())).metadata
    promised = min(promised_kernels(graph) for graph in graphs.values())
    replays = [
        {"signature": name, "kernels": kernels, **dataclasses.asdict(report)}
        for kernels, by_name in reports.items()
        for name, report in by_name.items()
    ]
    exact = None
    if promised in (*reports, *refused):
        found = reports.get(promised, {}).values()
        exact = promised in reports and all(report.differing == 0 for report in found)
    return {
        "file_bytes": len(flat),
        "sha256": hashlib.sha256(flat).hexdigest(),
        **{key: shared[key] for key in ("target", "weight_container", "io", "versions", "run")},
        "runtime": runtime_versions(),
        "signatures": {name: _facts(graph) for name, graph in graphs.items()},
        "replays": replays,
        "refused": dict(refused),
        "promised": promised,
        "exact": exact,
    }


def runtime_versions() -> dict[str, str]:
    """What runs files here: versions of LiteRT, NumPy and Python, and the kind of machine."""
    return {
        "ai-edge-litert": ai_edge_litert.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
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
        "kernels": kernels_of(graph),
    }


def _lines(found: dict[str, Any]) -> list[str]:
    """The findings for a reader; the first line goes behind the file's name."""
    changed = [f"    {change}" for change in map(one_line, found["changes"])]
    packed = "packed anew by others, graph, weights and declaration as written:"
    lines = [
        f"{found['file_bytes']:,} bytes, {packed if changed else 'unchanged, as declared'}",
        *changed,
        f"  target {found['target']}, container {found['weight_container']}, io {found['io']}",
        f"  written by {_versions(found['versions'])}",
        f"  replayed by {_versions(found['runtime'])}",
        *(f"  {key}: {json.dumps(value)}" for key, value in found["run"].items()),
    ]
    for name, facts in found["signatures"].items():
        pairs = [*facts["bits"].values()]
        activation, weight = (sorted({p[i] for p in pairs}, reverse=True) for i in (0, 1))
        bops = "" if facts["bops"] is None else f", {facts['bops']:,} BOPs"
        bits = f"activations of {_listed(activation)} bits, weights of {_listed(weight)}"
        lines.append(f"  {name}: {len(pairs)} layers, {bits}{bops}")
        lines += [f"    {line}" for line in facts["kernels"]]
        lines += [f"    {_replayed(r, facts)}" for r in found["replays"] if r["signature"] == name]
    lines += [f"  {kernels:<9}  refused: {reason}" for kernels, reason in found["refused"].items()]
    return [*lines, _verdict(found)]


def _verdict(found: dict[str, Any]) -> str:
    promised = found["promised"]
    if found["exact"] is None and not promised and found["target"] == "micro":
        return "nothing promised: some of its operators round in a way of their own on boards"
    if found["exact"] is None:
        only = "LiteRT's reference kernels are, on it" if promised == "reference" else _ALONE
        return f"nothing promised: exact {only}"
    who, gives, not_ = _WHO[promised]
    if found["exact"]:
        return f"exact: {who} {gives} the trained integers"
    whole = (r["delegated"] for r in found["replays"] if r["kernels"] == promised)
    if promised == "xnnpack" and not all(whole):
        return "NOT EXACT: this LiteRT's XNNPACK runs a part of it; a newer one may run all"
    return f"NOT EXACT: {who} {not_} give the trained integers"


def _versions(of: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in of.items())


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

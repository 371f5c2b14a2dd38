"""Reads the `metrics.json` of a run and says exactly what is wrong with a malformed one."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_NUMBER = (int, float)
_OPTIONAL_NUMBER = (int, float, type(None))

_TOP = {
    "title": (str,),
    "run": (dict,),
    "target_bops": _OPTIONAL_NUMBER,  # None: the bits were set by hand, there was no budget
    "rows": (list,),
    "layers": (list,),
    "argmax_bits": (dict,),
    "final_bits": (dict,),
    "epochs": (list,),
    "alphas": (dict,),
    "notes": (list,),
}
_RUN = {
    "config": (dict,),
    "date": (str,),
    "versions": (dict,),
    "machine": (str,),
    "command": (str,),
    "seconds": _NUMBER,
}
_ROW = {
    "name": (str,),
    "test_accuracy": _NUMBER,
    "bops": _OPTIONAL_NUMBER,
    "average_bits": (list, tuple),
    "file_bytes": (int,),
    "latency_us": _NUMBER,
    "latency_spread_us": (list, tuple),
    "threads": (int,),
    "parity": (dict, type(None)),
    "file": (str,),
}
_PARITY = {
    "differing": (int,),
    "outputs": (int,),
    "max_lsb": _NUMBER,
    "top1_agreement": _NUMBER,
    "delegated": (bool,),
}
_LAYER = {
    "name": (str,),
    "kind": (str,),
    "macs": (int,),
    "bops": (int,),
    "activation_bits": (int,),
    "weight_bits": (int,),
    "weights": (int,),
    "container": (str,),
    "searched": (bool,),
}
_EPOCH = {
    "epoch": (int,),
    "phase": (str,),
    "loss": _NUMBER,
    "accuracy": _NUMBER,
    "val_loss": _OPTIONAL_NUMBER,
    "val_accuracy": _OPTIONAL_NUMBER,
    "bops": _OPTIONAL_NUMBER,
    "seconds": _NUMBER,
}
# Only where the search was against a latency table; target_bops is None there.
_LATENCY_BUDGET = {
    "target_us": _NUMBER,
    "predicted_us": _NUMBER,  # at the chosen bits
    "table": (str,),  # its file
    "origin": (dict,),  # what it was measured on
}
_LATENCY_EPOCH = {"latency_us": _NUMBER}
_ALPHAS = {"candidates": (dict,), "history": (dict,), "steps": (list,)}
_SIGNED = ("loss", "val_loss")
_LARGEST = 1e100  # of any number: beyond, nothing is meant and the figures overflow
_JSON_NAMES = {
    str: "string", int: "integer", float: "number", bool: "boolean",
    dict: "object", list: "array", tuple: "array", type(None): "null",
}  # fmt: skip


def read_metrics(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads and checks a `metrics.json`.

    Args:
        path: the file, or the run directory that holds it as `metrics.json`.

    Returns:
        The metrics, as `validate_metrics` accepts them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON or not metrics; names the file, the key, what was expected and
            what was found.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "metrics.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file, expected the metrics.json of a run")
    try:
        metrics = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # of text that is not UTF-8, too
        raise ValueError(f"{file}: expected a JSON object, found invalid JSON: {error}") from error
    validate_metrics(metrics, str(file))
    return metrics


def validate_metrics(metrics: Any, source: str = "metrics") -> None:
    """Checks that `metrics` has every key that a report reads, with the type it needs.

    Args:
        metrics: the candidate.
        source: what to call it in messages, usually the file name.

    Raises:
        ValueError: names `source`, the key, what was expected and what was found.
    """
    _check(metrics, _TOP, source)
    _check(metrics["run"], _RUN, f"{source}: run")
    for index, row in enumerate(metrics["rows"]):
        where = f"{source}: rows[{index}]"
        _check(row, _ROW, where)
        _check_pair(row, "average_bits", where)
        _check_pair(row, "latency_spread_us", where)
        if row["parity"] is not None:
            _check(row["parity"], _PARITY, f"{where}.parity")
    for index, layer in enumerate(metrics["layers"]):
        _check(layer, _LAYER, f"{source}: layers[{index}]")
    epoch_schema = _EPOCH
    if "latency_budget" in metrics:
        _check(metrics["latency_budget"], _LATENCY_BUDGET, f"{source}: latency_budget")
        epoch_schema = _EPOCH | _LATENCY_EPOCH
    for index, epoch in enumerate(metrics["epochs"]):
        _check(epoch, epoch_schema, f"{source}: epochs[{index}]")
    if metrics["alphas"]:
        _check(metrics["alphas"], _ALPHAS, f"{source}: alphas")
        _check_history(metrics["alphas"], f"{source}: alphas")
    for index, note in enumerate(metrics["notes"]):
        if not isinstance(note, str):
            raise ValueError(f"{source}: notes[{index}]: expected string, found {_found(note)}")


def _check(value: Any, schema: Mapping[str, tuple[type, ...]], where: str) -> None:
    """Raises `ValueError` unless `value` is a dict with the keys and types of `schema`."""
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected object, found {_found(value)}")
    for key, kinds in schema.items():
        if key not in value:
            keys = ", ".join(map(str, value)) or "none"
            raise ValueError(
                f"{where}: missing key '{key}', expected {_expected(kinds)}; found keys: {keys}"
            )
        if not _has_kind(value[key], kinds):
            raise ValueError(
                f"{where}.{key}: expected {_expected(kinds)}, found {_found(value[key])}"
            )
        _check_size(value[key], f"{where}.{key}", negative=key in _SIGNED)


def _check_size(value: Any, where: str, negative: bool = False) -> None:
    """Raises `ValueError` for a number that is not finite, or below 0 where none may be."""
    if isinstance(value, (int, float)) and not (
        (-_LARGEST if negative else 0) <= value <= _LARGEST
    ):
        least = "" if negative else ", at least 0"
        raise ValueError(f"{where}: expected a finite number{least}, found {_found(value)}")


def _check_pair(row: Mapping[str, Any], key: str, where: str) -> None:
    """Raises `ValueError` unless `row[key]` is two numbers."""
    pair = row[key]
    if len(pair) != 2 or not all(_has_kind(entry, _NUMBER) for entry in pair):
        raise ValueError(f"{where}.{key}: expected two numbers, found {_found(pair)}")
    for entry in pair:
        _check_size(entry, f"{where}.{key}")


def _check_history(alphas: Mapping[str, Any], where: str) -> None:
    """Raises `ValueError` unless every layer has one probability per candidate and record."""
    records = len(alphas["steps"])
    for number in alphas["steps"]:
        if not _has_kind(number, (int,)):
            raise ValueError(f"{where}.steps: expected integers, found {_found(number)}")
    for name, history in alphas["history"].items():
        if name not in alphas["candidates"]:
            raise ValueError(f"{where}.candidates: missing key '{name}', expected its bit-widths")
        if not _is_table([alphas["candidates"][name]]) or not _is_table(history):
            raise ValueError(
                f"{where}.history['{name}']: expected a list of bit-widths and lists of "
                f"probabilities, found {_found(history)}"
            )
        width = len(alphas["candidates"][name])
        if len(history) != records or any(len(record) != width for record in history):
            shape = f"{len(history)} records of {sorted({len(record) for record in history})}"
            raise ValueError(
                f"{where}.history['{name}']: expected {records} records (one per step) of "
                f"{width} probabilities, found {shape}"
            )


def _is_table(rows: Any) -> bool:
    """Whether it is a list of lists of numbers."""
    return isinstance(rows, list) and all(
        isinstance(row, list) and all(_has_kind(entry, _NUMBER) for entry in row) for row in rows
    )


def _has_kind(value: Any, kinds: tuple[type, ...]) -> bool:
    """`isinstance`, except that a boolean is not a number."""
    return isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds)


def _expected(kinds: tuple[type, ...]) -> str:
    """The accepted types in JSON's words."""
    names = [_JSON_NAMES[kind] for kind in kinds if not (kind is int and float in kinds)]
    return " or ".join(dict.fromkeys(names))


def _found(value: Any) -> str:
    """The type of a value in JSON's words and the value itself, cut short."""
    text = repr(value)
    return f"{_JSON_NAMES.get(type(value), type(value).__name__)} {text[:60]}"

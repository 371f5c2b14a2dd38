"""`metamix-benchmark`: a row for each file, and one line for each mistake."""

import ast
import json
import os
from pathlib import Path

import pytest
from ai_edge_litert.tools import flatbuffer_utils

import metamix_tflite as mt
from keras_metamix.launch import benchmark

QUICK = ("--runs=3", "--warmup=1")


@pytest.fixture(scope="session")
def files(quantized):
    return {c: mt.convert(quantized, weight_container=c) for c in ("fast", "smallest")}


@pytest.fixture
def saved(folder, files):
    """The folder, with fast.tflite and smallest.tflite in it."""
    for name, flat in files.items():
        (folder / f"{name}.tflite").write_bytes(flat)
    return folder


@pytest.fixture
def fails(command, saved):
    """fails(*arguments) -> the error; nothing was printed or written."""

    def call(*arguments):
        before = set(saved.rglob("*"))
        status, out, err = command(benchmark, *arguments)
        assert (status, out, err.count("\n")) == (1, "", 1), err
        assert set(saved.rglob("*")) == before
        return err.partition(": ")[2]

    return call


def test_a_row_for_each_file(saved, files, command):
    flags = ("--device=local", "--threads=2", "--json=times.json")
    status, out, err = command(benchmark, "fast.tflite", "smallest.tflite", *QUICK, *flags)
    assert (status, err) == (0, "")
    assert out.splitlines()[0].rstrip() == "device local, threads 2, runs 3"
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines()]
    rows = [row for row in rows if row]
    assert [row[0] for row in rows] == ["fast.tflite", "smallest.tflite"]
    assert rows[0][-1] == "whole file" and rows[1][-1].endswith(" partitions")
    assert rows[0][1] == f"{len(files['fast']) / 1000:.2f} kB"
    assert all(row[2].endswith("s") and " to " in row[3] for row in rows)

    written = json.loads((saved / "times.json").read_text())
    assert [row["file"] for row in written] == ["fast.tflite", "smallest.tflite"]
    assert [row["file_bytes"] for row in written] == [len(flat) for flat in files.values()]
    assert [row["delegated"] for row in written] == [True, False]
    assert all(row["low_us"] <= row["median_us"] <= row["high_us"] for row in written)
    assert {(row["device"], row["threads"], row["runs"]) for row in written} == {("local", 2, 3)}


def test_another_device(saved, files, command, monkeypatch):
    monkeypatch.setenv("PATH", str(saved))  # no edgetpu_compiler: what the file itself tells
    flags = ("fast.tflite", "smallest.tflite", "--device=edgetpu", "--json=ops.json")
    status, out, err = command(benchmark, *flags)
    assert (status, err) == (0, "")
    assert out.splitlines()[0].rstrip() == "device edgetpu"
    written = json.loads((saved / "ops.json").read_text())
    assert written["device"] == "edgetpu"
    assert [*dict.fromkeys(row["file"] for row in written["rows"])] == [*flags[:2]]
    assert written["notes"] and all(note in out for note in written["notes"])


def test_operating_points_on_another_device(saved, command, monkeypatch, quantized):
    monkeypatch.setenv("PATH", str(saved))
    points = dict.fromkeys(("low", "high"), quantized.bit_assignment)
    (saved / "points.tflite").write_bytes(mt.convert(quantized, operating_points=points))
    status, _, err = command(benchmark, "points.tflite", "--device=edgetpu", "--json=ops.json")
    assert status == 0, err
    rows = json.loads((saved / "ops.json").read_text())["rows"]
    assert {row["file"] for row in rows} == {"points.tflite:low", "points.tflite:high"}


def test_what_a_device_lacks_is_one_line(fails, saved, monkeypatch):
    monkeypatch.setenv("PATH", str(saved))
    assert fails("fast.tflite", "--device=android").startswith("adb is not on PATH: install it")


def test_a_row_for_each_kernel_set(saved, command):
    flags = ("--kernels=xnnpack,builtin,reference", "--json=times.json")
    status, out, err = command(benchmark, "fast.tflite", *QUICK, *flags)
    assert (status, err) == (0, "")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines()]
    rows = [row for row in rows if row]
    assert [row[0] for row in rows] == ["fast.tflite"] * 3
    assert [row[-1] for row in rows] == ["whole file", "no: builtin", "no: reference"]
    written = json.loads((saved / "times.json").read_text())
    assert [row["kernels"] for row in written] == ["xnnpack", "builtin", "reference"]


def test_names_are_no_markup(saved, command):
    os.rename("fast.tflite", "[red]fast.tflite")
    assert "[red]fast.tflite" in command(benchmark, "[red]fast.tflite", *QUICK)[1]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--device=moon", "--device: expected one of local.*, found 'moon'"),
        ("--serial=phone", "--serial: device 'local' takes --threads, --runs, --warmup"),
        ("--kernels=fast", "kernels: expected one of .*'xnnpack'.*found 'fast'"),
        ("--threads=0", "threads: expected at least 1, found 0"),
        ("--json=no/times.json", "--json: expected a folder no, found none"),
        ("--json=.", r"--json: expected the name of a file, found the folder \."),
    ],
)
def test_a_bad_flag_is_named(fails, flag, message):
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(fails("fast.tflite", flag))


def test_a_missing_file_is_named(fails):
    assert "No such file or directory: 'none.tflite'" in fails("fast.tflite", "none.tflite")


@pytest.mark.parametrize("kind", ["empty", "text", "cut", "damaged"])
def test_another_kind_of_file_is_named(saved, files, fails, kind):
    flat = files["fast"]
    model = flatbuffer_utils.read_model_from_bytearray(bytearray(flat))
    model.subgraphs[0].operators[-1].outputs = [999]  # a tensor that is not there
    damaged = bytes(flatbuffer_utils.convert_object_to_bytearray(model))
    contents = {"empty": b"", "text": b"hello" * 9, "cut": flat[: len(flat) // 2]}
    contents["damaged"] = damaged
    (saved / "bad.tflite").write_bytes(contents[kind])
    error = fails("fast.tflite", "bad.tflite")
    found = f"found {len(contents[kind])} bytes that LiteRT refuses: "
    assert error.startswith(f"bad.tflite: expected a .tflite, {found}")


def test_the_command_itself_imports_no_framework():
    for node in ast.walk(ast.parse(Path(benchmark.__file__).read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            assert not {name.split(".")[0] for name in names} & {"keras", "tensorflow"}


def test_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        benchmark.parse_flags(["metamix-benchmark", "--help"])
    assert stopped.value.code == 0
    assert "--warmup" in capsys.readouterr().out

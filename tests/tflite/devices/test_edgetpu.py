"""The Edge TPU: what is read from a file, and what Coral's compiler says, which a script plays."""

import numpy as np
import pytest

import keras_metamix as kmm
import metamix_tflite as mt
from metamix_tflite import devices
from metamix_tflite.devices import edgetpu
from metamix_tflite.devices.edgetpu_compiler import CompilationError, compile_file, read_log
from metamix_tflite.devices.edgetpu_operators import refusal
from metamix_tflite.file_graph import FileGraph, FileOperator, FileTensor
from metamix_tflite.read.files import read_file

LOG = """Edge TPU Compiler version 16.0.384591198
Started a compilation timeout timer of 180 seconds.

Model compiled successfully in 1524 ms.

Input model: model.tflite
Input size: 4.24MiB
Output model: model_edgetpu.tflite
Output size: 5.57MiB
On-chip memory used for caching model parameters: 4.25MiB
On-chip memory remaining for caching model parameters: 3.29MiB
Off-chip memory used for streaming uncached model parameters: 0.00B
Number of Edge TPU subgraphs: 1
Total number of operations: 8
Operation log: model_edgetpu.log

Model successfully compiled but not all operations are supported by the Edge TPU.
Number of operations that will run on Edge TPU: 5
Number of operations that will run on CPU: 3

Operator                       Count      Status

ADD                            2          More than one subgraph is not supported
CONV_2D                        4          Mapped to Edge TPU
QUANTIZE                       1          Operation is otherwise supported, but not mapped due to \
some unspecified limitation
MAX_POOL_2D                    1          Mapped to Edge TPU
Compilation child process completed within timeout period.
Compilation succeeded!
"""
ROWS = [
    ("ADD", 2, "More than one subgraph is not supported"),
    ("CONV_2D", 4, "Mapped to Edge TPU"),
    (
        "QUANTIZE",
        1,
        "Operation is otherwise supported, but not mapped due to some unspecified limitation",
    ),
    ("MAX_POOL_2D", 1, "Mapped to Edge TPU"),
]


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """compiler(script): `edgetpu_compiler` on PATH, which copies the file and prints LOG."""

    def make(script=None):
        (tmp_path / "log").write_text(LOG)
        copies = f'[ "$1 $2" = "-s -o" ] && cp "$4" "$3/model_edgetpu.tflite" && cat {tmp_path}/log'
        path = tmp_path / "edgetpu_compiler"
        path.write_text(f"#!/bin/sh\n{script or copies}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        return str(path)

    return make


@pytest.fixture
def no_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))


def test_the_compilers_log():
    log = read_log(LOG)
    assert (log.version, log.subgraphs) == ("16.0.384591198", 1)
    assert (log.on_chip_bytes, log.off_chip_bytes) == (4.25 * 2**20, 0)
    assert list(log.operators) == ROWS


@pytest.mark.parametrize(
    ("size", "value"), [("1.75KiB", 1792), ("12.00B", 12), ("2GiB", 2**31), ("much", None)]
)
def test_sizes(size, value):
    assert read_log(LOG.replace("4.25MiB", size)).on_chip_bytes == value


def test_another_programs_output_has_no_rows():
    log = read_log("usage: edgetpu_compiler [options] model...\n")
    assert (log.version, log.operators, log.subgraphs) == ("unknown", (), None)


def test_compiled_files_are_reported(resnet, compiler):
    compiler()
    report = devices.measure("edgetpu", {"a": resnet[2], "b": resnet[2]})
    assert len(report.rows) == 2 * (1 + len(ROWS))
    whole, *operators = report.rows[: 1 + len(ROWS)]
    expected = {"file": "a", "operator": "all", "count": 8, "on_edge_tpu": 5, "subgraphs": 1}
    assert whole == whole | expected and whole["on_chip_bytes"] == 4.25 * 2**20
    for row, (name, count, status) in zip(operators, ROWS, strict=True):
        mapped = status == "Mapped to Edge TPU"
        assert row["operator"] == name and row["on_edge_tpu"] == (count if mapped else 0)
        assert row["why_not"] == ("" if mapped else status)
    assert report.notes[0] == "Compiled by edgetpu_compiler 16.0.384591198."


def test_without_the_runtime_nothing_is_timed(resnet, compiler, monkeypatch):
    compiler()
    monkeypatch.setattr(edgetpu, "RUNTIME", "libnone_edgetpu.so")
    report = devices.measure("edgetpu", {"a": resnet[2]})
    assert "median_us" not in report.rows[0]
    assert any(n.startswith("Not timed: libnone_edgetpu.so does not load") for n in report.notes)


def test_the_compiled_file_is_timed(resnet, compiler, monkeypatch):
    # The script's "compiled" file is the file, which LiteRT runs without Coral's delegate.
    compiler()
    monkeypatch.setattr(edgetpu, "edge_tpu", lambda: ([], ""))
    row = devices.measure("edgetpu", {"a": resnet[2]}, runs=5, warmup=1).rows[0]
    assert 0 < row["low_us"] <= row["median_us"] <= row["high_us"]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (
            "echo Edge TPU Compiler version 16.0; echo 'Invalid model: m.tflite'; "
            "echo 'Model not quantized'; exit 1",
            "Invalid model: m.tflite; Model not quantized",
        ),
        ("echo Edge TPU Compiler version 14.1; echo; echo 'Internal compiler error. Aborting! '; "
         "exit 1", "Internal compiler error. Aborting!"),
        ("echo Started a compilation timer; echo 'Compilation failed! '", "Compilation failed!"),
        ("exit 3", "exit status 3"),
    ],
)  # fmt: skip
def test_a_refused_file_is_a_row(resnet, compiler, script, message):
    compiler(script)
    (row,) = devices.measure("edgetpu", {"a": resnet[2]}).rows
    assert (row["operator"], row["on_edge_tpu"], row["why_not"]) == ("all", 0, message)


def test_a_compiler_that_does_not_end(resnet, compiler):
    path = compiler("exec sleep 30")
    with pytest.raises(OSError, match="no result after 1 s"):
        compile_file(path, resnet[2], 1)
    assert issubclass(CompilationError, ValueError)


@pytest.fixture(scope="module")
def converted(quantized, everything):
    return quantized(everything, 0)[0]


def test_a_report_without_the_compiler(converted, no_compiler):
    files = {io: mt.convert(converted, "edgetpu", io=io) for io in ("float32", "int8")}
    report = devices.measure("edgetpu", files)
    assert "edgetpu_compiler is not on PATH" in report.notes[0]
    for name, ends in (("float32", {"QUANTIZE", "DEQUANTIZE"}), ("int8", set())):
        whole, *rows = [row for row in report.rows if row["file"] == name]
        assert whole["count"] == sum(row["count"] for row in rows)
        assert whole["count"] == len(read_file(files[name]).operators)
        assert whole["on_edge_tpu"] == whole["count"] - 1 - len(ends)
        refused = {row["operator"]: row["why_not"] for row in rows if not row["on_edge_tpu"]}
        assert set(refused) == {"CONV_2D"} | ends
        assert refused["CONV_2D"].startswith("grouped")
        assert all('io="int8"' in refused[op] for op in ends)


def test_other_containers_are_refused_with_what_to_change(converted, no_compiler):
    rows = devices.measure("edgetpu", {"fast": mt.convert(converted)}).rows
    refused = [row["why_not"] for row in rows if row["operator"] == "FULLY_CONNECTED"]
    assert refused and all('target="edgetpu"' in reason for reason in refused)


def test_explain_says_the_same(converted, everything):
    graph = read_file(mt.convert(converted, "edgetpu"))
    taken = {graph.tensors[o.outputs[0]].name: not refusal(graph, o) for o in graph.operators}
    rows = [row for row in kmm.explain(everything).rows if row.operator]
    found = {row.name: row.edge_tpu for row in rows if row.name in taken}
    assert len(found) >= 13 and not found["grouped"]
    assert found == {name: taken[name] for name in found}


def tensor(name, kind="INT8", shape=(1, 4, 4, 8), scales=1, data=None):
    ones = np.ones(scales, np.float32)
    return FileTensor(name, shape, kind, ones, np.zeros(scales, np.int64), 0, data)


def reason(op, *inputs, output=None, activation="NONE"):
    tensors = [*inputs, output or tensor("y")]
    indices = tuple(range(len(inputs)))
    operator = FileOperator(op, indices, (len(inputs),), activation)
    return refusal(
        FileGraph(tensors, [operator], (0,), (len(inputs),), ("x",), ("y",), {}), operator
    )


KERNEL = np.ones((8, 1, 1, 8), np.int8)
VECTOR = {"shape": (1, 8)}


@pytest.mark.parametrize(
    ("expected", "found"),
    [
        ("", lambda: reason("CONV_2D", tensor("x"), tensor("w", shape=(8, 1, 1, 8), data=KERNEL))),
        ("Coral's list", lambda: reason("HARD_SWISH", tensor("x"))),
        ("computes in FLOAT32", lambda: reason("ADD", tensor("x", "FLOAT32"), tensor("z"))),
        ("computes in INT16", lambda: reason("MUL", tensor("x", "INT16"), tensor("z"))),
        ("no constant", lambda: reason("CONV_2D", tensor("x"), tensor("w"))),
        ("holds INT2 weights", lambda: reason("FULLY_CONNECTED", tensor("x"), tensor("w", "INT2"))),
        ("", lambda: reason("CONCATENATION", tensor("x"), tensor("z"))),
        ("RELU fused", lambda: reason("MAX_POOL_2D", tensor("x"), activation="RELU")),
        ("several images", lambda: reason("TANH", tensor("x", shape=(2, 4, 4, 8)))),
        ("scale for each channel", lambda: reason(
            "FULLY_CONNECTED", tensor("x", **VECTOR), tensor("w", scales=8, data=KERNEL),
            output=tensor("y", **VECTOR))),
        ("", lambda: reason(
            "FULLY_CONNECTED", tensor("x", **VECTOR), tensor("w", data=KERNEL),
            output=tensor("y", **VECTOR))),
        ("more than one dimension", lambda: reason(
            "FULLY_CONNECTED", tensor("x"), tensor("w", data=KERNEL))),
        ("strides other than 1", lambda: reason(
            "STRIDED_SLICE", tensor("x"), *[tensor(n, "INT32", (4,), data=np.array([0, 2, 2, 0]))
                                            for n in ("b", "e", "s")])),
    ],
)  # fmt: skip
def test_limits(expected, found):
    assert (expected in found()) if expected else found() == ""


def test_a_file_that_cannot_be_read_is_named(no_compiler):
    with pytest.raises(ValueError, match="odd: Expected the bytes of a .tflite"):
        devices.measure("edgetpu", {"odd": b"no file"})


@pytest.mark.parametrize("option", ["runs", "timeout"])
def test_bad_options_are_named(option):
    with pytest.raises(ValueError, match=f"{option}: expected at least 1, found 0"):
        devices.measure("edgetpu", {}, **{option: 0})

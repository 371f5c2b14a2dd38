"""Latency reports of the local machine."""

import dataclasses

import pytest

import metamix_tflite as mt
from metamix_tflite.run.latency import benchmark_all


def test_report(resnet):
    _, _, flat, _ = resnet
    report = mt.benchmark(flat, device="local", threads=1, runs=30, warmup=3)
    assert isinstance(report, mt.BenchmarkReport)
    assert (report.device, report.threads, report.runs) == ("local", 1, 30)
    assert report.file_bytes == len(flat)
    assert 0 < report.low_us <= report.median_us <= report.high_us
    assert report.delegated
    assert report.partitions == 1
    assert "one XNNPACK partition" in str(report)
    assert f"{len(flat)} bytes" in str(report)
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.median_us = 0.0


def test_int4_convolutions_are_reported_as_not_delegated(resnet):
    model, *_ = resnet
    report = mt.benchmark(mt.convert(model, weight_container="smallest"), runs=5, warmup=1)
    assert not report.delegated
    assert report.partitions != 1 or "one XNNPACK partition" not in str(report)


def test_several_files_and_integer_inputs(resnet):
    model, _, flat, _ = resnet
    files = {"float32": flat, "int8": mt.convert(model, io="int8")}
    reports = benchmark_all(files, runs=5, warmup=0)
    assert list(reports) == ["float32", "int8"]
    assert [r.file_bytes for r in reports.values()] == [len(f) for f in files.values()]


def test_kernel_sets(resnet):
    flat = resnet[2]
    report = mt.benchmark(flat, runs=3, warmup=0, kernels="reference")
    assert (report.kernels, report.delegated, report.partitions) == ("reference", False, 0)
    assert str(report).endswith(", reference kernels")
    files = {"a": flat, ("b", 2): flat}
    reports = benchmark_all(files, runs=3, warmup=0, kernels={("b", 2): "builtin"})
    assert [r.kernels for r in reports.values()] == ["xnnpack", "builtin"]
    assert [r.delegated for r in reports.values()] == [True, False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "moon"}, r"device: expected one of \('local'.*found 'moon'"),
        ({"kernels": "fast"}, "kernels: expected one of .*'reference'.*found 'fast'"),
        ({"threads": 0}, "threads: expected at least 1, found 0"),
        ({"runs": 0}, "runs: expected at least 1, found 0"),
        ({"warmup": -1}, "warmup: expected at least 0, found -1"),
    ],
)
def test_bad_arguments_are_named(arguments, message, resnet):
    with pytest.raises(ValueError, match=message):
        mt.benchmark(resnet[2], **arguments)


def test_not_a_file():
    with pytest.raises(ValueError, match="TFL3"):
        mt.benchmark(b"not a model", runs=1)

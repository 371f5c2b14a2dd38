"""The text of TFLite's benchmark_model, as its sources and users' logs have it."""

import pytest

from metamix_tflite.devices.benchmark_log import DELEGATES, read_log

START = """INFO: STARTING!
INFO: Log parameter values verbosely: [0]
INFO: Graph: [model.tflite]
INFO: Loaded model model.tflite
"""
TIMES = """INFO: The input model file size (MB): 0.0944
INFO: Initialized session in 6.395ms.
INFO: Running benchmark for at least 5 iterations and at least 0.5 seconds but terminate if \
exceeding 150 seconds.
INFO: count=153 first=2761 curr=2885 min=2605 max=18080 avg=3243.58 std=2165 p5=2630 median=2761 \
p95=5331

INFO: Running benchmark for at least 50 iterations and at least 1 seconds but terminate if \
exceeding 150 seconds.
INFO: count=337 first=2881 curr=2703 min=2605 max=20356 avg=2942.25 std=1190 p5=2647 median=2781 \
p95=3169

INFO: Inference timings in us: Init: 6395, First inference: 2761, Warmup (avg): 3243.58, \
Inference (avg): 2942.25
INFO: Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE
INFO: Memory footprint delta from the start of the tool (MB): init=39.4531 overall=40.5
"""
EXPECTED = {
    "average_us": 2942.25,
    "std_us": 1190,
    "least_us": 2605,
    "most_us": 20356,
    "runs": 337,
    "init_us": 6395,
    "memory_bytes": 40.5 * 2**20,
}
APPLIED = "INFO: Explicitly applied {} delegate, and the model graph will be {}.\n"
WHOLE = "completely executed by the delegate"
PART = "partially executed by the delegate w/ 3 delegate kernels"
REPLACING = "VERBOSE: Replacing {} node(s) with delegate ({}) node, yielding {} partitions"


@pytest.mark.parametrize(
    ("delegate", "lines", "delegated"),
    [
        ("cpu", "", "nothing"),
        ("xnnpack", APPLIED.format("XNNPACK", WHOLE), "whole model"),
        (
            "xnnpack",
            REPLACING.format("58 out of 58", "TfLiteXNNPackDelegate", 1)
            + " for the whole graph.\n"
            + APPLIED.format("XNNPACK", WHOLE),
            "whole model, 1 partition",
        ),
        (
            "gpu",
            "ERROR: Following operations are not supported by GPU delegate:\n"
            "QUANTIZE: Max version supported: 2. Requested version 3.\n"
            + REPLACING.format("49 out of 52", "TfLiteGpuDelegateV2", 3)
            + " for subgraph 0.\n"
            + APPLIED.format("GPU", PART)
            + REPLACING.format("2 out of 6", "TfLiteXNNPackDelegate", 9)
            + ".\n",
            "49 of 52 nodes, 3 partitions",
        ),
        (
            "nnapi",
            REPLACING.format("12", "TfLiteNnapiDelegate", 2)
            + ".\n"
            + APPLIED.format("NNAPI", PART),
            "12 nodes, 2 partitions",
        ),
        ("hexagon", APPLIED.format("Hexagon", PART), "a part, 3 kernels"),
    ],
)
def test_delegation(delegate, lines, delegated):
    found = read_log(START + lines + TIMES, DELEGATES[delegate])
    assert found == EXPECTED | {"delegated": delegated}


@pytest.mark.parametrize("clip", ["INFO: ", "VERBOSE: "])
def test_releases_without_levels(clip):
    text = START + APPLIED.format("XNNPACK", WHOLE) + TIMES
    assert read_log(text.replace(clip, ""), DELEGATES["xnnpack"])["average_us"] == 2942.25


@pytest.mark.parametrize(
    ("series", "average", "std", "runs"),
    [
        ("count=1 curr=11403859", 11403859, 0, 1),
        ("count=50 curr=86(all same)", 86, 0, 50),
        (
            "count=10 first=2653894 curr=2 min=2 max=3025403 avg=2.71985e+06 std=105101",
            2.71985e6,
            105101,
            10,
        ),
    ],
)
def test_series(series, average, std, runs):
    found = read_log(
        f"count=9 first=1 curr=1 min=1 max=2 avg=1.5 std=0\n{series}\n", DELEGATES["cpu"]
    )
    assert (found["average_us"], found["std_us"], found["runs"]) == (average, std, runs)
    assert found["least_us"] <= average <= found["most_us"]
    assert (found["init_us"], found["memory_bytes"]) == (None, None)


def test_the_older_line_of_memory():
    text = TIMES.replace(
        "Memory footprint delta from the start of the tool", "Peak memory footprint"
    )
    assert read_log(text, DELEGATES["cpu"])["memory_bytes"] == 40.5 * 2**20


@pytest.mark.parametrize(
    ("delegate", "line"),
    [
        (
            "nnapi",
            "Though NNAPI delegate is explicitly applied, the model graph will not be executed by "
            "the delegate.",
        ),
        ("gpu", "GPU acceleration is unsupported on this platform."),
        (
            "hexagon",
            "Could not create Hexagon delegate: platform may not support delegate or required "
            "libraries are missing",
        ),
        ("npu", "Unconsumed cmdline flags: --use_npu=true"),
    ],
)
def test_times_of_the_cpu_are_not_the_delegates(delegate, line):
    assert read_log(f"{START}WARN: {line}\n{TIMES}", DELEGATES[delegate]) == {"refused": line}


def test_another_delegates_line_does_not_count():
    found = read_log(START + APPLIED.format("XNNPACK", WHOLE) + TIMES, DELEGATES["gpu"])
    assert [*found] == ["refused"]


@pytest.mark.parametrize(
    ("text", "status", "line"),
    [
        (
            "ERROR: NN API returned error ANEURALNETWORKS_BAD_DATA at line 1068 while adding "
            "operation.\n\nFailed to apply NNAPI delegate.\nBenchmarking failed.\n",
            1,
            "NN API returned error ANEURALNETWORKS_BAD_DATA at line 1068 while adding operation.",
        ),
        ("Failed to apply X delegate.\nBenchmarking failed.\n", 1, "Failed to apply X delegate."),
        ("Segmentation fault \n", 139, "Segmentation fault"),
        ("", 137, "exit status 137, no output"),
        (TIMES + "ERROR: Benchmarking failed.\n", 0, "Benchmarking failed."),
    ],
)
def test_failures(text, status, line):
    assert read_log(START * bool(text) + text, DELEGATES["nnapi"], status) == {"refused": line}

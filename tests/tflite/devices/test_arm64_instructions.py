"""Counting instructions in qemu's log, against programs that write one as qemu does."""

import json
import os
import shutil
import sys

import pytest

import metamix_tflite as mt
from metamix_tflite.devices import measure
from metamix_tflite.devices.arm64_instructions import count, executed_instructions
from metamix_tflite.devices.count_process import BEGIN, END

emulated = pytest.mark.skipif(
    "ARM64_TESTS" not in os.environ or shutil.which("qemu-aarch64-static") is None,
    reason="downloads 100 MB and emulates: set ARM64_TESTS=1 and install qemu-user-static",
)


def block(address, size):
    """A block's translation as `in_asm` writes it."""
    lines = [f"0x{address + 4 * i:x}:  d503201f  nop" for i in range(size)]
    return "\n".join(["-" * 16, "IN: ", *lines, "", ""])


def trace(address):
    return f"Trace 0: 0x7fd801758d40 [0000000000001001/{address:016x}/00000001/00080200] \n"


FIRST, SECOND = 0x55063AD9A0, 0x55063AD9B0
LOADING = block(FIRST, 3) + trace(FIRST) + "INFO: a line that stays open" + block(SECOND, 5)
LOADING += trace(SECOND) + 7 * trace(FIRST)


@pytest.mark.parametrize(
    ("inference", "expected"),
    [
        ("", 0),
        (trace(FIRST) + 2 * trace(SECOND), 3 + 2 * 5),
        (block(SECOND + 0x40, 4) + trace(SECOND + 0x40) + trace(FIRST), 4 + 3),
        (block(SECOND, 2) + trace(SECOND), 2),  # translated anew, up to another end
        (trace(SECOND) + "Stopped execution of TB chain before 0x7f [5506] \n" + trace(SECOND), 5),
    ],
)
def test_blocks_between_the_marks_are_counted(inference, expected):
    log = f"{LOADING}\n{BEGIN}\n{inference}\n{END}\n{trace(FIRST)}"
    assert executed_instructions(log.splitlines(keepends=True)) == expected


@pytest.fixture
def counted(tmp_path):
    """counted(ranges of each run, log, ending) counts what a program of these writes."""
    output, ran = tmp_path / "found.json", []

    def run(ranges, log="", ending="", timeout=30, guess=()):
        left = iter(ranges)

        def command(flags):
            ran.append(flags)
            output.write_text(json.dumps({"ranges": next(left), "delegated": True}))
            written = tmp_path / "log"
            written.write_text(log if flags else "")
            script = f"import sys; sys.stderr.write(open({str(written)!r}).read()); {ending}"
            return [sys.executable, "-c", script]

        return *count("file", command, dict(os.environ), output, timeout, list(guess)), ran

    return run


LOG = f"{LOADING}\n{BEGIN}\n{trace(SECOND)}\n{END}\n"
HERE, THERE = [[0x5500, 0x5600]], [[0x5500, 0x5600], [0x7000, 0x7800]]


def test_a_first_run_tells_the_addresses(counted):
    found, ranges, ran = counted([THERE, THERE], LOG)
    assert (found, ranges) == ({"delegated": True, "instructions": 5}, THERE)
    flags = ["-d", "in_asm,exec,nochain", "-dfilter", "0x5500..0x55ff,0x7000..0x77ff"]
    assert ran == [[], flags]
    assert counted([THERE], LOG, guess=THERE)[2] == [[], flags, flags]  # known: one run
    assert counted([THERE, THERE], LOG, guess=HERE)[1] == THERE  # they have moved


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([HERE, THERE, HERE],), "^file: the emulated LiteRT has other addresses in each of 3"),
        (([HERE, HERE], "", ""), "^file: qemu's log tells of no instruction"),
        (([HERE], "", "sys.exit('no memory')"), "^file: the emulated LiteRT fails: no memory$"),
        (([HERE], "", "import os; os.abort()"), "^file: the emulated LiteRT fails: .* SIGABRT"),
        (([HERE], "", "import time; time.sleep(60)", 0.5), "^file: counting took longer than 0.5"),
    ],
)
def test_how_counting_fails_is_one_line(arguments, message, counted):
    with pytest.raises(OSError, match=message) as raised:
        counted(*arguments)
    assert "\n" not in str(raised.value)


@emulated
@pytest.mark.slow
def test_int4_takes_more_where_xnnpack_has_no_kernel_for_it(resnet):
    # Of XNNPACK's INT4 kernels ARM's have SIMD instructions with the dot product alone.
    files = {
        name: mt.convert(resnet[0], weight_container=name, golden=0) for name in ("fast", "int8")
    }
    report = measure("arm64", files, cpus=["cortex-a53", "neoverse-n1"], instructions=True)
    counts = {(row["file"], row["cpu"]): row["instructions"] for row in report.rows}
    again = measure("arm64", {"a": files["fast"]}, cpus=["cortex-a53"], instructions=True).rows
    assert again[0]["instructions"] == counts["fast", "cortex-a53"]
    assert all(row["values"] is None and row["delegated"] for row in report.rows)
    ratios = {c: counts["fast", c] / counts["int8", c] for c in ("cortex-a53", "neoverse-n1")}
    assert ratios["cortex-a53"] > ratios["neoverse-n1"]

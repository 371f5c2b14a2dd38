"""Android through the real adb; the phone at its far end is played by conftest.py."""

import json
import os
import signal
import struct
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from keras_metamix.launch import benchmark
from keras_metamix.launch.messages import exit_status
from keras_metamix.report import numbers
from metamix_tflite import devices
from metamix_tflite.devices import android

# Prints what the tool prints; its microseconds are the model's bytes and the number of threads.
TOOL = """#!/bin/sh
for flag in "$@"; do
  case $flag in
    --graph=*) size=$(wc -c <"${flag#--graph=}");;
    --num_threads=*) threads=${flag#*=};;
    --use_npu=true) echo "WARN: Unconsumed cmdline flags: $flag";;
    --use_gpu=true)
      echo "ERROR: OpenCL library not loaded"
      echo "ERROR: Benchmarking failed."
      exit 1;;
    --use_xnnpack=true)
      echo "VERBOSE: Replacing 9 out of 9 node(s) with delegate (TfLiteXNNPackDelegate) node," \
        "yielding 1 partitions for the whole graph."
      echo "INFO: Explicitly applied XNNPACK delegate, and the model graph will be completely" \
        "executed by the delegate.";;
  esac
done
echo "INFO: count=5 first=9 curr=9 min=9 max=99 avg=99 std=9"
echo "INFO: count=50 first=9 curr=9 min=$threads max=$size avg=$size std=9"
echo "INFO: Inference timings in us: Init: 123, First inference: 9, Inference (avg): 9"
echo "INFO: Memory footprint delta from the start of the tool (MB): init=1 overall=2"
"""
FILES = {"a.tflite": bytes(range(256)) * 300, "odd ' $(name) \n.tflite": b"TFL3" * 10}


@pytest.fixture
def tool(tmp_path):
    """A stand-in for benchmark_model, under a name that a shell would take apart."""
    path = tmp_path / "it's $(a) tool;.sh"
    path.write_text(TOOL)
    return path


def empty(phone):
    return [*phone.folder.iterdir()] == []


def test_a_row_for_each_file_and_delegate(phone, tool):
    made = phone()
    chosen = ("cpu", "xnnpack", "gpu", "npu")
    report = devices.measure("android", FILES, binary=tool, delegates=chosen, threads=3)
    assert report.device == "android"
    assert [(r["file"], r["delegate"]) for r in report.rows] == [
        (f, d) for f in FILES for d in chosen
    ]
    assert {row["phone"] for row in report.rows} == {made.serial}
    for row in report.rows:
        size = len(FILES[row["file"]])
        if row["delegate"] in ("cpu", "xnnpack"):
            found = [row[k] for k in ("average_us", "most_us", "least_us", "runs", "init_us")]
            assert found == [size, size, 3, 50, 123]
            assert row["memory_bytes"] == 2 * 2**20
            whole = "whole model, 1 partition"
            assert row["delegated"] == ("nothing" if row["delegate"] == "cpu" else whole)
        else:
            reasons = "OpenCL library not loaded", "Unconsumed cmdline flags: --use_npu=true"
            assert row["refused"] == reasons[row["delegate"] == "npu"]
            assert "average_us" not in row
    assert sorted(made.pushed.values()) == sorted([TOOL.encode(), *FILES.values()])
    folders = {os.path.dirname(path) for path in made.pushed}
    assert len(folders) == 1 and folders.pop().startswith("/data/local/tmp/keras-metamix-")
    assert empty(made)
    assert report.notes[0].startswith(f"{made.serial}: a ro.product.model, Android a ro.")


def test_the_command_prints_and_writes_it(phone, tool, resnet, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    made = phone()
    (tmp_path / "m.tflite").write_bytes(resnet[2])
    flags = ["--device=android", f"--serial={made.serial}", "--delegates=xnnpack,gpu"]
    flags += [f"--binary={tool}", f"--json={tmp_path / 'times.json'}", str(tmp_path / "m.tflite")]
    assert exit_status(benchmark.main, benchmark.parse_flags(["command", *flags])) == 0
    out = capsys.readouterr().out
    assert "device android" in out and "OpenCL library not loaded" in out
    assert numbers.duration(len(resnet[2])) in out
    written = json.loads((tmp_path / "times.json").read_text())
    assert written["device"] == "android" and written["notes"]
    assert [row["delegate"] for row in written["rows"]] == ["xnnpack", "gpu"]


def test_several_phones(phone, tool):
    first, second = phone("first"), phone("second")
    with pytest.raises(
        ValueError, match="--serial: expected the phones to use, of several"
    ) as error:
        devices.measure("android", FILES, binary=tool)
    assert first.serial in str(error.value) and second.serial in str(error.value)
    both = devices.measure(
        "android", FILES, binary=tool, delegates=["cpu"], serial=[second.serial, first.serial]
    )
    expected = [serial for serial in (second.serial, first.serial) for _ in FILES]
    assert [row["phone"] for row in both.rows] == expected
    one = devices.measure("android", FILES, binary=tool, delegates=["cpu"], serial=[first.serial])
    assert {row["phone"] for row in one.rows} == {first.serial}
    with pytest.raises(devices.DeviceUnavailable, match="--serial=none: adb lists no such phone"):
        devices.measure("android", FILES, binary=tool, serial=["none"])
    assert empty(first) and empty(second)


@pytest.mark.parametrize("trouble", ["hangs", "crashes", "is no tool"])
def test_files_go_when_the_tool_fails(phone, tool, trouble):
    made = phone()
    scripts = {"hangs": "sleep 60", "crashes": "kill -SEGV $$", "is no tool": "echo hello"}
    tool.write_text(f"#!/bin/sh\n{scripts[trouble]}\n")
    arguments = {"binary": tool, "delegates": ["cpu"], "timeout": 2}
    if trouble == "hangs":
        with pytest.raises(OSError, match="no answer for 2 s"):
            devices.measure("android", FILES, **arguments)
    else:
        rows = devices.measure("android", FILES, **arguments).rows
        expected = "exit status 139" if trouble == "crashes" else "hello"
        assert expected in rows[0]["refused"] or "Segmentation fault" in rows[0]["refused"]
    assert empty(made)


def test_files_go_when_the_phone_refuses_a_command(phone, tool):
    made = phone()
    made.program("chmod", "echo chmod: not permitted; exit 1")
    with pytest.raises(OSError, match="chmod 755.*fails with status 1: chmod: not permitted"):
        devices.measure("android", FILES, binary=tool)
    assert empty(made)


def test_a_phone_that_goes_away_is_named(phone, tool):
    made = phone()
    tool.write_text("#!/bin/sh\nsleep 60\n")

    def pull():
        while not any("--num_runs" in command for command in made.commands):
            time.sleep(0.05)
        made.drop()

    threading.Thread(target=pull, daemon=True).start()
    with pytest.raises(OSError, match=f"{made.serial}.*(broke|device|closed)"):
        devices.measure("android", FILES, binary=tool, timeout=20)


def test_files_go_on_control_c(phone, tool):
    made = phone()
    tool.write_text("#!/bin/sh\nsleep 60\n")
    program = """
        import signal, sys
        from metamix_tflite import devices
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored behind nohup
        devices.measure("android", {"a": b"TFL3"}, binary=__import__("pathlib").Path(sys.argv[1]))
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(tool)],
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 30
    while not any("--num_runs" in command for command in made.commands):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    assert not empty(made)
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=30)[1]
    assert empty(made)


def elf(machine):
    return b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 3, machine)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            elf(62),
            r"expected an executable for arm64-v8a, armeabi-v7a \(phone .*found one for x86_64",
        ),
        (elf(243), "found one for ELF machine 243"),
        (b"PK\x03\x04", "expected an executable of Android, found none"),
        (b"\x7fELF", "expected an executable of Android, found none"),
        (None, "No such file"),
    ],
)
def test_a_tool_for_another_machine_is_named(phone, tmp_path, content, message):
    made, path = phone(), tmp_path / "tool"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(devices.DeviceUnavailable, match=message):
        devices.measure("android", FILES, binary=path)
    assert made.pushed == {}


@pytest.mark.parametrize("machine", [183, 40])
def test_a_tool_for_the_phones_machine_is_taken(phone, tmp_path, machine):
    made, path = phone(), tmp_path / "tool"
    path.write_bytes(elf(machine))
    rows = devices.measure("android", {"a": b"TFL3"}, binary=path, delegates=["cpu"]).rows
    assert "refused" in rows[0]  # 20 bytes are no program
    assert elf(machine) in made.pushed.values()


def test_the_cached_tool(phone, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    phone()
    with pytest.raises(
        devices.DeviceUnavailable, match="no android_aarch64_benchmark_model or .*--binary"
    ):
        devices.measure("android", FILES)
    cached = tmp_path / "cache/keras-metamix/android_arm_benchmark_model"
    cached.parent.mkdir(parents=True)
    cached.write_text(TOOL)
    report = devices.measure("android", FILES, delegates=["cpu"])
    assert report.rows[0]["average_us"] == len(FILES["a.tflite"])
    assert str(cached) in report.notes[0]


def test_no_phone(adb):
    with pytest.raises(devices.DeviceUnavailable, match="adb lists no phone: connect it"):
        devices.measure("android", FILES)


def test_a_phone_that_was_not_allowed(adb, phone):
    made = phone(authorized=False)
    message = f"{made.serial} is (unauthorized|authorizing): confirm"
    with pytest.raises(devices.DeviceUnavailable, match=message):
        devices.measure("android", FILES)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("offline", "phone one is offline: unplug"),
        ("no permissions (user in plugdev group; are your udev rules wrong?)", "USB access"),
        ("recovery", r"phone one is recovery\."),
    ],
)
def test_other_states(tmp_path, monkeypatch, state, message):
    fake = tmp_path / "adb"
    fake.write_text(f"#!/bin/sh\nprintf 'List of devices attached\\none\\t%s\\n\\n' '{state}'\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(devices.DeviceUnavailable, match=message):
        devices.measure("android", FILES)


def test_no_adb(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(devices.DeviceUnavailable, match="adb is not on PATH: install it"):
        devices.measure("android", FILES)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"delegates": ["cpu", "moon"]}, "--delegates: expected some of cpu, .*found 'cpu,moon'"),
        ({"delegates": []}, "--delegates: expected some of"),
        ({"threads": 0}, "threads: expected at least 1, found 0"),
        ({"runs": 0}, "runs: expected"),
        ({"timeout": 0}, "timeout: expected"),
    ],
)
def test_bad_options_are_named(option, message):
    with pytest.raises(ValueError, match=message):
        android.Options(**option)

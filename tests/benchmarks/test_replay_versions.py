"""Replays with other versions of LiteRT: what is asked of pip, what is told, one real version."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import metamix_tflite as mt

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import golden_files  # noqa: E402
import replay_versions  # noqa: E402
from replay_versions import Found, Replay, Runtime  # noqa: E402


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of two containers, and one that is none."""
    folder = tmp_path_factory.mktemp("files")
    kinds = {
        "points": golden_files.Kind("small_resnet", (8, 8, 1), points=True),
        "smallest": golden_files.Kind("small_mobilenet", (8, 8, 1), "smallest", "int8"),
    }
    for name, kind in kinds.items():
        (folder / f"{name}.tflite").write_bytes(golden_files.convert(kind))
    (folder / "text.tflite").write_text("no file")
    return [folder / f"{name}.tflite" for name in ("points", "smallest", "text")]


def test_the_files_are_what_they_are_called(files):
    points, smallest, _ = (file.read_bytes() for file in files)
    assert set(mt.verify(points)) == {"high", "drawn"}
    declared = mt.verify(smallest).metadata
    assert (declared["weight_container"], declared["io"]) == ("smallest", "int8")
    bits = {entry["weight_bits"] for entry in declared["layers"].values()}
    assert bits == {8, 4, 3, 2}  # the draw has them all


def test_an_unknown_kind_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"--only: expected some of .* found \['vgg'\]"):
        golden_files.write_files(tmp_path, ["vgg"])


@pytest.mark.parametrize(
    ("text", "requirement"),
    [
        ("2.1.6", "ai-edge-litert==2.1.6"),
        (f"2.1.6@{sys.executable}", "ai-edge-litert==2.1.6"),
        ("2.4.0.dev20261026", "ai-edge-litert-nightly==2.4.0.dev20261026"),
    ],
)
def test_what_pip_installs(text, requirement):
    runtime = Runtime.parse(text)
    assert (runtime.requirement, runtime.python) == (requirement, sys.executable)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected VERSION or VERSION@PYTHON, found ''"),
        ("@python3", "expected VERSION or VERSION@PYTHON"),
        ("2.3.0@python9", "expected an interpreter on PATH, found no 'python9'"),
    ],
)
def test_a_bad_version_is_named(text, message):
    with pytest.raises(ValueError, match=f"--versions: {message}"):
        Runtime.parse(text)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"found no .*none\.tflite"):
        replay_versions.measure(["2.3.0"], [tmp_path / "none.tflite"])


def test_replays_of_this_runtime(files):
    found = replay_versions.replay_files([sys.executable], files)
    assert found.versions["python"].split(".")[:2] == [str(n) for n in sys.version_info[:2]]
    by_name = {(r.file, r.kernels): r for r in found.replays}
    assert len(by_name) == 3 * 3
    exact = by_name["points", "xnnpack"]
    assert exact == Replay("points", "xnnpack", "fast", 2 * 4 * 10, 0, 0, True)
    assert by_name["points", "reference"].values == 80
    assert not by_name["smallest", "xnnpack"].whole
    assert by_name["text", "builtin"].refused.startswith("Expected the bytes of a .tflite")
    row = replay_versions.as_markdown({"here": found}).splitlines()[2].split(" | ")
    assert row[3] == "0 of 80; 1 of 2 files refused"


def test_the_table():
    versions = {"numpy": "2.4.6", "python": "3.11.7"}
    rows = {
        "1.0.1": Found({}, [Replay("a", k, refused="too old.") for k in replay_versions.KERNELS]),
        "1.1.2@python3": Found(
            versions,
            [
                Replay("a", "xnnpack", "fast", 4000, 3900, 7, False),
                Replay("a", "builtin", "fast", 4000, 1, 1, False),
                Replay("a", "reference", "fast", refused="no operator"),
                Replay("b", "xnnpack", "smallest", 40, 3, 2, False),
                Replay("b", "builtin", "smallest", 40, 0, 0, False),
                Replay("b", "reference", "smallest", 40, 0, 0, False),
            ],
        ),
    }
    head, line, *body = replay_versions.as_markdown(rows).splitlines()
    assert head.count("|") == line.count("|") == body[0].count("|") == 8
    assert body[0] == "| 1.0.1 |  |  | refused | - | refused | refused |"
    assert body[1] == (
        "| 1.1.2 | 2.4.6 | 3.11.7 | 3,900 of 4,000, to 7 steps | 3 of 40, to 2 steps "
        "| 1 of 4,040, to 1 steps | 0 of 40; 1 of 2 files refused |"
    )
    assert body[4:] == [
        "- refused, too old: 1.0.1 xnnpack, 1.0.1 builtin, 1.0.1 reference (a).",
        "- not one XNNPACK partition: 1.1.2@python3 xnnpack (a).",
        "- refused, no operator: 1.1.2@python3 reference (a).",
    ]


def test_a_process_that_crashes_is_reported(files):
    crash = [sys.executable, "-c", "import os; os.kill(os.getpid(), 11)"]
    found = replay_versions.replay_files(crash, files[:1])
    assert {r.refused for r in found.replays} == {"ended by SIGSEGV"}


@pytest.mark.long
@pytest.mark.slow
def test_another_version_from_pip_is_exact(files, tmp_path):
    version = "2.1.6"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries=1"]
    got = subprocess.run(
        [*pip, "--timeout=10", f"--dest={tmp_path}", f"ai-edge-litert=={version}"],
        capture_output=True,
        text=True,
        env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
    )
    if got.returncode:
        pytest.skip(f"pip cannot download ai-edge-litert {version}: {got.stderr.strip()[-300:]}")
    (found,) = replay_versions.measure([version], files[:2]).values()
    assert found.versions["ai-edge-litert"] == version
    first = found.replays[0]
    assert first == Replay("points", "xnnpack", "fast", 80, 0, 0, True)
    assert not any(r.refused for r in found.replays)

"""2,000 mutated files: verify refuses each clearly, or passes it, and never crashes or hangs."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from keras_metamix.launch.comparison.stock_converter import float_file

SCRIPT = Path(__file__).with_name("fuzz_verify.py")
FILES = int(os.environ.get("FUZZED_FILES", "2000"))
BATCHES = 4


@pytest.fixture(scope="module")
def corpus(given, tmp_path_factory):
    """A file of one signature, one of two, a stranger's, and the bits of the first."""
    folder = tmp_path_factory.mktemp("corpus")
    files = {"one": given.flat, "two": given.points_flat, "float": float_file(given.model)}
    for name, flat in files.items():
        (folder / f"{name}.tflite").write_bytes(flat)
    bits = {"activation_bits": given.bits.activation_bits, "weight_bits": given.bits.weight_bits}
    (folder / "bits.json").write_text(json.dumps(bits))
    return folder


def ending(returncode):
    """How a process ended, in words."""
    return f"signal {signal.Signals(-returncode).name}" if returncode < 0 else f"{returncode}"


@pytest.mark.parametrize("batch", range(BATCHES))
def test_mutated_files_are_refused_or_pass(batch, corpus):
    size = FILES // BATCHES
    numbers = (str(batch * size), str((batch + 1) * size))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(corpus), *numbers],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    *tried, last = done.stdout.splitlines() or [""]
    assert done.returncode == 0, (
        f"mutation {last}: the process ended with {ending(done.returncode)}\n{done.stderr[-2000:]}"
    )
    assert len(tried) == size
    counts = json.loads(last)
    assert counts["refused"] > size / 2 and counts["passes"] > 0, counts

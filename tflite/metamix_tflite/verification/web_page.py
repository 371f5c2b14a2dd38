"""A page that replays files in a browser with LiteRT.js, and times them.

It is a folder of a few files that any web server gives out: `page/`, which shows and computes all,
plan.json, the .tflite files, their inputs, and LiteRT.js from its npm package.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from metamix_tflite.file_graph import FileGraph, VerificationError
from metamix_tflite.read.files import read_signatures
from metamix_tflite.run.latency import random_inputs
from metamix_tflite.run.runner import Runner
from metamix_tflite.verification.replay import Golden, golden_of

LITERTJS = "2.5.3"  # what the page was tested with
INSTALL = f"npm install @litertjs/core@{LITERTJS}"
# Build of LiteRT.js -> its script's name; "relaxed" and "threads" have relaxed SIMD, "compat" not.
BUILDS = {"relaxed": "internal", "compat": "compat_internal", "threads": "threaded_internal"}
_PAGE = Path(__file__).with_name("page")
_TYPES = {"FLOAT32": "float32", "UINT8": "uint8"}

Content = dict[str, bytes | Path]  # of a folder: what lies there, or which file, by relative path


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the page does with its files.

    Attributes:
      builds: of `BUILDS`.
      threads: of the build "threads".
      runs, warmup: inferences of each file that are timed, and that are not.
      report: where the page sends what it found; None for nowhere.
    """

    builds: Sequence[str] = tuple(BUILDS)
    threads: int = 2
    runs: int = 50
    warmup: int = 5
    report: str | None = None

    def __post_init__(self):
        if not self.builds or set(self.builds) - set(BUILDS):
            expected, found = ", ".join(BUILDS), ",".join(self.builds)
            raise ValueError(f"--builds: expected some of {expected}, found {found!r}.")


@dataclasses.dataclass(frozen=True)
class WebFile:
    """A signature of a file, that LiteRT.js can run.

    Attributes:
      flat: the file's bytes.
      signature: its name; None for the only one.
      inputs: name, shape and type of each; the type is NumPy's name.
      outputs: name and type of each.
      golden: of the file; None where it has none.
      timed: an array of each input, that inferences are timed with.
    """

    flat: bytes
    signature: str | None
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    golden: Golden | None
    timed: list[np.ndarray]


def find_litertjs(folder: Path | None) -> Path:
    """The folder @litertjs of npm packages, by default as Node.js finds it from here.

    Raises:
      FileNotFoundError: there is none, with the command that installs it.
    """
    here = Path.cwd()
    candidates = [above / "node_modules" / "@litertjs" for above in (here, *here.parents)]
    if folder is not None:
        candidates = [folder]
    for candidate in candidates:
        if all((candidate / part / "package.json").is_file() for part in ("core", "wasm-utils")):
            return candidate
    found = f"no core/ and wasm-utils/ in {folder}" if folder else "no node_modules/@litertjs here"
    raise FileNotFoundError(
        f"LiteRT.js: found {found}: {INSTALL}, or name the folder node_modules/@litertjs by "
        "--litertjs."
    )


def litertjs_version(folder: Path) -> str:
    """The version of the LiteRT.js in a folder of `find_litertjs`."""
    return json.loads((folder / "core" / "package.json").read_text())["version"]


def web_file(flat: bytes, signature: str | None = None) -> WebFile:
    """A signature of a file, checked for LiteRT.js.

    Args:
      flat: the file's bytes.
      signature: which of the file's, where there are several.

    Raises:
      ValueError: LiteRT.js does not take an input or output; names it.
    """
    graphs = read_signatures(flat)
    graph = graphs[signature or next(iter(graphs))]
    details = Runner(flat, signature=signature).input_details
    inputs = _described_tensors(graph, graph.inputs, graph.input_names)
    for detail, end in zip(details, inputs, strict=True):
        shape = [int(size) for size in detail["shape_signature"]]
        if shape[:1] != [1] or min(shape) < 1:
            raise ValueError(
                f"input {end['name']!r}: expected a batch of one, found the shape {shape}: a file "
                "of `convert` has one; for TensorFlow's converter build the model on "
                "keras.Input(batch_shape=(1, ...))."
            )
        end["shape"] = shape
    outputs = _described_tensors(graph, graph.outputs, graph.output_names)
    return WebFile(flat, signature, inputs, outputs, _golden(graph), random_inputs(details))


def web_signatures(name: str, flat: bytes) -> dict[str, WebFile]:
    """Each signature of a file, by the name that the page shows; see `web_file`."""
    graphs = read_signatures(flat)
    if len(graphs) == 1:
        return {name: web_file(flat)}
    return {f"{name}:{signature}": web_file(flat, signature) for signature in graphs}


def page_content(files: Mapping[str, WebFile], litertjs: Path, plan: Plan) -> Content:
    """The folder of a page.

    Args:
      files: by the names that the page shows.
      litertjs: of `find_litertjs`.
      plan: what the page does.

    Raises:
      FileNotFoundError: a file that is missing in the folder of LiteRT.js.
    """
    content: Content = {path.name: path for path in _PAGE.iterdir()}
    content |= {f"litertjs/{part}": litertjs / part for part in _litertjs_files(plan.builds)}
    for path in content.values():
        if isinstance(path, Path) and not path.is_file():
            raise FileNotFoundError(f"LiteRT.js: found no {path}: {INSTALL}.")
    models: dict[bytes, str] = {}
    described = []
    for number, (name, file) in enumerate(files.items()):
        model = models.setdefault(file.flat, f"{number}.tflite")
        images = [*(file.golden.images if file.golden else []), file.timed]
        content[model] = file.flat
        content[f"{number}.inputs"] = b"".join(a.tobytes() for image in images for a in image)
        described_file = {"model": model, "images": f"{number}.inputs", "signature": file.signature}
        described_file |= {"inputs": file.inputs, "outputs": file.outputs}
        described.append({"name": name, **described_file, "golden": _described(file.golden)})
    page = {"litertjs": litertjs_version(litertjs), **dataclasses.asdict(plan), "files": described}
    return {**content, "plan.json": json.dumps(page).encode()}


def write_page(folder: Path, content: Content) -> None:
    """Writes the folder of a page.

    Raises:
      FileExistsError: it is there and not empty.
    """
    require_new_folder(folder)
    for name, held in content.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(held if isinstance(held, bytes) else held.read_bytes())


def require_new_folder(folder: Path) -> None:
    """Raises FileExistsError unless there is nothing at a folder's place, or an empty one."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"--page: expected a new or empty folder, found {folder}.")


def _litertjs_files(builds: Sequence[str]) -> list[str]:
    scripts = [f"core/wasm/litert_wasm_{BUILDS[build]}" for build in builds]
    parts = ["core/dist/index.js", "wasm-utils/dist/index.js"]
    return [*parts, *(f"{script}.{end}" for script in scripts for end in ("js", "wasm"))]


def _described_tensors(
    graph: FileGraph, tensors: Sequence[int], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Name and NumPy's type of inputs or outputs.

    Raises:
      ValueError: LiteRT.js does not take the type; names the tensor.
    """
    found = [graph.tensors[index].type for index in tensors]
    for name, kind in zip(names, found, strict=True):
        if kind not in _TYPES:
            raise ValueError(
                f"{name!r} is {kind}: LiteRT.js takes inputs and outputs of float32: write the "
                'file with metamix-export --io=float32, or convert(..., io="float32").'
            )
    return [{"name": name, "type": _TYPES[kind]} for name, kind in zip(names, found, strict=True)]


def _golden(graph: FileGraph) -> Golden | None:
    """The golden outputs of a file of `convert`; a stranger's has none, nor has golden=0."""
    try:
        golden = golden_of(graph)
    except VerificationError:
        return None
    return golden if golden.images else None


def _described(golden: Golden | None) -> list[dict[str, Any]] | None:
    """What has to come out of each output, for the page."""
    if golden is None:
        return None
    outputs = zip(golden.expected, golden.strides, golden.grids, strict=True)
    return [
        {"codes": codes.tolist(), "stride": stride, "grid": grid} for codes, stride, grid in outputs
    ]

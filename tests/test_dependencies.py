"""Imports point one way, and no file names a place on somebody's machine.

The direction is the design's:

    assignment, cost, ops -> layers -> graph, calibration -> training, distillation ->
    metamix | bitmixer -> launch
    metamix_tflite's operators -> read -> run -> write | verification -> devices
    keras_metamix -> metamix_tflite's write, verification

(from the imported to the importer). What metamix_tflite says of files without Keras, `containers`
and `operators`, is asked by cost and graph too. Every import statement counts, also inside
functions and under `TYPE_CHECKING`, and so does `importlib.import_module` with a literal name.
"""

import ast
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent

# Import name -> folder, from the top.
TREES = {"keras_metamix": "keras_metamix", "metamix_tflite": "tflite/metamix_tflite"}

BASE = {
    "keras_metamix.checks",
    "keras_metamix.files",
    "keras_metamix.keras_internals",
    "keras_metamix.network_model",
    "keras_metamix.assignment",
    "keras_metamix.batches",
    "keras_metamix.cost",
    "keras_metamix.ops",
}
LAYERS = BASE | {"keras_metamix.layers"}
GRAPH = LAYERS | {"keras_metamix.graph", "keras_metamix.calibration"}
GRAPH |= {"keras_metamix.step_observer"}
TRAINING = GRAPH | {"keras_metamix.training", "keras_metamix.distillation"}
TRAINING |= {"keras_metamix.training_data", "keras_metamix.diagnosis", "keras_metamix.workers"}
TRAINING |= {"keras_metamix.quantized_model", "keras_metamix.sensitivity"}
TRAINING |= {"keras_metamix.statistics"}
METHODS = TRAINING | {"keras_metamix.metamix", "keras_metamix.bitmixer"}
METHODS |= {"keras_metamix.points", "keras_metamix.pareto", "keras_metamix.hessian"}
METHODS |= {"keras_metamix.doctor"}
APART = {"keras_metamix.data", "keras_metamix.report", "keras_metamix.schema", "keras_metamix.zoo"}

# Of metamix_tflite, what imports nothing of keras_metamix, and so neither Keras nor TensorFlow.
FILES = {"metamix_tflite.containers", "metamix_tflite.encoding", "metamix_tflite.file_graph"}
OPERATORS = FILES | {"metamix_tflite.targets", "metamix_tflite.operators"}
READING = OPERATORS | {"metamix_tflite.read"}
RUNNING = READING | {"metamix_tflite.run"}
DEPLOYMENT = RUNNING | {"metamix_tflite.write", "metamix_tflite.verification"}
DEPLOYMENT |= {"metamix_tflite.devices", "metamix_tflite"}

# Unit -> the units of ours that it may import, besides itself. A unit is a top-level module or
# folder of a package, or its `__init__` ("keras_metamix").
MAY_IMPORT = {
    "keras_metamix.files": set(),
    "keras_metamix.checks": set(),
    "keras_metamix.schema": {"keras_metamix.checks"},
    "keras_metamix.assignment": {"keras_metamix.files", "keras_metamix.checks"},
    "keras_metamix.keras_internals": set(),
    "keras_metamix.network_model": {"keras_metamix.checks"},
    "keras_metamix.ops": set(),
    "keras_metamix.batches": {"keras_metamix.checks"},
    "keras_metamix.cost": BASE - {"keras_metamix.ops", "keras_metamix.batches"}
    | {"metamix_tflite.containers", "metamix_tflite.targets"},
    "keras_metamix.layers": BASE,
    "keras_metamix.graph": GRAPH
    | {"metamix_tflite.containers", "metamix_tflite.targets", "metamix_tflite.operators"}
    | {"metamix_tflite.encoding"},
    "keras_metamix.step_observer": LAYERS,
    "keras_metamix.calibration": GRAPH,
    "keras_metamix.training": GRAPH | {"keras_metamix.training_data"},
    "keras_metamix.training_data": GRAPH,
    "keras_metamix.diagnosis": GRAPH,
    "keras_metamix.workers": GRAPH,
    "keras_metamix.distillation": GRAPH | {"keras_metamix.training_data"},
    "keras_metamix.quantized_model": TRAINING,
    "keras_metamix.sensitivity": BASE,
    "keras_metamix.statistics": GRAPH | {"keras_metamix.training"},
    "keras_metamix.hessian": TRAINING,
    "keras_metamix.points": BASE | {"keras_metamix.report"},
    "keras_metamix.metamix": TRAINING | {"keras_metamix.points"},
    "keras_metamix.bitmixer": TRAINING | {"keras_metamix.points"},
    "keras_metamix.pareto": METHODS,
    "keras_metamix.doctor": TRAINING | {"keras_metamix.report"},
    "keras_metamix.data": {"keras_metamix.files", "keras_metamix.checks"},
    "keras_metamix.zoo": set(),
    "keras_metamix.report": {
        "keras_metamix.files",
        "keras_metamix.checks",
        "keras_metamix.schema",
        "keras_metamix.assignment",
    },
    "keras_metamix": METHODS | APART,
    "keras_metamix.launch": {"keras_metamix"} | DEPLOYMENT | METHODS | APART,
    **{unit: set() for unit in FILES},
    "metamix_tflite.targets": {"metamix_tflite.containers"},
    "metamix_tflite.operators": FILES | {"metamix_tflite.targets"},
    "metamix_tflite.read": OPERATORS,
    "metamix_tflite.run": READING,
    "metamix_tflite.write": READING | {"keras_metamix"} | METHODS,
    "metamix_tflite.verification": RUNNING | {"keras_metamix"} | METHODS,
    "metamix_tflite.devices": DEPLOYMENT,
    "metamix_tflite": DEPLOYMENT,
}

# Importing these switches the whole process to Keras 2.
KERAS_2 = {"tensorflow_model_optimization", "tf_keras"}
MAY_NOT_USE = dict.fromkeys(MAY_IMPORT, KERAS_2) | {
    **dict.fromkeys(RUNNING, KERAS_2 | {"keras", "tensorflow"}),
    "metamix_tflite.devices": KERAS_2 | {"keras", "tensorflow"},
    "keras_metamix.assignment": KERAS_2 | {"keras", "tensorflow"},
    "keras_metamix.cost": KERAS_2 | {"keras", "tensorflow"},
    "keras_metamix.report": KERAS_2 | {"keras", "tensorflow"},
    "keras_metamix.schema": KERAS_2 | {"keras", "tensorflow"},
}

# Run in a process of its own.
BASELINES = "keras_metamix/launch/comparison"
IN_KERAS_2 = {f"{BASELINES}/{name}.py" for name in ("legacy_keras", "tfmot_process")}

# Units that are plain enough to use nothing else than the standard library and these.
USES_ONLY = {"keras_metamix.zoo": {"keras", "keras_hub"}}


def unit_of(module: str) -> str:
    """The unit that a module of ours belongs to."""
    package, *rest = module.split(".")
    return f"{package}.{rest[0]}" if rest else package


def modules_of(top: Path) -> dict[str, Path]:
    """Dotted name -> file, for every module of both packages."""
    found = {}
    for package, folder in TREES.items():
        for path in sorted((top / folder).rglob("*.py")):
            parts = path.relative_to(top / folder).with_suffix("").parts
            found[".".join((package, *(p for p in parts if p != "__init__")))] = path
    return found


def imports_of(module: str, path: Path, known: dict[str, Path]) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of every import in a file."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join(above + (node.module.split(".") if node.module else []))
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                yield node.lineno, inner if inner in known else source
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = (
                node.func.attr
                if isinstance(node.func, ast.Attribute)
                else getattr(node.func, "id", "")
            )
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def broken_rule(unit: str, target: str) -> str | None:
    """Why `unit` may not import the module `target`, or None where it may."""
    outside = target.split(".")[0]
    if outside in TREES:
        wanted = unit_of(target)
        return (
            None
            if wanted == unit or wanted in MAY_IMPORT[unit]
            else f"{unit} may not import {wanted}"
        )
    if outside in MAY_NOT_USE[unit]:
        return f"{unit} may not use {outside}"
    if unit in USES_ONLY and outside not in USES_ONLY[unit] | sys.stdlib_module_names:
        return f"{unit} uses {' and '.join(sorted(USES_ONLY[unit]))} only, not {outside}"
    return None


def violations(top: Path) -> list[str]:
    """One line, "file:line: what is wrong", for each import against the rules."""
    known = modules_of(top)
    lines = []
    for module, path in known.items():
        place, unit = path.relative_to(top), unit_of(module)
        if unit not in MAY_IMPORT:
            lines.append(f"{place}: MAY_IMPORT has no row for {unit}")
            continue
        for line, target in imports_of(module, path, known):
            if str(place) in IN_KERAS_2 and target.split(".")[0] in KERAS_2:
                continue
            if problem := broken_rule(unit, target):
                lines.append(f"{place}:{line}: {problem}")
    return lines


def write_tree(top: Path, files: dict[str, str]) -> None:
    """A tree with the given files; each is a path and its text."""
    for name, text in files.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")


def test_imports_point_one_way():
    assert modules_of(TOP), "no module was found: the test looks in the wrong place"
    assert violations(TOP) == []


def test_rules_have_no_cycle_between_levels():
    level = {**dict.fromkeys(BASE, 0), "keras_metamix.layers": 1, "keras_metamix.launch": 4}
    level |= dict.fromkeys(GRAPH - LAYERS, 2) | dict.fromkeys(METHODS - GRAPH, 3)
    level |= dict.fromkeys(OPERATORS, 0) | {"metamix_tflite.read": 1, "metamix_tflite.run": 2}
    level |= dict.fromkeys(DEPLOYMENT - RUNNING, 4)
    for unit, height in level.items():
        higher = {u for u in MAY_IMPORT[unit] if level.get(u, 0) > height}
        assert not higher, f"{unit} is below {higher}"


@pytest.mark.parametrize(
    ("file", "text", "target"),
    [
        ("keras_metamix/assignment.py", "import keras", "keras"),
        ("keras_metamix/assignment.py", "import tensorflow.math", "tensorflow"),
        ("keras_metamix/cost/a.py", "from ..layers import conv", "keras_metamix.layers"),
        ("keras_metamix/cost/a.py", "import keras_metamix.graph.topology", "keras_metamix.graph"),
        ("keras_metamix/ops/lsq.py", "from ..graph import rewrite", "keras_metamix.graph"),
        ("keras_metamix/ops/lsq.py", "from .. import graph", "keras_metamix.graph"),
        ("keras_metamix/ops/__init__.py", "from ..graph.a import b", "keras_metamix.graph"),
        ("keras_metamix/layers/conv.py", "def f():\n    import keras_metamix", "keras_metamix"),
        ("keras_metamix/graph/fold.py", "from ..metamix import loss", "keras_metamix.metamix"),
        ("keras_metamix/metamix/model.py", "from .. import bitmixer", "keras_metamix.bitmixer"),
        ("keras_metamix/metamix/model.py", "import metamix_tflite", "metamix_tflite"),
        ("keras_metamix/graph/fold.py", "import metamix_tflite.write", "metamix_tflite.write"),
        ("keras_metamix/calibration.py", "import_module('keras_metamix.launch')", "launch"),
        ("keras_metamix/__init__.py", "from keras_metamix import launch", "keras_metamix.launch"),
        ("keras_metamix/data/mnist.py", "from .. import metamix", "keras_metamix.metamix"),
        ("keras_metamix/report/page.py", "from keras import ops", "keras"),
        ("keras_metamix/zoo/resnet.py", "import numpy", "numpy"),
        ("keras_metamix/launch/train.py", "import tf_keras", "tf_keras"),
        ("tflite/metamix_tflite/write/a.py", "import keras_metamix.launch.train", "launch"),
        ("tflite/metamix_tflite/operators/a.py", "from keras_metamix import layers", "layers"),
        ("tflite/metamix_tflite/operators/a.py", "from ..read import b", "metamix_tflite.read"),
        ("tflite/metamix_tflite/read/a.py", "import keras", "keras"),
        ("tflite/metamix_tflite/newcomer.py", "", "no row for metamix_tflite.newcomer"),
        ("keras_metamix/newcomer.py", "", "MAY_IMPORT has no row for keras_metamix.newcomer"),
    ],
)
def test_a_broken_rule_is_named(tmp_path, file, text, target):
    folders = ("ops", "cost", "layers", "graph", "metamix", "bitmixer", "launch")
    write_tree(tmp_path, {f"keras_metamix/{folder}/__init__.py": "" for folder in folders})
    assert violations(tmp_path) == []
    write_tree(tmp_path, {file: text})
    (line,) = violations(tmp_path)
    assert line.startswith(file)
    assert line.endswith(target)


def test_imports_along_the_direction_are_allowed(tmp_path):
    write_tree(
        tmp_path,
        {
            "keras_metamix/__init__.py": "from .metamix.model import MetaMixModel",
            "keras_metamix/ops/lsq.py": "import keras",
            "keras_metamix/layers/conv.py": "from ..ops import lsq\nfrom . import dense",
            "keras_metamix/graph/fold.py": "from keras_metamix.layers import conv",
            "keras_metamix/metamix/model.py": "import tensorflow\nfrom ..graph import fold",
            "keras_metamix/launch/train.py": "import keras_metamix, metamix_tflite",
            "keras_metamix/zoo/resnet.py": "import functools\nimport keras",
            "tflite/metamix_tflite/write/convert.py": "import keras_metamix as kmm",
        },
    )
    assert violations(tmp_path) == []


# Keras loads some of these itself: they are forgotten, so that what loads them again is ours.
LOADED_AGAIN = """
import sys
import keras, tensorflow
late = {"jinja2", "matplotlib", "rich"}
for name in [*sys.modules]:
    if name.partition(".")[0] in late:
        del sys.modules[name]
import keras_metamix, metamix_tflite
print(*sorted({name.partition(".")[0] for name in sys.modules} & late))
"""


def test_training_loads_nothing_that_reports_need():
    """`import keras_metamix` leaves what draws and prints pages to those who ask for it."""
    command = [sys.executable, "-c", LOADED_AGAIN]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout.strip()) == (0, ""), run.stderr[-2000:]


NOT_OURS = {".git", ".venv", ".venv-lowest", "runs", "build", "dist", "__pycache__"}
NOT_OURS |= {".pytest_cache", ".ruff_cache", ".hypothesis", "node_modules", "litertjs"}
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:root|work|home|Users)/")


def machine_paths(top: Path) -> list[str]:
    """One line, "file:line: text", for each line that names a folder of somebody's machine."""
    lines = []
    for folder, folders, files in os.walk(top):
        folders[:] = [f for f in folders if f not in NOT_OURS and not f.startswith("bazel-")]
        for path in (Path(folder, name) for name in files):
            try:
                text = path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue  # not text
            lines += [
                f"{path.relative_to(top)}:{number}: {line.strip()}"
                for number, line in enumerate(text.splitlines(), 1)
                if MACHINE_PATH.search(line)
            ]
    return lines


def test_no_file_names_a_path_of_a_machine():
    assert machine_paths(TOP) == []


def test_what_ci_needs_lies_in_the_repository():
    """Neither the commands nor their description name a file beside the checkout."""
    for name in (".ci/run", "CONTRIBUTING.md", "Makefile", "scripts/bazel_offline.sh"):
        file = TOP / name
        if file.is_file():  # a test under bazel does not see all of them
            assert not re.search(r"(?<![\w.])\.\./", file.read_text()), name


def test_a_path_of_a_machine_is_found(tmp_path):
    place = "/".join(("", "root", "data"))
    write_tree(
        tmp_path,
        {"a/b.md": f"first\nsee {place}\n", "c.py": "x = 'graph/home/leaf'\n", "runs/log": place},
    )
    (tmp_path / "blob").write_bytes(b"\xff\xfe" + place.encode())
    assert machine_paths(tmp_path) == [f"a/b.md:2: see {place}"]

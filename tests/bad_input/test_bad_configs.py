"""What metamix-train says of a config, or a folder, before it trains anything."""

import functools
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from keras_metamix.launch import datasets, train

TOP = Path(__file__).parents[2]
NAN = float("nan")


@pytest.fixture(autouse=True, scope="module")
def _images_read_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load", functools.cache(datasets.load))
        yield


def load(name):
    """A config of the repository, of a network that is built in no time."""
    spec = importlib.util.spec_from_file_location(name, TOP / "configs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.model.name, config.model.width, config.model.stem_strides = "small_cnn", 4, 2
    return config


def changed(method, field, value):
    """A config with one field set to a value of any type; KeyError takes the field away."""
    config = load(method)
    *sections, last = field.split(".")
    with config.ignore_type(), config.unlocked():
        place = config
        for section in sections:
            place = place[section]
        if value is KeyError:
            del place[last]
        else:
            place[last] = value
    return config


def numbers(field, text, values):
    return [(field, v, f"config.{field}: expected a {text}.*, found {v!r}") for v in values]


SHARED = [
    *(
        (f, KeyError, f"config.{f} is missing")
        for f in ("data", "model", "space", "float", "export")
    ),
    ("train.batch_size", KeyError, "config.train.batch_size is missing"),
    ("colour", 3, "config.colour: no such field; expected some of"),
    ("space.colour", 3, "config.space.colour: no such field; expected some of"),
    ("method", 3, r"config.method: expected one of \['metamix', 'bitmixer'\], found 3"),
    ("data", 3, "config.data: expected a section of fields, found 3"),
    ("model", None, "config.model: expected a section of fields, found None"),
    ("title", 3, "config.title: expected text, found 3"),
    *numbers("seed", "(finite|whole) number", ["x", -1, 1.5]),
    ("data.name", "mnist", "expected one of .*'imagenet2012_sample'.*, found 'mnist'"),
    ("data.dir", 3, "config.data.dir: expected text, found 3"),
    *numbers("data.validation", "finite number, at least 0", ["x", NAN, -0.1, None]),
    ("data.validation", 10.5, "config.data.validation: .*a whole number of images, found 10.5"),
    ("data.validation", 10_000, "config.data.validation: expected fewer than the 10,000 training"),
    ("data.augment", "x", "config.data.augment: expected True or False, found 'x'"),
    ("model.name", "resnet", "config.model.name: expected one of .* found 'resnet'"),
    ("model.colour", 3, "config.model.colour: small_cnn has no such argument"),
    ("model.width", 0, "`filters`. Expected a strictly positive value. Received filters=0"),
    ("space.activation_bits", (9, 4), "activation_bits: expected a bit-width of 2 to 8, found 9"),
    ("space.weight_bits", None, "weight_bits: expected a bit-width of 2 to 8, found None"),
    ("space.edge_bits", 1, "edge_bits: expected a bit-width of 2 to 8, found 1"),
    ("space.stream_bits", 4, "stream_bits: expected 8 .* or None, found 4"),
    *numbers("float.epochs", "whole number, at least 0", [-1, 1.5, "x", None]),
    *numbers("float.learning_rate", "finite number, above 0", ["x", NAN, -1.0]),
    ("float.weights", "none.h5", "config.float.weights: expected a file, found no 'none.h5'"),
    *numbers("train.batch_size", "whole number, at least 1", [0, -1, 1.5, "x"]),
    ("train.batch_size", 10**6, "batch_size: expected 1 to 9000 images, found 1000000"),
    *numbers("train.learning_rate", "finite number, above 0", ["x", NAN]),
    *numbers("train.weight_decay", "finite number, at least 0", [-1.0, "x"]),
    *numbers("train.clip_norm", "finite number, at least 0", [-1, "x"]),
    *numbers("train.label_smoothing", "number in .0, 1]", [2.0, "x"]),
    ("train.optimizer", "sgdd", "Could not interpret optimizer identifier: sgdd"),
    ("export.weight_container", "tiny", "weight_container: expected one of .* found 'tiny'"),
    *numbers("export.threads", "whole number, at least 1", [0, "x"]),
    *numbers("export.runs", "whole number, at least 1", [0, -1]),
]
METAMIX = [
    ("search.target_bops", 4e-9, r"target_bops=4e-09: .*expected at least \d+ BOPs"),
    *numbers("search.target_bops", "finite number, above 0", ["x", NAN, -1]),
    *numbers("search.target_ratio", "finite number, above 0", ["x", NAN, -1]),
    ("search.target_ratio", None, "config.search.target_bops: expected it, or target_ratio"),
    (
        "search.target_latency",
        8500.0,
        "target_latency=8500.0: expected latency_table or accelerator beside it",
    ),
    *numbers("search.target_latency", "finite number, above 0", ["x", NAN, -1]),
    ("search.latency_table", 3, "config.search.latency_table: expected text, found 3"),
    ("search.latency_table", "no.json", "search.latency_table: .*found no 'no.json'"),
    *numbers("search.meta_epochs", "whole number, at least 0", [-1, 1.5]),
    *numbers("search.search_epochs", "whole number, at least 0", ["x"]),
    ("search.cost", "x", "config.search.cost: expected one of .* found 'x'"),
    *numbers("search.cost_strength", "finite number, at least 0", ["x", NAN]),
    *numbers("search.learning_rate", "finite number, above 0", ["x", 0]),
    *numbers("train.epochs", "whole number, at least 1", [0, -3, 4.5, "x"]),
    ("train.epochs", 2, "config.train.epochs=2 leaves no epoch for weight training"),
    ("train.teacher", "no.keras", "config.train.teacher: .* found no 'no.keras'"),
    ("train.teacher", 3, "config.train.teacher: expected text, found 3"),
    *numbers("train.distillation", "number in .0, 1]", [0.0, "x"]),
    *numbers("train.ema", "finite number, at least 0", [2.0, "x"]),
    ("train.uniform", "x", "config.train.uniform: expected True or False, found 'x'"),
]
SHARE = "expected a share from 0 .* to 1 .*, found "
BITMIXER = [
    *(
        ("mixer.stage_epochs", v, "config.mixer.stage_epochs: expected ")
        for v in ((), 3, "111", (1, -1, 1), (0, 0, 0))
    ),
    *numbers("mixer.in_place_distillation", "number in .0, 1]", [2, "x"]),
    ("mixer.operating_points", {}, "operating_points: expected at least one share"),
    ("mixer.operating_points", [0.5], r"operating_points: .* found \[0.5\]"),
    ("mixer.operating_points", {"eco": -0.1}, f"operating_points.eco: {SHARE}-0.1"),
    ("mixer.operating_points", {"eco": NAN}, f"operating_points.eco: {SHARE}nan"),
    ("mixer.operating_points", {"eco": "x"}, f"operating_points.eco: {SHARE}'x'"),
    ("mixer.operating_points", {"a/b": 0.5}, "operating_points: .*names of files, found 'a/b'"),
    ("mixer.operating_points", {"": 0.5}, "operating_points: .*names of files, found ''"),
    *numbers("mixer.images", "whole number, at least 1", [0, -1, "x"]),
    *numbers("mixer.front", "whole number, at least 0", [-1, 1.5]),
    ("mixer.batch_norm", "none", "batch_norm: expected one of .* found 'none'"),
    ("mixer.method", "luck", "config.mixer.method: expected one of .* found 'luck'"),
    ("mixer.budget", "joules", "config.mixer.budget: expected some of .* found 'joules'"),
    ("mixer.budget", "size,size", "config.mixer.budget: .*each once, found 'size,size'"),
    ("mixer.latency_table", 3, "config.mixer.latency_table: expected text, found 3"),
    ("mixer.latency_table", "no.json", "mixer.latency_table: .*found no 'no.json'"),
    ("space.weight_bits", (4, 2), "weight_bits: expected 'same' or one bit-width"),
]
FIELDS = [("quickstart", *case) for case in SHARED + METAMIX]
FIELDS += [("bitmixer_quickstart", *case) for case in BITMIXER]


@pytest.mark.parametrize(
    ("method", "field", "value", "message"),
    [pytest.param(*case, id=f"{case[1]} {case[2]!r}") for case in FIELDS],
)
def test_a_bad_field_is_refused_before_training(method, field, value, message, refuses, folder):
    config = changed(method, field, value)
    refuses(
        lambda: train.run_experiment(config, folder / "run"),
        (ValueError, FileNotFoundError),
        message,
    )


@pytest.mark.parametrize("config", [None, 3, {}, "quickstart.py"])
def test_what_is_no_config_is_refused(config, refuses, folder):
    refuses(
        lambda: train.run_experiment(config, folder / "run"),
        TypeError,
        "config: expected the ConfigDict of get_config, found ",
    )


@pytest.mark.parametrize(
    ("workdir", "message"),
    [
        ("taken", "--workdir: expected a folder taken, found the file taken"),
        ("taken/run", "--workdir: expected a folder taken/run, found the file taken"),
    ],
)
def test_a_file_for_a_folder_is_refused(workdir, message, refuses, folder):
    (folder / "taken").write_text("x")
    config = load("quickstart")
    refuses(lambda: train.run_experiment(config, Path(workdir)), OSError, message)


def test_a_folder_that_may_not_be_written_is_refused(refuses, folder, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    config = load("quickstart")
    refuses(
        lambda: train.run_experiment(config, Path("run")),
        PermissionError,
        r"--workdir: expected a folder to write to, found \.",
    )


CONFIGS = {
    "syntax.py": "def get_config(:\n",
    "raises.py": "def get_config():\n    raise ValueError('no luck')\n",
    "nothing.py": "x = 1\n",
}


# Real processes: each takes seconds to import TensorFlow.
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=missing.py"], "train.py: .*No such file or directory: 'missing.py'"),
        (["--config=syntax.py"], "train.py: --config: SyntaxError: invalid syntax"),
        (["--config=raises.py"], "train.py: ValueError: no luck"),
        (["--config={quickstart}", "--config.train.colour=3"], "no field .*colour"),
        (
            [
                "--config={quickstart}",
                "--config.search.latency_table=no.json",
                "--config.search.target_latency=8500",
                "--config.space.weight_bits=(8, 4)",
            ],
            "train.py: config.search.latency_table: expected a file .* found no 'no.json'",
        ),
    ],
    ids=["missing", "syntax", "raises", "field", "table"],
)
def test_a_command_line_is_refused(arguments, message, folder):

    for name, text in CONFIGS.items():
        (folder / name).write_text(text)
    before = set(folder.iterdir())
    quickstart = TOP / "configs" / "quickstart.py"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "keras_metamix.launch.train", "--workdir=run"),
            *(argument.format(quickstart=quickstart) for argument in arguments),
        ],
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1 and not done.stdout
    lines = [x for x in done.stderr.splitlines() if x.startswith("train.py: ")]
    assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    assert re.search(message, lines[0]) and len(lines[0]) <= 300, lines
    assert set(folder.iterdir()) == before

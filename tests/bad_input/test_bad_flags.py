"""What metamix-export, -benchmark and -report say of flags and of the files that these name."""

import copy
import json

import numpy as np
import pytest

import keras_metamix as kmm
from keras_metamix.launch import benchmark, export, report

NAN, INF = float("nan"), float("inf")
ROW = {
    "name": "float",
    "file": "f.tflite",
    "scores": {"accuracy": 0.5},
    "bops": 10,
    "file_bytes": 100,
    "average_bits": [32.0, 32.0],
    "latency_us": 1.0,
    "latency_spread_us": [1.0, 2.0],
    "threads": 1,
    "parity": None,
}
LAYER = {
    "name": "conv",
    "kind": "Conv2D",
    "macs": 10,
    "bops": 160,
    "activation_bits": 4,
    "weight_bits": 4,
    "weights": 9,
    "container": "INT8",
    "searched": True,
}
EPOCH = {
    "epoch": 0,
    "phase": "float",
    "loss": 1.0,
    "score": 0.5,
    "validation_loss": 1.0,
    "validation_score": 0.5,
    "costs": {"bops": 1.0},
    "seconds": 1.0,
}
RUN = {
    "config": {},
    "date": "2026-01-01",
    "versions": {},
    "machine": "one",
    "command": "train",
    "seconds": 1.0,
}
METRICS = {
    "title": "run",
    "metrics": ["accuracy"],
    "run": RUN,
    "rows": [ROW],
    "layers": [LAYER],
    "epochs": [EPOCH],
    "notes": ["a note"],
    "search": {
        "budgets": [{"cost": "bops", "limit": 1.0, "found": 1.0, "source": ""}],
        "argmax_bits": {},
        "alphas": {"candidates": {"conv": [4, 2]}, "history": {"conv": [[0.5, 0.5]]}, "steps": [0]},
    },
}


@pytest.fixture
def saved(given, folder):
    """The folder, with models, bits, arrays and metrics in it."""
    given.quantized.save("model.keras")
    given.mixer.save("mixer.keras")
    given.bits.save("bits.json")
    given.points["eco"].save("eco.json")
    kmm.BitAssignment({"a": 4}, {"a": 4}).save("other.json")
    (folder / "list.json").write_text("[]")
    (folder / "sub").mkdir()
    (folder / "taken").write_text("x")
    (folder / "model.tflite.txt").write_text("x")
    np.save("nan.npy", np.full((2, 8, 8, 1), NAN))
    np.save("wide.npy", np.zeros((2, 9, 8, 1)))
    np.save("complex.npy", np.zeros((2, 8, 8, 1), complex))
    np.save("text.npy", np.full((2, 8, 8, 1), "a"))
    np.save("objects.npy", np.array([{}, {}]), allow_pickle=True)
    np.save("none.npy", np.zeros((0, 8, 8, 1)))
    whole = (folder / "nan.npy").read_bytes()
    (folder / "cut.npy").write_bytes(whole[:200])
    promise = whole.replace(b"(2, 8, 8, 1), }" + b" " * 12, b"(2000000000000, 8, 8, 1), }")
    (folder / "promise.npy").write_bytes(promise)
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    return folder


IMAGES = r"--images={}: expected an array of shape \(images, 8, 8, 1\), found "
EXPORT = [
    ("--weight_container=x", "weight_container: expected one of .* found 'x'"),
    ("--io=int4", "io: expected one of .* found 'int4'"),
    ("--output=model.txt", r"--output: expected a name .*\.tflite, found 'model.txt'"),
    ("--output=", r"--output: expected a name .*\.tflite, found '\.'"),
    ("--output=no/model.tflite", "--output: expected a folder no, found none"),
    ("--output=taken/model.tflite", "--output: expected a folder taken, found none"),
    ("--bits=no.json", "No such file .*'no.json'"),
    ("--bits=sub", "Is a directory: 'sub'"),
    ("--bits=list.json", r"list.json: expected a file of BitAssignment.save .*, found \[\]"),
    ("--bits=model.keras", "model.keras: expected JSON, found none"),
    ("--bits=other.json", "--bits=other.json: .* another model than 'small_cnn_metamix'"),
    ("--bits=eco.json", "--bits=eco.json: Layer 'conv2': 2 activation bits are no candidate"),
    ("--images=no.npy", "No such file .*'no.npy'"),
    ("--images=sub", "Is a directory: 'sub'"),
    ("--images=list.json", IMAGES.format("list.json") + "no array"),
    ("--images=wide.npy", IMAGES.format("wide.npy") + r"float64 of shape \(2, 9, 8, 1\)"),
    ("--images=complex.npy", IMAGES.format("complex.npy") + "complex128"),
    ("--images=text.npy", IMAGES.format("text.npy") + "<U1"),
    ("--images=objects.npy", IMAGES.format("objects.npy") + "no array"),
    ("--images=cut.npy", IMAGES.format("cut.npy") + "no array"),
    ("--images=promise.npy", IMAGES.format("promise.npy") + "no array: mmap length is greater"),
    ("--images=nan.npy", "images of --images=nan.npy hold 128 NaN or Inf of 128 values"),
    ("--images=none.npy", "no array: cannot mmap an empty|at least one image, found none"),
    ("--point=eco", "--point: expected NAME=BITS.json, found 'eco'"),
    ("--point==eco.json", "--point: expected NAME=BITS.json, found '=eco.json'"),
    ("--point=eco=", "--point: expected NAME=BITS.json, found 'eco='"),
    ("--point=eco=no.json", "No such file .*'no.json'"),
    (
        "--point=eco=eco.json",
        "--point: model.keras: expected a BitMixerModel, found a MetaMixModel",
    ),
]
ECO = "--point=eco=eco.json"
MIXER = [
    ((ECO, ECO), "--point: expected each name once, found 'eco' again"),
    ((ECO, "--bits=eco.json"), "--point: expected no --bits beside it"),
    (("--point=eco=other.json",), "Operating point 'eco': .* another model than"),
    (("--point=a\nb=eco.json",), r"operating_points: expected printable names, found 'a\\nb'"),
    ((ECO, "--images=no.npy"), "No such file .*'no.npy'"),
    ((ECO, "--images=wide.npy"), IMAGES.format("wide.npy") + "float64"),
    ((ECO, "--weight_container=x"), "weight_container: expected one of .* found 'x'"),
    ((ECO, "--io=x"), "io: expected one of .* found 'x'"),
    (("--bits=other.json",), "--bits=other.json: .* another model than 'small_cnn_bitmixer'"),
]
BENCHMARK = [
    ("--device=moon", "device: expected one of local, .* found 'moon'"),
    ("--threads=0", "threads: expected at least 1, found 0"),
    ("--runs=-1", "runs: expected at least 1, found -1"),
    ("--runs=0", "runs: expected at least 1, found 0"),
    ("--warmup=-1", "warmup: expected at least 0, found -1"),
    ("--json=sub", "--json: expected the name of a file, found the folder sub"),
    ("--json=no/times.json", "--json: expected a folder no, found none"),
    ("--json=taken/times.json", "--json: expected a folder taken, found none"),
    ("none.tflite", "No such file .*'none.tflite'"),
    ("sub", "Is a directory: 'sub'"),
    ("model.tflite.txt", r"model.tflite.txt: expected a \.tflite, found 1 bytes"),
]
REPORT = [
    (("none",), "none: no such file, expected the metrics.json of a run"),
    (("sub",), "sub/metrics.json: no such file, expected the metrics.json of a run"),
    (("taken",), "taken: expected a JSON object, found invalid JSON"),
    (("nan.npy",), "nan.npy: expected a JSON object, found invalid JSON"),
    ((".", "--output=sub"), "--output: expected the name of a file, found the folder sub"),
    ((".", "--output=no/page.html"), "--output: expected a folder no, found none"),
    ((".", "--figures=no"), "--figures: expected a folder no, found none"),
    ((".", "--figures=taken"), "--figures: expected a folder taken, found none"),
]


@pytest.mark.parametrize(("flag", "message"), EXPORT)
def test_export_refuses(flag, message, saved, command_refuses):
    command_refuses(export, ["model.keras", flag], message)


@pytest.mark.parametrize(("flags", "message"), MIXER)
def test_export_of_a_mixer_refuses(flags, message, saved, command_refuses):
    command_refuses(export, ["mixer.keras", *flags], message)


@pytest.mark.parametrize(("argument", "message"), BENCHMARK)
def test_benchmark_refuses(argument, message, given, saved, command_refuses):
    (saved / "good.tflite").write_bytes(given.flat)
    command_refuses(benchmark, ["good.tflite", argument], message)


@pytest.mark.parametrize(("arguments", "message"), REPORT)
def test_report_refuses(arguments, message, saved, command_refuses):
    command_refuses(report, list(arguments), message)


@pytest.mark.parametrize(
    ("launcher", "arguments", "message"),
    [
        (export, [], "the following arguments are required: model"),
        (export, ["a.keras", "b.keras"], "unrecognized arguments: b.keras"),
        (export, ["a.keras", "--colour=red"], "unrecognized arguments: --colour=red"),
        (benchmark, [], "expected a MODEL.tflite, or --compare=RUN"),
        (benchmark, ["a.tflite", "--threads=two"], "argument --threads: invalid int value: 'two'"),
        (benchmark, ["a.tflite", "--runs=1.5"], "argument --runs: invalid int value: '1.5'"),
        (report, [], "the following arguments are required: source"),
        (report, ["run", "--colour=red"], "unrecognized arguments: --colour=red"),
    ],
)
def test_usage_is_said(launcher, arguments, message, folder, capsys):
    with pytest.raises(SystemExit) as stopped:
        launcher.parse_flags(["command", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not list(folder.iterdir())


def edited(path, value):
    """The text of a metrics.json with another value; KeyError takes the key away."""
    metrics = copy.deepcopy(METRICS)
    place = metrics
    for key in path[:-1]:
        place = place[key]
    if value is KeyError:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return json.dumps(metrics)


ALPHAS = ("search", "alphas")
FILE = "^[^:]*: metrics.json: "
FINITE = "expected a finite number.*, found "
DAMAGED = {
    "empty": ("", FILE + "expected a JSON object, found invalid JSON"),
    "cut": (json.dumps(METRICS)[:300], FILE + "expected a JSON object, found invalid JSON"),
    "binary": (bytes(range(256)), FILE + "expected a JSON object, found invalid JSON"),
    "nested": ("[" * 200_000, FILE + "expected a JSON object, found invalid JSON"),
    "list": ("[]", FILE + r"expected a section of fields, found \[\]"),
    "no rows": (edited(["rows"], KeyError), FILE + "rows is missing"),
    "a row of text": (
        edited(["rows"], ["x"]),
        FILE + r"rows\[0\]: expected a section of fields, found 'x'",
    ),
    "accuracy text": (
        edited(["rows", 0, "scores", "accuracy"], "x"),
        r"rows\[0\].scores\['accuracy'\]: expected a finite number, at least 0, found 'x'",
    ),
    "accuracy NaN": (
        edited(["rows", 0, "scores", "accuracy"], NAN),
        r"rows\[0\].scores\['accuracy'\]: " + FINITE,
    ),
    "latency inf": (edited(["rows", 0, "latency_us"], INF), r"rows\[0\].latency_us: " + FINITE),
    "spread NaN": (edited(["rows", 0, "latency_spread_us"], [NAN, 1]), "spread_us: " + FINITE),
    "bytes negative": (edited(["rows", 0, "file_bytes"], -3), r"file_bytes: .*found -3"),
    "BOPs huge": (edited(["rows", 0, "bops"], 10**400), r"rows\[0\].bops: " + FINITE),
    "MACs huge": (edited(["layers", 0, "macs"], 10**400), r"layers\[0\].macs: " + FINITE),
    "MACs negative": (
        edited(["layers", 0, "macs"], -1),
        r"layers\[0\].macs: expected a whole number.*found -1",
    ),
    "bits text": (
        edited(["layers", 0, "weight_bits"], "4"),
        "weight_bits: expected a whole number.*found '4'",
    ),
    "seconds inf": (edited(["run", "seconds"], INF), "run.seconds: " + FINITE),
    "loss NaN": (edited(["epochs", 0, "loss"], NAN), r"epochs\[0\].loss: " + FINITE),
    "no version": (edited(["run"], {}), FILE + "run.config is missing"),
    "parity empty": (
        edited(["rows", 0, "parity"], {}),
        r"rows\[0\].parity.differing is missing",
    ),
    "candidates": (
        edited([*ALPHAS, "candidates", "conv"], 3),
        "candidates.'conv'.: expected a list",
    ),
    "history of numbers": (
        edited([*ALPHAS, "history", "conv"], [1]),
        "'conv'..0.: expected a list",
    ),
    "history of text": (
        edited([*ALPHAS, "history", "conv"], ["ab"]),
        "'conv'..0.: expected a list",
    ),
    "steps of text": (
        edited([*ALPHAS, "steps"], ["x"]),
        r"steps.0.: expected a whole number.*found 'x'",
    ),
    "too few steps": (
        edited([*ALPHAS, "steps"], []),
        "history.'conv'.: expected 0 records",
    ),
    "no limit": (
        edited(["search", "budgets"], [{"cost": "bops"}]),
        "budgets.0..limit is missing",
    ),
    "a note of numbers": (edited(["notes"], [3]), r"notes\[0\]: expected text, found 3"),
}


@pytest.mark.parametrize(
    ("content", "message"), [pytest.param(*case, id=name) for name, case in DAMAGED.items()]
)
def test_report_refuses_damaged_metrics(content, message, folder, command_refuses):
    data = content if isinstance(content, bytes) else content.encode()
    (folder / "metrics.json").write_bytes(data)
    command_refuses(report, [".", "--output=page.html"], message)

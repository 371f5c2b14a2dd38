"""What verify, parity, benchmark, the runners and the commands say of files of other kinds."""

import contextlib
import io
import logging

import numpy as np
import pytest
import tensorflow as tf

import keras_metamix as kmm
import metamix_tflite as mt
from keras_metamix.launch import benchmark, export
from keras_metamix.launch.comparison.stock_converter import float_file
from keras_metamix.zoo import small_cnn

NAN = float("nan")


@pytest.fixture(scope="module")
def files(given):
    """Bytes by name: foreign, damaged, and of another model."""
    return {
        "empty": b"",
        "text": b"model" * 99,
        "zeros": bytes(100_000),
        "archive": b"PK\3\4" * 99,
        "identifier alone": bytes(4) + b"TFL3",
        "random bytes": b"\x1c\0\0\0TFL3" + np.random.default_rng(0).bytes(3000),
        "truncated": given.flat[: len(given.flat) // 2],
        "first bytes": given.flat[:16],
        "float": float_file(given.model),
        "int8": post_training(given),
        "other size": of_another_size(),
        "points": given.points_flat,
    }


def post_training(given):
    """The stock converter's int8 file."""
    converter = tf.lite.TFLiteConverter.from_keras_model(given.model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([x[None]] for x in given.images)
    logging.disable(logging.INFO)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return converter.convert()
    finally:
        logging.disable(logging.NOTSET)


def of_another_size():
    model = small_cnn((9, 9, 1), classes=4, width=4)
    quantized = kmm.MetaMixModel.from_float(model)
    kmm.calibrate(quantized, np.random.default_rng(0).normal(size=(4, 9, 9, 1)))
    quantized.set_bits(kmm.uniform_assignment(model, 4, 4))
    return mt.convert(quantized)


NONE = r"Expected the bytes of a \.tflite .*, found {} bytes that begin with"
UNREADABLE = r"The \.tflite cannot be read: "
STRANGE = "The file declares no bit-widths: it was not written by convert"
REFUSED = r"Expected a \.tflite that LiteRT runs, found \d+ bytes that it refuses: "
NO_POINTS = "operating_points=...., found one that declares no operating points"
READ = {
    "empty": NONE.format(0),
    "text": NONE.format(495),
    "zeros": NONE.format(100_000),
    "archive": NONE.format(396),
    "identifier alone": UNREADABLE,
    "random bytes": UNREADABLE,
    "truncated": UNREADABLE,
    "first bytes": UNREADABLE,
    "float": STRANGE,
    "int8": STRANGE,
}


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("call", ["verify", "verify bits", "verify points", "parity"])
def test_a_bad_file_is_refused(name, call, files, given, refuses):
    flat = files[name]
    calls = {
        "verify": lambda: mt.verify(flat),
        "verify bits": lambda: mt.verify(flat, given.bits),
        "verify points": lambda: mt.verify(flat, given.points),
        "parity": lambda: mt.parity(flat, given.quantized, given.images),
    }
    refuses(calls[call], mt.VerificationError, READ[name])


@pytest.mark.parametrize("name", [name for name in READ if READ[name] != STRANGE])
@pytest.mark.parametrize("call", [mt.benchmark, mt.Runner, mt.OperatingPointRunner])
def test_a_bad_file_does_not_run(name, call, files, refuses):
    messages = (READ[name], REFUSED, NO_POINTS)
    refuses(lambda: call(files[name]), ValueError, "|".join(messages))


@pytest.mark.parametrize("name", READ)
def test_export_takes_no_tflite(name, files, folder, command_refuses):
    (folder / "bad.tflite").write_bytes(files[name])
    command_refuses(export, ["bad.tflite"], r"bad\.tflite: expected a \.keras archive|cannot load")


@pytest.mark.parametrize("name", [name for name in READ if READ[name] != STRANGE])
def test_benchmark_names_a_bad_file(name, files, folder, command_refuses):
    (folder / "bad.tflite").write_bytes(files[name])
    (folder / "good.tflite").write_bytes(files["float"])
    message = rf"bad\.tflite: expected a \.tflite, found {len(files[name])} bytes that LiteRT refu"
    command_refuses(benchmark, ["good.tflite", "bad.tflite", "--json=times.json"], message)


OTHER = kmm.BitAssignment({"a": 4}, {"a": 4})
CASES = [
    *(
        (
            f"{call.__name__} {type(value).__name__}",
            lambda g, f, call=call, v=value: call(v),
            TypeError,
            r"Expected the bytes of a \.tflite, found "
            + ("the path" if isinstance(value, str) else type(value).__name__),
        )
        for call in (mt.verify, mt.benchmark, mt.Runner, mt.OperatingPointRunner)
        for value in (None, "model.tflite", 7, memoryview(b"x"))
    ),
    (
        "other bits",
        lambda g, f: mt.verify(g.flat, g.points["eco"]),
        ValueError,
        "'conv2': .*bits: ",
    ),
    (
        "other model's bits",
        lambda g, f: mt.verify(g.flat, OTHER),
        ValueError,
        "Layer 'conv1' is in the file and not in the assignment",
    ),
    (
        "points of one network",
        lambda g, f: mt.verify(g.flat, g.points),
        ValueError,
        r"Expected signatures \['full', 'eco'\], found \['serving_default'\]",
    ),
    (
        "one assignment of points",
        lambda g, f: mt.verify(g.points_flat, g.bits),
        ValueError,
        "Expected a file of one signature for one bit assignment, found .*'eco'",
    ),
    (
        "points exchanged",
        lambda g, f: mt.verify(g.points_flat, {"full": g.points["eco"], "eco": g.points["full"]}),
        ValueError,
        "Signature 'full': Layer 'conv2': ",
    ),
    *(
        (
            f"bits {value!r}",
            lambda g, f, v=value: mt.verify(g.flat, v),
            TypeError,
            f"bits: expected a BitAssignment, found {found}",
        )
        for value, found in [
            ("bits.json", "str"),
            (7, "int"),
            ([4], "list"),
            ({"conv1": 4}, "int"),
            ({"serving_default": None}, "NoneType"),
        ]
    ),
    (
        "parity of another size",
        lambda g, f: parity(g, f["other size"]),
        ValueError,
        r"shapes of the inputs are \[\(8, 8, 1\)\], found one .*\[\(9, 9, 1\)\]",
    ),
    (
        "parity of points",
        lambda g, f: parity(g, f["points"]),
        ValueError,
        "one signature, found .*e",
    ),
    (
        "parity of no points",
        lambda g, f: mt.parity(g.flat, g.mixer, g.images, g.points),
        ValueError,
        r"parity: expected some of \['serving_default'\], found \['full', 'eco'\]",
    ),
    ("device", lambda g, f: mt.benchmark(g.flat, "moon"), ValueError, "device: .*'local'.*'moon'"),
    *(
        (
            f"{name} {value!r}",
            lambda g, f, name=name, v=value: mt.benchmark(g.flat, **{"runs": 1, name: v}),
            ValueError,
            f"{name}: expected at least {least}, found {value!r}",
        )
        for name, least in (("threads", 1), ("runs", 1), ("warmup", 0))
        for value in (-1, 1.5, "2", None, True)
        if (name, value) != ("warmup", True)
    ),
    ("no thread", lambda g, f: mt.Runner(g.flat, threads=0), ValueError, "threads: .* found 0"),
    ("no batch", lambda g, f: mt.Runner(g.flat, batch_size=0), ValueError, "batch_size: .*found 0"),
    ("batch text", lambda g, f: mt.Runner(g.flat, 1, "2"), ValueError, "batch_size: .*found '2'"),
    (
        "no signature",
        lambda g, f: mt.benchmark(g.points_flat, runs=1),
        ValueError,
        r"signature: expected one of \['full', 'eco'\], found None",
    ),
    (
        "unknown signature",
        lambda g, f: mt.Runner(g.flat, signature="eco"),
        ValueError,
        r"signature: expected one of \['serving_default'\], found 'eco'",
    ),
    ("points of none", lambda g, f: mt.OperatingPointRunner(g.flat), ValueError, NO_POINTS),
    (
        "points' threads",
        lambda g, f: mt.OperatingPointRunner(g.points_flat, threads=0),
        ValueError,
        "threads: expected at least 1, found 0",
    ),
    (
        "a price missing",
        lambda g, f: mt.OperatingPointRunner(g.points_flat, prices={"eco": 1}),
        ValueError,
        r"prices: expected one for each of \['full', 'eco'\], found \['eco'\]",
    ),
    (
        "a price NaN",
        lambda g, f: mt.OperatingPointRunner(g.points_flat, prices={"eco": 1, "full": NAN}),
        ValueError,
        "prices: expected a number for 'full', found nan",
    ),
    *(
        (f"select {arguments}", lambda g, f, a=arguments: select(g, a), ValueError, message)
        for arguments, message in [
            ({}, "select: expected one of a name, latency_us=... and budget=..."),
            ({"name": "eco", "budget": 1}, "select: expected one of"),
            ({"name": "x"}, r"select: expected one of \['full', 'eco'\], found 'x'"),
            ({"latency_us": 5}, "nothing is measured yet"),
            ({"budget": -1}, r"select\(budget=-1\): no operating point fits; the least is 'eco'"),
            ({"budget": NAN}, "no operating point fits"),
            ({"budget": "x"}, "select: expected a number as budget, found 'x'"),
        ]
    ),
    *(
        (
            f"{kind} {name}",
            lambda g, f, run=run, make=make: run(g).predict(make(g.images)),
            error,
            message,
        )
        for kind, run in {
            "Runner": lambda g: mt.Runner(g.flat),
            "OperatingPointRunner": lambda g: mt.OperatingPointRunner(g.points_flat),
        }.items()
        for name, make, error, message in [
            ("none", lambda x: None, TypeError, "images: expected an array, found NoneType"),
            ("lists", lambda x: x.tolist(), TypeError, "images: expected an array, found list"),
            ("no image", lambda x: x[:0], ValueError, "images: expected at least one, found none"),
            ("another size", lambda x: x[:, 1:], ValueError, r"8, 8, 1\) for input .*8, 7, 8, 1\)"),
            ("one image", lambda x: x[0], ValueError, r"found \(8, 8, 1\): .*image\[None\]"),
            ("integers", lambda x: x.astype(int), ValueError, "INT64 but expected type FLOAT32"),
            ("NaN", lambda x: x * np.nan, ValueError, "images: expected finite ones, found NaN"),
            ("text", lambda x: x.astype(str), ValueError, "but expected type FLOAT32|STRING"),
        ]
    ),
    (
        "arrays too many",
        lambda g, f: mt.Runner(g.flat).invoke(g.images[:1], g.images[:1]),
        ValueError,
        "an array for each of 1 inputs, found 2",
    ),
]


def parity(given, flat):
    return mt.parity(flat, given.quantized, given.images)


def select(given, arguments):
    return mt.OperatingPointRunner(given.points_flat).select(**arguments)


@pytest.mark.parametrize(
    ("call", "error", "message"), [pytest.param(*case[1:], id=case[0]) for case in CASES]
)
def test_a_bad_call_is_refused(call, error, message, given, files, refuses):
    refuses(lambda: call(given, files), error, message)

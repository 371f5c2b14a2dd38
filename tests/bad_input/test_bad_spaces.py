"""What search spaces, assignments and bits.json files say that are none."""

import json

import numpy as np
import pytest

import keras_metamix as kmm
from keras_metamix.assignment import FORMAT

Space, Bits = kmm.SearchSpace, kmm.BitAssignment
NAN = float("nan")
RANGE = "expected a bit-width of 2 to 8, found {}"


def one_field(name, values):
    return [
        (
            f"{name}={text}",
            lambda g, v=value: Space(**{name: v}),
            ValueError,
            f"{name}: .*{message}",
        )
        for text, value, message in values
    ]


CANDIDATES = [
    ("()", (), "at least one bit-width, found none"),
    ("twice", (4, 4), r"every candidate once, found \[4, 4\]"),
    ("one bit", (4, 1), RANGE.format(1)),
    ("nine bits", (9,), RANGE.format(9)),
    ("float", (4.0,), RANGE.format("4.0")),
    ("text", ("4",), RANGE.format("'4'")),
    ("bool", (True,), RANGE.format("True")),
    ("none", None, RANGE.format("None")),
    ("negative", -4, RANGE.format(-4)),
    ("nested", [[4]], RANGE.format(r"\[4\]")),
    ("NaN", NAN, RANGE.format("nan")),
    ("array", np.array([4.5]), RANGE.format("np.float64")),
    ("long text", ("4" * 9999,), RANGE.format("'444")),
]
SPACES = [
    *one_field("activation_bits", CANDIDATES),
    *one_field("weight_bits", [*CANDIDATES, ("text alone", "4", "'same', found '4'")]),
    *one_field(
        "edge_bits",
        [
            ("zero", 0, RANGE.format(0)),
            ("one bit", 1, RANGE.format(1)),
            ("none", None, RANGE.format("None")),
            ("float", 8.0, RANGE.format("8.0")),
            ("several", (8, 4), RANGE.format(r"\(8, 4\)")),
        ],
    ),
    *one_field(
        "stream_bits",
        [
            ("four", 4, "expected 8 .* or None, found 4"),
            ("sixteen", 16, "found 16"),
            ("bool", True, "found True"),
            ("float", 8.0, "found 8.0"),
            ("text", "8", "found '8'"),
            ("NaN", NAN, "found nan"),
        ],
    ),
    ("no field", lambda g: Space.from_dict({"bits": 3}), ValueError, "some of .*found {'bits': 3}"),
    ("no fields", lambda g: Space.from_dict(None), ValueError, "SearchSpace: .* found None"),
    (
        "mixer of pairs",
        lambda g: kmm.BitMixerModel.from_float(g.model, Space((4, 2), (4, 2))),
        ValueError,
        r"Bit-Mixer: .*weight_bits: expected 'same' or one .* found candidates \[4, 2\]",
    ),
    (
        "mixer of the ends' weights",
        lambda g: kmm.BitMixerModel.from_float(
            g.model, Space((4, 2), "same", edge_weight_bits=(8, 4))
        ),
        ValueError,
        r"Bit-Mixer: .*edge_weight_bits: expected one bit-width, found candidates \[8, 4\]",
    ),
    (
        "float weights in bit-meta",
        lambda g: kmm.MetaMixModel.from_float(g.model, meta_weights="full"),
        ValueError,
        "meta_weights: expected one of .*'quantized', 'float'.* found 'full'",
    ),
    (
        "tuple for a space",
        lambda g: kmm.MetaMixModel.from_float(g.model, (8, 4)),
        TypeError,
        r"space: expected a SearchSpace, found \(8, 4\)",
    ),
    (
        "dict for a mixer's space",
        lambda g: kmm.BitMixerModel.from_float(g.model, {"a": 1}),
        TypeError,
        "space: expected a SearchSpace, found {'a': 1}",
    ),
    ("explain tuple", lambda g: kmm.explain(g.model, (8, 4)), TypeError, "space: .*SearchSpace"),
    ("uniform one", lambda g: kmm.uniform_assignment(g.model, 1, 4), ValueError, RANGE.format(1)),
    ("uniform text", lambda g: kmm.uniform_assignment(g.model, 4, "4"), ValueError, "found '4'"),
    (
        "uniform same",
        lambda g: kmm.uniform_assignment(g.model, 4, "same"),
        ValueError,
        "found 'sam",
    ),
    ("no candidate", lambda g: g.mixer.uniform_bits(9), ValueError, "9 bits are no candidate"),
    ("text candidate", lambda g: g.mixer.uniform_bits("4"), ValueError, "'4' bits are no candida"),
]
ASSIGNMENTS = [
    ("none", lambda g: Bits(None, None), TypeError, "activation_bits: expected .* found NoneType"),
    ("list", lambda g: Bits({"a": 4}, [4]), TypeError, "weight_bits: expected .* found list"),
    ("one side", lambda g: Bits({"a": 4}, {}), ValueError, r"different layers: \['a'\] is in one"),
    ("other names", lambda g: Bits({"a": 4}, {"b": 4}), ValueError, r"different.*\['a', 'b'\]"),
    ("number for a name", lambda g: Bits({3: 4}, {3: 4}), TypeError, "names of layers, found 3"),
    ("float", lambda g: Bits({"a": 4.0}, {"a": 4}), ValueError, "of layer 'a': .*found 4.0"),
    ("bool", lambda g: Bits({"a": 4}, {"a": True}), ValueError, "weight_bits of layer 'a': .*True"),
    ("one bit", lambda g: Bits({"a": 1}, {"a": 4}), ValueError, "activation_bits of .* found 1"),
    ("NaN", lambda g: Bits({"a": NAN}, {"a": 4}), ValueError, "found nan"),
    ("set none", lambda g: g.quantized.set_bits(None), TypeError, "BitAssignment, found None"),
    ("set dict", lambda g: g.mixer.set_bits({"a": 4}), TypeError, "BitAssignment, found {'a': 4}"),
    (
        "set others",
        lambda g: g.quantized.set_bits(Bits({"a": 4}, {"a": 4})),
        ValueError,
        r"another model than 'small_cnn_metamix': 4 MAC layers have no bits .* unknown \['a'\]",
    ),
    (
        "set no candidate",
        lambda g: g.quantized.set_bits(kmm.uniform_assignment(g.model, 2, 4)),
        ValueError,
        "Layer 'conv2': 2 activation bits are no candidate, expected one of",
    ),
    (
        "set others than same",
        lambda g: g.mixer.set_bits(kmm.uniform_assignment(g.model, 4, 2)),
        ValueError,
        "Layer 'conv2': .*needs 4 weight bits.*found 2",
    ),
    ("bops of none", lambda g: kmm.bops(g.model, None), TypeError, "BitAssignment, found None"),
    ("bops of a dict", lambda g: kmm.bops(g.model, {"a": 4}), TypeError, "found {'a': 4}"),
    ("summary", lambda g: kmm.summary(g.model, {"a": 4}), TypeError, "BitAssignment, found {'a'"),
]


def layers(**bits):
    return json.dumps({"format": FORMAT, "layers": {"a": bits}})


def pair(activation):
    return layers(activation_bits=activation, weight_bits=4)


WRONG = "bits.json: expected a file of BitAssignment.save .*found "
FILES = {
    "empty": ("", "bits.json: expected JSON, found none: Expecting value"),
    "text": ("four bits", "expected JSON, found none"),
    "cut": (pair(4)[:-9], "expected JSON, found none"),
    "more behind": (pair(4) + "x", "expected JSON, found none: Extra data"),
    "binary": (bytes(range(256)), "expected JSON, found none: .*can't decode byte 0x80"),
    "utf-16": (pair(4).encode("utf-16"), "expected JSON, found none: .*can't decode"),
    "zeros": (bytes(1 << 23), "expected JSON, found none: Expecting value"),
    "nested": ("[" * 200_000, "expected JSON, found none: maximum recursion"),
    "long number": (pair(4).replace("4,", "9" * 5000 + ","), "expected JSON, found none"),
    "list": ("[]", WRONG + r"\[\]"),
    "null": ("null", WRONG + "None"),
    "other JSON": ('{"bits": 3}', WRONG + "{'bits': 3}"),
    "other format": ('{"format": "x", "layers": {}}', WRONG + "{'format': 'x'"),
    "metrics": (json.dumps({"title": "x" * 9999}), WRONG + "{'title'"),
    "no layers": (json.dumps({"format": FORMAT}), "expected 'layers' to map .* found None"),
    "list of layers": (json.dumps({"format": FORMAT, "layers": []}), r"'layers' .* found \[\]"),
    "number for bits": (json.dumps({"format": FORMAT, "layers": {"a": 3}}), "found {'a': 3}"),
    "weights missing": (layers(activation_bits=4), r"layer 'a': .* found \['activation_bits'\]"),
    "one field more": (layers(activation_bits=4, weight_bits=4, x=1), "layer 'a': .* found .*'x'"),
    "thousand fields": (layers(**{str(i): 4 for i in range(1000)}), "layer 'a': .* found .*'0'"),
    "text for bits": (pair("4"), "activation_bits of layer 'a': .* found '4'"),
    "long text": (pair("4" * 9999), "activation_bits of layer 'a': .* found '444"),
    "float": (pair(4.0), "of layer 'a': .* found 4.0"),
    "bool": (pair(True), "of layer 'a': .* found True"),
    "null bits": (pair(None), "of layer 'a': .* found None"),
    "list of bits": (pair([4]), r"of layer 'a': .* found \[4\]"),
    "NaN": (pair(NAN), "of layer 'a': .* found nan"),
    "Infinity": (pair(float("inf")), "of layer 'a': .* found inf"),
    "nine bits": (pair(9), "of layer 'a': .* found 9"),
    "layer twice": (
        pair(4).replace('"a": {', '"a": {"activation_bits": 8, "weight_bits": 8}, "a": {'),
        "expected JSON, found none: the key 'a' twice",
    ),
    "bits twice": (
        pair(4).replace('"activation_bits": 4', '"activation_bits": 4, "activation_bits": 8'),
        "the key 'activation_bits' twice",
    ),
}
PATHS = [
    ("missing", lambda g: Bits.load("none.json"), FileNotFoundError, "No such file.*none.json"),
    ("folder", lambda g: Bits.load("sub"), IsADirectoryError, "Is a directory: 'sub'"),
    ("no path", lambda g: Bits.load(None), TypeError, "not NoneType"),
    ("save into none", lambda g: g.bits.save("no/bits.json"), FileNotFoundError, "No such .*'no/"),
    ("save as folder", lambda g: g.bits.save("sub"), IsADirectoryError, "Is a directory: .*'sub'"),
]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [pytest.param(*case[1:], id=case[0]) for case in [*SPACES, *ASSIGNMENTS]],
)
def test_bits_that_are_none_are_refused(call, error, message, given, refuses):
    refuses(lambda: call(given), error, message)


@pytest.mark.parametrize(
    ("content", "message"), [pytest.param(*case, id=name) for name, case in FILES.items()]
)
def test_a_bad_bits_file_is_refused(content, message, folder, refuses):
    (folder / "bits.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    refuses(lambda: Bits.load("bits.json"), ValueError, message)


@pytest.mark.parametrize(
    ("call", "error", "message"), [pytest.param(*case[1:], id=case[0]) for case in PATHS]
)
def test_a_bad_path_is_refused(call, error, message, given, folder, refuses):
    (folder / "sub").mkdir()
    refuses(lambda: call(given), error, message)

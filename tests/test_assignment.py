"""SearchSpace, BitAssignment and its file."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest

from keras_metamix.assignment import BitAssignment, LayerBits, SearchSpace

BITS = BitAssignment({"stem": 8, "mid/dle": 3, "out": 8}, {"stem": 8, "mid/dle": 4, "out": 8})


# --- SearchSpace ---------------------------------------------------------------------------------


def test_defaults_are_the_contract_s():
    space = SearchSpace()
    assert dataclasses.asdict(space) == {
        "activation_bits": (8, 4, 3),
        "weight_bits": 4,
        "edge_bits": 8,
        "stream_bits": 8,
        "edge_weight_bits": None,
    }


@pytest.mark.parametrize(
    ("given", "kept"),
    [((3, 8, 4), (8, 4, 3)), ([2, 4], (4, 2)), (4, (4,)), (range(2, 5), (4, 3, 2))],
)
def test_candidates_are_kept_descending(given, kept):
    assert SearchSpace(activation_bits=given).activation_bits == kept


@pytest.mark.parametrize(
    ("weight_bits", "inner", "tied"),
    [
        (4, ((8, 3), (4,)), False),
        ((2, 8), ((8, 3), (8, 2)), False),
        ([5], ((8, 3), (5,)), False),
        ("same", ((8, 3), (8, 3)), True),
    ],
    ids=str,
)
def test_layer_candidates(weight_bits, inner, tied):
    space = SearchSpace((8, 3), weight_bits, edge_bits=6)
    assert space.layer_candidates(edge=False) == inner
    assert space.layer_candidates(edge=True) == ((6,), (6,))
    assert space.tied(edge=False) is space.tied(edge=True) is tied


@pytest.mark.parametrize(
    ("given", "weights"), [(4, (4,)), ((2, 8), (8, 2)), ([5], (5,)), (None, (6,))], ids=str
)
@pytest.mark.parametrize("weight_bits", [4, (8, 4), "same"], ids=str)
def test_weights_of_the_ends_may_have_bits_of_their_own(given, weights, weight_bits):
    space = SearchSpace((8, 3), weight_bits, edge_bits=6, edge_weight_bits=given)
    assert space.layer_candidates(edge=True) == ((6,), weights)
    assert space.layer_candidates(edge=False) == SearchSpace((8, 3), weight_bits).layer_candidates(
        edge=False
    )
    assert space.tied(edge=True) is (weight_bits == "same" and given is None)
    assert SearchSpace.from_dict(json.loads(json.dumps(space.to_dict()))) == space


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"activation_bits": (8, 1)}, r"activation_bits.*2 to 8, found 1"),
        ({"activation_bits": (16, 8)}, r"activation_bits.*found 16"),
        ({"activation_bits": ()}, r"activation_bits.*at least one"),
        ({"activation_bits": (4, 4)}, r"activation_bits.*every candidate once.*\[4, 4\]"),
        ({"activation_bits": (8, 4.0)}, r"activation_bits.*found 4\.0"),
        ({"activation_bits": (8, True)}, r"activation_bits.*found True"),
        ({"activation_bits": "8,4"}, r"activation_bits.*'8,4'"),
        ({"activation_bits": None}, r"activation_bits.*None"),
        ({"weight_bits": 9}, r"weight_bits.*found 9"),
        ({"weight_bits": True}, r"weight_bits.*found True"),
        ({"weight_bits": "equal"}, r"weight_bits.*'same'.*'equal'"),
        ({"weight_bits": (4, 4)}, r"weight_bits.*once"),
        ({"weight_bits": ()}, r"weight_bits.*at least one"),
        ({"edge_bits": 32}, r"edge_bits.*found 32"),
        ({"edge_bits": None}, r"edge_bits.*found None"),
        ({"edge_weight_bits": 1}, r"edge_weight_bits.*found 1"),
        ({"edge_weight_bits": (8, 8)}, r"edge_weight_bits.*once"),
        ({"edge_weight_bits": "same"}, r"edge_weight_bits.*found 'same'"),
        ({"stream_bits": 4}, r"stream_bits.*expected 8.*found 4"),
        ({"stream_bits": 0}, r"stream_bits.*found 0"),
    ],
    ids=str,
)
def test_bad_search_spaces_are_refused_by_field(fields, message):
    with pytest.raises(ValueError, match=r"SearchSpace\." + message):
        SearchSpace(**fields)


@pytest.mark.parametrize(
    "space",
    [
        SearchSpace(),
        SearchSpace((4, 2), (8, 4), 6, None),
        SearchSpace((5,), "same"),
    ],
    ids=str,
)
def test_a_search_space_survives_json(space):
    assert SearchSpace.from_dict(json.loads(json.dumps(space.to_dict()))) == space


def test_bit_widths_may_be_numpy_s_integers():
    found = SearchSpace(np.array([4, 8]), np.int64(4), np.int32(8), edge_weight_bits=np.uint8(4))
    assert found == SearchSpace((8, 4), 4, 8, edge_weight_bits=4)
    bits = BitAssignment({"a": np.int64(4)}, {"a": np.int64(2)})
    assert json.loads(json.dumps([found.to_dict(), bits["a"].weight]))[1] == 2
    with pytest.raises(ValueError, match="expected a bit-width of 2 to 8, found np.float64"):
        SearchSpace((np.float64(4),))


def test_values_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SearchSpace().edge_bits = 4
    with pytest.raises(dataclasses.FrozenInstanceError):
        BITS.weight_bits = {}


# --- BitAssignment -------------------------------------------------------------------------------


def test_an_assignment_gives_a_layer_s_bits():
    assert BITS["mid/dle"] == LayerBits(activation=3, weight=4)
    with pytest.raises(KeyError, match="nowhere"):
        BITS["nowhere"]


def test_an_assignment_does_not_follow_the_dictionary_that_it_was_made_of():
    activation = {"a": 4}
    bits = BitAssignment(activation, {"a": 4})
    activation["a"] = 2
    assert bits.activation_bits == {"a": 4}


@pytest.mark.parametrize(
    ("activation", "weight", "error", "message"),
    [
        ({"a": 4}, {"b": 4}, ValueError, r"different layers.*\['a', 'b'\]"),
        ({"a": 4, "b": 4}, {"a": 4}, ValueError, r"\['b'\]"),
        ({"a": 9}, {"a": 4}, ValueError, r"activation_bits of layer 'a'.*found 9"),
        ({"a": 4}, {"a": 1}, ValueError, r"weight_bits of layer 'a'.*found 1"),
        ({"a": "4"}, {"a": 4}, ValueError, r"layer 'a'.*found '4'"),
        ({"a": 4.0}, {"a": 4}, ValueError, r"layer 'a'.*found 4\.0"),
        ({"a": True}, {"a": 4}, ValueError, r"layer 'a'.*found True"),
        ({"a": None}, {"a": 4}, ValueError, r"layer 'a'.*found None"),
        ([("a", 4)], {"a": 4}, TypeError, r"activation_bits.*found list"),
        ({"a": 4}, 4, TypeError, r"weight_bits.*found int"),
    ],
    ids=str,
)
def test_bad_assignments_are_refused_by_layer(activation, weight, error, message):
    with pytest.raises(error, match=message):
        BitAssignment(activation, weight)


def test_check_layers():
    BITS.check_layers(["out", "mid/dle", "stem"])
    with pytest.raises(ValueError, match=r"'net'.*1 MAC layers have no bits \['more'\]"):
        BITS.check_layers(["stem", "mid/dle", "out", "more"], "'net'")
    with pytest.raises(ValueError, match=r"2 names are unknown \['mid/dle', 'out'\]"):
        BITS.check_layers(["stem"])


# --- the file ------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_type", [str, Path])
def test_json_round_trip(tmp_path, as_type):
    path = as_type(tmp_path / "bits.json")
    BITS.save(path)
    loaded = BitAssignment.load(path)
    assert loaded == BITS
    assert list(loaded.activation_bits) == ["stem", "mid/dle", "out"]  # network order
    assert json.loads(Path(path).read_text()) == {
        "format": "keras_metamix.bit_assignment",
        "layers": {
            "stem": {"activation_bits": 8, "weight_bits": 8},
            "mid/dle": {"activation_bits": 3, "weight_bits": 4},
            "out": {"activation_bits": 8, "weight_bits": 8},
        },
    }


def test_layer_names_of_any_script_survive(tmp_path):
    bits = BitAssignment({"Faltung-ä 畳み込み": 4}, {"Faltung-ä 畳み込み": 4})
    bits.save(tmp_path / "bits.json")
    assert BitAssignment.load(tmp_path / "bits.json") == bits


def test_saving_leaves_nothing_else(tmp_path):
    BITS.save(tmp_path / "bits.json")
    BITS.save(tmp_path / "bits.json")
    assert [p.name for p in tmp_path.iterdir()] == ["bits.json"]


def test_a_failed_write_keeps_the_file_that_was_there(tmp_path, monkeypatch):
    path = tmp_path / "bits.json"
    BITS.save(path)
    before = path.read_bytes()

    def full(self, text, *_, **__):
        with open(self, "w") as file:
            file.write(text[: len(text) // 2])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        BitAssignment({"other": 2}, {"other": 2}).save(path)
    assert path.read_bytes() == before


def test_the_final_name_appears_complete(tmp_path, monkeypatch):
    """What is moved to the final name is the whole file, from the same folder."""
    moved = []

    def replace(source, target):
        source, target = Path(source), Path(target)
        assert source.parent == target.parent
        assert not target.exists()
        moved.append(json.loads(source.read_text())["layers"])
        source.rename(target)

    monkeypatch.setattr(os, "replace", replace)
    BITS.save(tmp_path / "bits.json")
    assert [list(layers) for layers in moved] == [["stem", "mid/dle", "out"]]


FORMAT = '"format": "keras_metamix.bit_assignment"'
GOOD = '{"activation_bits": 4, "weight_bits": 4}'
MALFORMED = {
    "empty": ("", "expected JSON"),
    "truncated": ("{" + FORMAT + ', "layers": {"a"', "expected JSON"),
    "no JSON": ("PK\x03\x04", "expected JSON"),
    "a list": ("[1, 2]", "expected a file of BitAssignment.save"),
    "a number": ("8", "expected a file of BitAssignment.save"),
    "no format": ('{"layers": {}}', "expected a file of BitAssignment.save"),
    "another format": ('{"format": "x", "layers": {}}', "expected a file of BitAssignment.save"),
    "no layers": ("{" + FORMAT + "}", "expected 'layers'"),
    "layers in a list": ("{" + FORMAT + ', "layers": [4]}', "expected 'layers'"),
    "a layer of one number": ("{" + FORMAT + ', "layers": {"a": 4}}', "expected 'layers'"),
    "a key missing": ("{" + FORMAT + ', "layers": {"a": {"weight_bits": 4}}}',
                      r"layer 'a'.*\['weight_bits'\]"),
    "a key too many": ("{" + FORMAT + ', "layers": {"a": {"activation_bits": 4, "weight_bits": 4,'
                       ' "x": 1}}}', "layer 'a'.*'x'"),
    "1 bit": ("{" + FORMAT + ', "layers": {"b": ' + GOOD.replace("4", "1") + "}}",
              "layer 'b'.*found 1"),
    "bits of text": ("{" + FORMAT + ', "layers": {"b": ' + GOOD.replace("4", '"4"') + "}}",
                     "layer 'b'.*found '4'"),
    "bits of float": ("{" + FORMAT + ', "layers": {"b": ' + GOOD.replace("4", "4.0") + "}}",
                      "layer 'b'.*found 4.0"),
    "null": ("{" + FORMAT + ', "layers": {"b": ' + GOOD.replace("4", "null") + "}}",
             "layer 'b'.*found None"),
    "NaN": ("{" + FORMAT + ', "layers": {"b": ' + GOOD.replace("4", "NaN") + "}}",
            "layer 'b'.*found nan"),
    "bits of list": ("{" + FORMAT + ', "layers": {"b": ' + GOOD.replace("4", "[4]") + "}}",
                     r"layer 'b'.*found \[4\]"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_files_are_refused_by_name(tmp_path, text, message):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"bad\.json: .*{message}"):
        BitAssignment.load(path)


def test_a_binary_file_is_refused_by_name(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"\xff\xfe\x00TFL3\x80\x81")
    with pytest.raises(ValueError, match=r"model\.tflite: expected JSON"):
        BitAssignment.load(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        BitAssignment.load(tmp_path / "nowhere.json")


def test_no_tensorflow_is_needed():
    """A phone-side tool reads a bits.json with the standard library alone."""
    import ast

    import keras_metamix.assignment as module

    tree = ast.parse(Path(module.__file__).read_text())
    names = {
        (node.module or "") if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert names <= {
        *(
            "__future__",
            "collections.abc",
            "dataclasses",
            "difflib",
            "json",
            "os",
            "numbers",
            "pathlib",
            "typing",
        ),
        *("keras_metamix.files", "keras_metamix.checks"),
    }

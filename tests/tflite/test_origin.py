"""What a file tells of where it comes from, and that it is what `convert` wrote."""

import importlib.metadata

import numpy as np
import pytest

import keras_metamix as kmm
import metamix_tflite as mt
from metamix_tflite.read.file_hash import HASH_NAME, PLACEHOLDER
from metamix_tflite.read.files import changes, hashed, require_unchanged
from metamix_tflite.read.metadata import METADATA_NAME, decode, encode

RUN = {"title": "quickstart – 4 bits", "accuracy": 0.875, "epochs": [1, 2], "notes": {"a": None}}


def test_a_file_tells_of_its_training(resnet):
    declared = mt.verify(mt.convert(resnet[0], run=RUN)).metadata
    assert declared["run"] == RUN
    assert mt.verify(resnet[2]).metadata["run"] == {}


def test_a_file_of_points_tells_of_its_training(resnet):
    flat = mt.convert(resnet[0], operating_points={"a": resnet[3]}, run=RUN)
    assert mt.verify(flat, {"a": resnet[3]})["a"].metadata["run"] == RUN


def test_a_file_names_the_versions_that_wrote_it(resnet):
    versions = mt.verify(resnet[2]).metadata["versions"]
    assert versions["ai-edge-litert"] == importlib.metadata.version("ai-edge-litert")
    assert set(versions) == {"keras-metamix", "tensorflow", "keras", "ai-edge-litert", "numpy"}


def test_a_file_declares_bits_and_bops(resnet):
    model, _, flat, bits = resnet
    declared = mt.verify(flat, bits).metadata
    layers = declared["layers"]
    assert {n: e["activation_bits"] for n, e in layers.items()} == bits.activation_bits
    assert declared["bops"] == kmm.bops(model, bits)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ([1], "run: expected a dictionary, found list"),
        ("text", "run: expected a dictionary, found str"),
        ({"model": object()}, "run: expected what JSON holds, found: .*object"),
        ({"loss": float("nan")}, "run: expected what JSON holds, found: .*float"),
        ({(1, 2): 3}, "run: expected what JSON holds, found: .*tuple"),
        ({"log": "x" * (1 << 24)}, "declares at most 16,777,216 bytes, found"),
    ],
)
def test_a_run_that_no_file_holds_is_named(run, message, resnet):
    with pytest.raises(ValueError, match=message):
        mt.convert(resnet[0], run=run, golden=0)


# --- the hash ------------------------------------------------------------------------------------


def test_any_byte_that_changes_is_noticed(resnet):
    flat = resnet[2]
    require_unchanged(flat)
    for place in {*range(8, len(flat), 97), len(flat) - 1}:
        changed = bytearray(flat)
        changed[place] ^= 0x10
        with pytest.raises(mt.VerificationError):
            require_unchanged(bytes(changed))


@pytest.mark.parametrize("edit", [lambda f: f + b"\0", lambda f: f[:-1]])
def test_another_length_is_noticed(edit, resnet):
    with pytest.raises(mt.VerificationError, match="since it was written|cannot be read"):
        mt.verify(edit(resnet[2]), resnet[3])


def test_a_change_that_nothing_else_notices(resnet):
    name = b"keras-metamix"  # the flatbuffer's description
    place = resnet[2].index(name)
    changed = resnet[2][:place] + b"K" + resnet[2][place + 1 :]
    with pytest.raises(
        mt.VerificationError, match="written: description was replaced. It computes"
    ):
        mt.verify(changed, resnet[3])
    mt.verify(hashed(changed), resnet[3])


def other_dilation(model):
    operators = model.subgraphs[0].operators
    options = next(o.builtinOptions for o in operators if hasattr(o.builtinOptions, "strideW"))
    options.dilationWFactor = 2


def other_version(model):
    model.operatorCodes[0].version += 1


def other_input_name(model):
    model.signatureDefs[0].inputs[0].name = b"other"


def other_version_of_numpy(model):
    (entry,) = [m for m in model.metadata if m.name == METADATA_NAME.encode()]
    declared = decode(bytes(bytearray(model.buffers[entry.buffer].data)))
    declared["versions"]["numpy"] = "1.0"
    model.buffers[entry.buffer].data = np.frombuffer(encode(declared), np.uint8)


@pytest.mark.parametrize(
    "edit", [other_dilation, other_version, other_input_name, other_version_of_numpy]
)
def test_contents_that_change_are_noticed_in_a_file_packed_anew(edit, resnet, remake):
    assert changes(remake(resnet[2], lambda model: None, rehash=False)) == [
        "its bytes lie in other places"
    ]
    with pytest.raises(mt.VerificationError, match="changed since it was written: SHA-256 declar"):
        changes(remake(resnet[2], edit, rehash=False))


def without_hash(model):
    model.metadata = [m for m in model.metadata if m.name != HASH_NAME.encode()]


def short_hash(model):
    (entry,) = [m for m in model.metadata if m.name == HASH_NAME.encode()]
    model.buffers[entry.buffer].data = np.zeros(31, np.uint8)


@pytest.mark.parametrize("edit", [without_hash, short_hash])
def test_a_file_without_its_hash_is_refused(edit, resnet, remake):
    with pytest.raises(mt.VerificationError, match="holds no SHA-256 of itself"):
        mt.verify(remake(resnet[2], edit), resnet[3])


def test_no_placeholder_is_left(resnet):
    assert PLACEHOLDER not in resnet[2]

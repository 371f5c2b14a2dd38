"""What metamix-export and load_model say of .keras files that are none of ours, or damaged."""

import io
import json
import zipfile

import keras
import numpy as np
import pytest
from keras import layers

import keras_metamix as kmm
from keras_metamix.launch import export
from keras_metamix.zoo import small_cnn


@pytest.fixture(scope="module")
def archives(given, tmp_path_factory):
    """Bytes of .keras files by name."""
    folder = tmp_path_factory.mktemp("archives")
    image = keras.Input((8, 8, 1))
    doubled = layers.Lambda(lambda t: t * 2, name="doubled")(layers.Conv2D(2, 3)(image))
    unfit = kmm.MetaMixModel.from_float(given.model)
    numbered = keras.models.clone_model(given.model)
    numbered = kmm.MetaMixModel.from_float(numbered)
    kmm.calibrate(numbered, given.images)
    numbered.set_bits(given.bits)
    models = {
        "model": given.quantized,
        "mixer": given.mixer,
        "float": given.model,
        "lambda": keras.Model(image, layers.Dense(2)(layers.Flatten()(doubled))),
        "wide": kmm.MetaMixModel.from_float(small_cnn((8, 8, 1), classes=4, width=8)),
        "searching": unfit,
    }
    for name, model in models.items():
        model.save(folder / f"{name}.keras")
    numbered.mac_layers[1].input_quantizer.choice.bit_index.assign(7)
    numbered.save(folder / "numbered.keras")
    numbered.mac_layers[1].input_quantizer.choice.bit_index.assign(0)
    numbered.network.get_layer("conv2").kernel.assign(np.full((3, 3, 4, 8), np.nan))
    numbered.save(folder / "nan.keras")
    return {path.stem: path.read_bytes() for path in folder.iterdir()}


def repacked(content, edit):
    """An archive after `edit({name: bytes})`."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    edit(members)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return packed.getvalue()


def member(name, content):
    """Another content of a member, None for none."""

    def edit(members):
        if content is None:
            del members[name]
        else:
            members[name] = content

    return lambda a: repacked(a["model"], edit)


def config(change, source="model"):
    """Another config.json, after `change(dict)`."""

    def edit(members):
        fields = json.loads(members["config.json"])
        change(fields)
        members["config.json"] = json.dumps(fields).encode()

    return lambda a: repacked(a[source], edit)


def fields(**values):
    return config(lambda c: c["config"].update(values))


def without(field, source="model"):
    return config(lambda c: c["config"].pop(field), source)


def named(name, module):
    return config(lambda c: c.update(class_name=name, registered_name=name, module=module))


def quantizers(**values):
    """Other fields of every activation quantizer."""

    def change(c):
        for layer in c["config"]["network"]["config"]["layers"]:
            layer = layer["config"].get("input_quantizer") or layer
            if layer["class_name"] == "ActivationQuantizer":
                layer["config"].update(values)

    return config(change)


def with_lambda(archives):
    """A model of ours whose pooling became a Python lambda."""
    source = json.loads(zipfile.ZipFile(io.BytesIO(archives["lambda"])).read("config.json"))
    (found,) = [e for e in source["config"]["layers"] if e["class_name"] == "Lambda"]

    def change(c):
        entries = c["config"]["network"]["config"]["layers"]
        (entry,) = [e for e in entries if e["config"]["name"] == "pool1"]
        entry |= {"class_name": "Lambda", "module": "keras.layers", "registered_name": None}
        entry["config"] = found["config"] | {"name": "pool1"}

    return config(change)(archives)


def weights_of(other):
    def edit(archives):
        with zipfile.ZipFile(io.BytesIO(archives[other])) as archive:
            return member("model.weights.h5", archive.read("model.weights.h5"))(archives)

    return edit


def flipped(archives):
    content = bytearray(archives["model"])
    content[len(content) // 2] ^= 0xFF
    return bytes(content)


NO_ARCHIVE = "bad.keras: expected a .keras archive, found none, or one cut short"
LOAD = "bad.keras: Keras cannot load it: "
OURS = "bad.keras: expected a QuantizedModel, MetaMixModel or BitMixerModel, found a "
CASES = {
    "empty": (lambda a: b"", NO_ARCHIVE),
    "text": (lambda a: b"model" * 99, NO_ARCHIVE),
    "random bytes": (lambda a: np.random.default_rng(0).bytes(5000), NO_ARCHIVE),
    "truncated": (lambda a: a["model"][: len(a["model"]) // 2], NO_ARCHIVE),
    "head missing": (lambda a: a["model"][200:], LOAD),
    "one byte changed": (flipped, LOAD + "Bad CRC-32|" + LOAD + "Error"),
    "a .tflite": (lambda a: b"\x1c\0\0\0TFL3" + bytes(99), NO_ARCHIVE),
    "no member": (
        lambda a: repacked(a["model"], dict.clear),
        LOAD + "expected config.json and mod",
    ),
    "no config": (member("config.json", None), LOAD + "expected config.json in the archive"),
    "no weights": (member("model.weights.h5", None), LOAD + "expected model.weights.h5 in the"),
    "config no JSON": (member("config.json", b"{nope"), LOAD + "Expecting property name"),
    "config binary": (member("config.json", bytes(range(256))), LOAD),
    "config nested": (member("config.json", b"[" * 200_000), LOAD + "maximum recursion depth"),
    "config a list": (member("config.json", b"[]"), LOAD + r"config.json: expected .* found \[\]"),
    "config null": (member("config.json", b"null"), LOAD + "config.json: expected .* found None"),
    "weights no HDF5": (member("model.weights.h5", b"hello"), LOAD + "Unable to .* open file"),
    "unknown class": (named("Nothing", "keras_metamix"), OURS + "Nothing model"),
    "system": (named("system", "os"), OURS + "system model"),
    "Popen": (named("Popen", "subprocess"), OURS + "Popen model"),
    "Sequential": (named("Sequential", "keras"), OURS + "Sequential model"),
    "float model": (lambda a: a["float"], OURS + "Functional model: quantize it with from_float"),
    "float lambda": (lambda a: a["lambda"], OURS + "Functional model"),
    "lambda inside": (with_lambda, LOAD + "Requested the deserialization of a `Lambda` layer"),
    "no space": (without("space"), LOAD + "MetaMixModel: expected a config with network and space"),
    "mixer's network": (without("network", "mixer"), LOAD + "BitMixerModel: expected a config wi"),
    "space of others": (fields(space={"bits": 3}), LOAD + "SearchSpace: expected some of"),
    "space null": (fields(space=None), LOAD + "MetaMixModel: expected a config with network"),
    "nine bits": (
        fields(space={"activation_bits": [9]}),
        LOAD + "SearchSpace.activation_bits: expected a bit-width of 2 to 8, found 9",
    ),
    "streams of four": (fields(space={"stream_bits": 4}), LOAD + "SearchSpace.stream_bits: .*4"),
    "another space": (
        fields(space={"activation_bits": [8, 2]}),
        LOAD + "Layer 'conv2': expected the bit-widths of SearchSpace",
    ),
    "phase": (fields(phase="x"), LOAD + "phase: expected one of .* found 'x'"),
    "stage": (
        config(lambda c: c["config"].update(stage="x"), "mixer"),
        LOAD + "stage: expected one of .* found 'x'",
    ),
    "transitions": (
        config(lambda c: c["config"].update(batch_norm="x"), "mixer"),
        LOAD + "batch_norm: expected one of .* found 'x'",
    ),
    "no network": (fields(network=None), LOAD + "MetaMixModel: expected a config with network"),
    "field more": (fields(colour="red"), LOAD + "Unrecognized keyword .*'colour'"),
    "candidates": (quantizers(candidates=[8, 99]), LOAD + "Layer 'conv1': expected the bit-widths"),
    "weights of another": (weights_of("wide"), LOAD + r"A total of \d+ objects could not be load"),
    "weights of a float": (weights_of("float"), LOAD + r"A total of \d+ objects could not be load"),
    "weights NaN": (lambda a: a["nan"], "conv2/kernel: expected finite weights, found 288 NaN"),
    "bits of no number": (
        lambda a: a["numbered"],
        "conv2/conv2_input: expected a bit_index from 0 to 2, found 7",
    ),
    "before its search ended": (
        lambda a: a["searching"],
        "bad.keras: expected a model in phase 'weight_training', found 'bit_meta'",
    ),
}


@pytest.mark.parametrize(
    ("make", "message"), [pytest.param(*case, id=name) for name, case in CASES.items()]
)
def test_export_refuses(make, message, archives, folder, command_refuses):
    (folder / "bad.keras").write_bytes(make(archives))
    command_refuses(export, ["bad.keras"], message)


@pytest.mark.parametrize("name", ["none.keras", "folder.keras"])
def test_export_names_what_is_no_file(name, folder, command_refuses):
    (folder / "folder.keras").mkdir()
    command_refuses(export, [name], f"(No such file|Is a directory).*'{name}'")


# Of these the words are Keras', which may take many lines: loading fails, and that is all.
LOADED = ("truncated", "random bytes", "no config", "no weights", "unknown class", "Popen")
LOADED += (
    "lambda inside",
    "float lambda",
    "weights of another",
    "no space",
    "phase",
    "another space",
)


@pytest.mark.parametrize("name", LOADED)
@pytest.mark.filterwarnings("ignore:Skipping nested container")
def test_keras_loads_none_of_these(name, archives, folder):
    (folder / "bad.keras").write_bytes(CASES[name][0](archives))
    with pytest.raises((ValueError, TypeError, KeyError, OSError)):
        keras.models.load_model("bad.keras")
    assert [path.name for path in folder.iterdir()] == ["bad.keras"]

"""`metamix-export`: the file it writes, and one line for each mistake."""

import importlib.util
import os
import re
import zipfile

import keras
import numpy as np
import pytest

import keras_metamix as kmm
import metamix_tflite as mt
from keras_metamix.launch import export


@pytest.fixture
def saved(folder, quantized):
    """The folder, with model.keras in it."""
    quantized.save(folder / "model.keras")
    return folder


@pytest.fixture
def fails(command, folder):
    """fails(*arguments) -> the error; nothing was printed or written."""

    def call(*arguments):
        before = set(folder.rglob("*"))
        status, out, err = command(export, *arguments)
        assert (status, out, err.count("\n")) == (1, "", 1), err
        assert set(folder.rglob("*")) == before
        return err.partition(": ")[2]

    return call


def test_export_writes_what_convert_gives(saved, quantized, command):
    status, out, err = command(export, "model.keras")
    assert (status, err) == (0, "")
    flat = (saved / "model.tflite").read_bytes()
    # The metadata holds a checksum of every layer's integers and every scale.
    found = mt.verify(flat, quantized.bit_assignment).metadata
    assert found["run"]["model"] == "model.keras"
    assert found | {"run": {}} == mt.verify(mt.convert(quantized)).metadata
    assert kmm.BitAssignment.load(saved / "bits.json") == quantized.bit_assignment
    assert {p.name for p in saved.iterdir()} == {"model.keras", "model.tflite", "bits.json"}

    *table, last = out.splitlines()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in table if "│" in line]
    assert rows[0] == ["conv1", "8/8", "INT8"]
    assert rows[1][:2] == ["conv2", "4/4"]
    assert [row[0] for row in rows] == ["conv1", "conv2", "conv3", "logits"]
    assert last.startswith(f"model.tflite: {len(flat):,} bytes, ")
    assert f"{kmm.bops(quantized, quantized.bit_assignment):,} BOPs; on 50 random images" in last
    assert ": 0 of 200 outputs differ" in last


def test_a_file_for_the_edge_tpu(saved, quantized, command):
    flags = ("--target=edgetpu", "--output=tpu.tflite")
    status, out, err = command(export, "model.keras", *flags)
    assert status == 0, err
    graph = mt.verify((saved / "tpu.tflite").read_bytes(), quantized.bit_assignment)
    found = [graph.metadata[key] for key in ("target", "weight_container", "io")]
    assert found == ["edgetpu", "int8", "int8"]
    assert {tensor.type for tensor in graph.tensors} == {"INT8", "INT32"}
    assert "with float32 inputs and outputs: 0 of 200 outputs differ" in out


def test_flags(saved, quantized, command):
    np.save("images.npy", np.random.default_rng(1).normal(size=(7, 8, 8, 1)))
    (saved / "out").mkdir()
    flags = ("--weight_container=smallest", "--images=images.npy", "--nobits_json")
    status, out, err = command(export, "model.keras", "--output=out/small.tflite", *flags)
    assert status == 0, err
    assert [p.name for p in (saved / "out").iterdir()] == ["small.tflite"]
    flat = (saved / "out" / "small.tflite").read_bytes()
    assert mt.verify(flat).metadata["weight_container"] == "smallest"
    assert "on 7 images of images.npy: " in out and " of 28 outputs differ" in out


def test_integer_io_is_compared_with_float_ends(saved, command):
    status, out, err = command(export, "model.keras", "--io=int8")
    assert status == 0, err
    assert mt.verify((saved / "model.tflite").read_bytes()).metadata["io"] == "int8"
    assert "images (seed 0), with float32 inputs and outputs: 0 of 200 outputs differ" in out


def test_bits_are_assigned(saved, quantized, float_model, command):
    bits = kmm.uniform_assignment(float_model, 3, 4)
    bits.save("given.json")
    status, _, err = command(export, "model.keras", "--bits=given.json")
    assert status == 0, err
    mt.verify((saved / "model.tflite").read_bytes(), bits)
    assert kmm.BitAssignment.load("bits.json") == bits


@pytest.fixture
def pictures(folder):
    """A model of colour pictures whose bytes were turned to floats of -1 to 1, saved."""
    image = keras.Input((8, 8, 3), name="image")
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3, name="conv")(image))
    model = keras.Model(image, keras.layers.Dense(3, name="scores")(x))
    model = kmm.QuantizedModel.from_float(model, 8, 4)
    kmm.calibrate(model, np.random.default_rng(0).uniform(-1, 1, (8, 8, 8, 3)))
    model.save("model.keras")
    (folder / "labels.txt").write_text("cat\nÅngström\ndog\n\n", encoding="utf-8")
    return folder


@pytest.mark.skipif(importlib.util.find_spec("mediapipe") is None, reason="it has the schema")
def test_labels(pictures, command):
    flags = ("--labels=labels.txt", "--normalization=127.5,127.5")
    status, out, err = command(export, "model.keras", *flags)
    assert status == 0, err
    assert ": 0 of 150 outputs differ" in out
    path = pictures / "model.tflite"
    mt.verify(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        assert archive.read("labels.txt").decode() == "cat\nÅngström\ndog"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--labels=none.txt"], r"No such file.*none\.txt"),
        (["--labels=latin.txt"], r"--labels=latin\.txt: expected a text in UTF-8"),
        (
            ["--labels=two.txt"],
            "labels: expected 3, one for each class of output 'scores', found 2",
        ),
        (["--labels=labels.txt", "--io=int8"], "MediaPipe takes pictures of float32 or uint8 alon"),
        (["--labels=labels.txt", "--target=ethosu"], "io='int8' .* expected another io"),
        (["--normalization=127.5"], r"expected \(mean, deviation\), .* found \(127.5,\)"),
        (["--normalization=0,0"], r"the deviation above 0, found \(0.0, 0.0\)"),
    ],
)
def test_bad_labels_are_named(pictures, fails, flags, message):
    (pictures / "latin.txt").write_bytes(b"caf\xe9")
    (pictures / "two.txt").write_text("a\nb")
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(fails("model.keras", *flags))


def test_the_models_own_bits_leave_trained_steps(saved, quantized, command):
    model = keras.saving.load_model("model.keras", compile=False)
    steps = model.mac_layers[1].weight_quantizer.trainable_variables
    for step in steps:
        step.assign(step + 0.1)
    assert steps
    model.save("trained.keras")
    quantized.bit_assignment.save("own.json")
    assert command(export, "trained.keras", "--bits=own.json")[0] == 0
    found = mt.verify((saved / "model.tflite").read_bytes()).metadata
    assert found | {"run": {}} == mt.verify(mt.convert(model)).metadata
    assert found | {"run": {}} != mt.verify(mt.convert(quantized)).metadata


def test_a_network_of_two_inputs_is_written(folder, command):
    inputs = [keras.Input((4, 4, 2), name=name) for name in "ab"]
    convolved = [keras.layers.Conv2D(2, 3, name=f"conv_{i.name}")(i) for i in inputs]
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Add()(convolved))
    network = keras.Model(inputs, keras.layers.Dense(3, name="logits")(x))
    model = kmm.MetaMixModel.from_float(network)
    kmm.calibrate(model, [np.random.default_rng(0).normal(size=(8, 4, 4, 2))] * 2)
    model.set_bits(kmm.uniform_assignment(network, 4, 4))
    model.save("model.keras")
    status, out, err = command(export, "model.keras")
    assert status == 0, err
    assert "on 50 random images (seed 0): 0 of 150 outputs differ" in out
    mt.verify((folder / "model.tflite").read_bytes(), model.bit_assignment)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--weight_container=tiny", "weight_container: expected one of .*'smallest'.*found 'tiny'"),
        ("--io=int4", "io: expected one of .* found 'int4'"),
        ("--output=model.keras", r"--output: expected a name .*\.tflite, found 'model\.keras'"),
        ("--output=no/model.tflite", "--output: expected a folder no, found none"),
        ("--output=taken.tflite", r"--output: expected .* a file, found the folder taken\.tflite"),
        ("--bits=none.json", r"No such file.*none\.json"),
        ("--bits=list.json", r"list\.json: expected a file of BitAssignment\.save"),
        ("--bits=other.json", r"--bits=other\.json: .* another model than 'small_cnn_metamix'"),
        ("--images=none.npy", r"No such file.*none\.npy"),
        ("--images=list.json", r"--images=list\.json: expected an array of .*found no array"),
        ("--images=wide.npy", r"\(images, 8, 8, 1\), found float64 of shape \(2, 9, 8, 1\)"),
        ("--images=names.npy", r"\(images, 8, 8, 1\), found <U1 of shape \(2, 8, 8, 1\)"),
        ("--images=empty.npy", "expected at least one image, found none"),
    ],
)
def test_a_bad_flag_is_named(saved, fails, flag, message):
    (saved / "taken.tflite").mkdir()
    (saved / "list.json").write_text("[]")
    kmm.BitAssignment({"a": 8}, {"a": 8}).save("other.json")
    np.save("wide.npy", np.zeros((2, 9, 8, 1)))
    np.save("names.npy", np.full((2, 8, 8, 1), "a"))
    np.save("empty.npy", np.zeros((0, 8, 8, 1)))
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(fails("model.keras", flag))


def test_a_read_only_folder_is_named(saved, fails, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert fails("model.keras").startswith("--output: expected a folder to write to, found .")


def test_a_missing_file_is_named(fails):
    assert "No such file or directory: 'none.keras'" in fails("none.keras")


def test_a_file_cut_short_is_named(saved, fails):
    content = (saved / "model.keras").read_bytes()
    (saved / "cut.keras").write_bytes(content[: len(content) // 2])
    assert fails("cut.keras").startswith("cut.keras: expected a .keras archive, found none")


def test_a_damaged_file_is_named(saved, fails):
    content = bytearray((saved / "model.keras").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (saved / "damaged.keras").write_bytes(content)
    assert fails("damaged.keras").startswith("damaged.keras: Keras cannot load it: ")


def test_a_float_model_says_what_to_do(folder, float_model, fails):
    float_model.save("float.keras")
    error = fails("float.keras")
    assert error.startswith(
        "float.keras: expected a QuantizedModel, MetaMixModel or BitMixerModel, found a "
        "Functional model: "
    )
    assert "from_float" in error


@pytest.mark.parametrize("phase", ["bit_meta", "bit_search"])
def test_an_unfinished_search_says_what_to_do(folder, float_model, fails, phase):
    model = kmm.MetaMixModel.from_float(float_model)
    model.phase = phase
    model.save("search.keras")
    error = fails("search.keras")
    assert f"search.keras: expected a model in phase 'weight_training', found '{phase}'" in error
    assert "MetaMixCallback" in error and "--bits" in error
    kmm.uniform_assignment(float_model, 4, 4).save("given.json")
    assert "no step sizes yet" in fails("search.keras", "--bits=given.json")


def test_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        export.parse_flags(["metamix-export", "--help"])
    assert stopped.value.code == 0
    assert "--weight_container" in capsys.readouterr().out


def test_parity_of_a_file_of_several_ends_is_checked(folder, command, fails):
    camera = keras.Input((4, 4, 3), name="camera", dtype="uint8")
    numbers = keras.Input((5,), name="numbers")
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(camera))
    x = keras.layers.Concatenate()([x, numbers])
    x = keras.layers.Dense(6, activation="relu", name="hidden")(x)
    heads = {name: keras.layers.Dense(2, name=name)(x) for name in ("cls", "box")}
    source = keras.Model([camera, numbers], heads, name="several")
    model = kmm.MetaMixModel.from_float(source, kmm.SearchSpace())
    rng = np.random.default_rng(0)
    images = {
        "camera": rng.integers(0, 256, (7, 4, 4, 3)).astype(np.uint8),
        "numbers": rng.normal(size=(7, 5)),
    }
    kmm.calibrate(model, [images["camera"], images["numbers"].astype(np.float32)])
    model.set_bits(kmm.uniform_assignment(source, 4, 4))
    model.save(folder / "several.keras")
    np.savez("images.npz", **images)
    for flags, told in (((), "on 50 random images"), (("--images=images.npz",), "on 7 images of")):
        status, out, err = command(export, "several.keras", *flags)
        assert (status, err) == (0, "")
        assert told in out
        assert ": 0 of " in out
    for file, arrays, message in (
        ("one.npz", {"camera": images["camera"]}, r"expected .*'numbers'\], found \['camera'\]"),
        (
            "wide.npz",
            images | {"numbers": images["camera"]},
            r"'numbers': expected .*\(images, 5\)",
        ),
    ):
        np.savez(file, **arrays)
        assert re.search(message, fails("several.keras", "--output=b.tflite", f"--images={file}"))
    np.save("one.npy", images["numbers"])
    assert "found ['one array']" in fails("several.keras", "--output=b.tflite", "--images=one.npy")

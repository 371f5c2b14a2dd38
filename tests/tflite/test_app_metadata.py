"""TFLite metadata: MediaPipe runs the files with the trained integers, and bad labels are named."""

import dataclasses
import importlib.util
import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

import keras_metamix as kmm
import metamix_tflite as mt
from keras_metamix import zoo
from keras_metamix.graph.topology import Topology
from metamix_tflite.read.files import changes
from metamix_tflite.write import app_metadata
from metamix_tflite.write.app_metadata import APP_METADATA
from metamix_tflite.write.golden_outputs import input_grid

PROCESS = Path(__file__).with_name("mediapipe_process.py")
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3)).astype(np.uint8)
PICTURES = np.random.default_rng(1).integers(0, 256, (6, 64, 64, 3)).astype(np.uint8)
LABELS = ["cat", "Ångström", "a dog", "tree", "car"]
RESCALING = layers.Rescaling(1 / 127.5, -1)

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mediapipe") is None,
    reason="MediaPipe, which has the schema, is not installed: pip install mediapipe",
)


@dataclasses.dataclass(frozen=True)
class Kind:
    """A network's beginning, and what its images are of bytes: (bytes - mean) / deviation."""

    begins: object
    dtype: str = "float32"
    mean: float = 0.0
    deviation: float = 1.0
    normalization: tuple | None = None
    dense: bool = False  # a class for each pixel

    def images(self):
        images = PICTURES if self.dense else IMAGES
        if self.dtype == "uint8":
            return images
        floats = (images.astype(np.float64) - self.mean) / self.deviation
        return floats.astype(np.float32)


def nothing(x):
    return x


STANDARD = {"mean": [0.4, 0.5, 0.6], "variance": [0.04, 0.05, 0.06]}
KINDS = {
    "bytes": Kind(RESCALING, "uint8"),
    "rescaled": Kind(RESCALING),
    "signed": Kind(nothing, mean=127.5, deviation=127.5, normalization=(127.5, 127.5)),
    "unsigned": Kind(nothing, deviation=255.0, normalization=(0, 255)),
    "standard": Kind(nothing, mean=120.0, deviation=60.0, normalization=(120, 60)),
    # Normalization of what was divided before: only the grid tells that an app has to divide.
    "divided": Kind(
        layers.Normalization(**STANDARD), deviation=255.0, normalization=(0.0, np.float32(255))
    ),
    "pixels": Kind(RESCALING, "uint8", dense=True),
    "signed_pixels": Kind(
        nothing, mean=127.5, deviation=127.5, normalization=(127.5, 127.5), dense=True
    ),
}
CLASSIFIERS = [name for name, kind in KINDS.items() if not kind.dense]
SEGMENTERS = [name for name, kind in KINDS.items() if kind.dense]


def network(kind, channels=3):
    """A convolution and a class for each image, or the zoo's U-Net."""
    if kind.dense:
        image = keras.Input(PICTURES.shape[1:], dtype=kind.dtype, name="image")
        unet = zoo.small_unet(PICTURES.shape[1:], len(LABELS))
        return keras.Model(image, unet(kind.begins(image)))
    image = keras.Input((8, 8, channels), dtype=kind.dtype, name="image")
    x = layers.Conv2D(6, 3, padding="same", name="conv")(kind.begins(image))
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(x))
    return keras.Model(image, layers.Dense(len(LABELS), name="scores")(x))


@pytest.fixture(scope="module")
def model():
    """model(kind) -> its quantized model, made once."""
    made = {}

    def make(name):
        if name not in made:
            keras.utils.set_random_seed(len(made))
            kind = KINDS[name]
            quantized = kmm.QuantizedModel.from_float(network(kind), 8, 4)
            kmm.calibrate(quantized, kind.images())
            made[name] = quantized
        return made[name]

    return make


@pytest.fixture(scope="module")
def written(model):
    """written(kind) -> its file with metadata, made once."""
    made = {}

    def make(name):
        if name not in made:
            normalization = KINDS[name].normalization
            made[name] = mt.convert(model(name), labels=LABELS, normalization=normalization)
        return made[name]

    return make


@pytest.fixture(scope="module")
def by_mediapipe(model, written, tmp_path_factory):
    """(folder of `mediapipe_process`, what it found)."""
    folder = tmp_path_factory.mktemp("mediapipe")
    np.save(folder / "classifier.npy", IMAGES)
    np.save(folder / "segmenter.npy", PICTURES)
    for name, kind in KINDS.items():
        task = "segmenter" if kind.dense else "classifier"
        (folder / f"{task}_{name}.tflite").write_bytes(written(name))
    (folder / "classifier_plain.tflite").write_bytes(mt.convert(model("bytes")))
    (folder / "repack.tflite").write_bytes(mt.convert(model("rescaled")))
    command = [sys.executable, "-P", PROCESS, folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(folder / "outputs.npz") as outputs:
        return folder, dict(outputs), json.loads((folder / "names.json").read_text())


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_mediapipe_classifies_with_the_same_integers(name, written, by_mediapipe):
    _, outputs, names = by_mediapipe
    expected = mt.Runner(written(name)).predict(KINDS[name].images())
    assert len(np.unique(expected)) >= 10
    np.testing.assert_array_equal(outputs[f"classifier_{name}"], expected)
    assert names[f"classifier_{name}"] == LABELS


def test_mediapipe_takes_a_file_of_bytes_without_metadata(written, by_mediapipe):
    _, outputs, names = by_mediapipe
    expected = mt.Runner(written("bytes")).predict(IMAGES)
    np.testing.assert_array_equal(outputs["classifier_plain"], expected)
    assert names["classifier_plain"] == [None] * len(LABELS)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_mediapipe_segments_with_the_same_integers(name, written, by_mediapipe):
    # Masks are the softmax of the file's logits: logarithms give back the steps between classes.
    _, outputs, names = by_mediapipe
    logits = mt.Runner(written(name)).predict(KINDS[name].images())
    assert len(np.unique(logits)) >= 100
    step = np.diff(np.unique(logits)).min()
    found = np.log(outputs[f"segmenter_{name}"].astype(np.float64)) / step
    expected = np.rint(logits / step)
    between = found[..., 1:] - found[..., :1]
    np.testing.assert_allclose(between, np.rint(between), atol=0.01)
    np.testing.assert_array_equal(np.rint(between), expected[..., 1:] - expected[..., :1])
    np.testing.assert_array_equal(outputs[f"map_{name}"], logits.argmax(-1))
    assert names[f"segmenter_{name}"] == LABELS


def test_what_a_tool_of_others_added_is_reported(by_mediapipe, model):
    folder, _, _ = by_mediapipe
    flat = (folder / "repacked.tflite").read_bytes()
    added = ["metadata 'TFLITE_METADATA' was added", "file 'theirs.txt' was added"]
    assert changes(flat) == added
    message = "packed anew since it was written: metadata .*, file 'theirs.txt' was added. It comp"
    with pytest.raises(mt.VerificationError, match=message):
        mt.verify(flat, model("rescaled").bit_assignment)
    (report,) = mt.replay(flat).values()
    assert report.differing == 0 and report.delegated


# --- the file -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_files_with_metadata_are_exact_and_whole(name, written, model):
    flat = written(name)
    mt.verify(flat, model(name).bit_assignment)
    (report,) = mt.replay(flat).values()
    assert report.differing == 0 and report.delegated
    assert mt.parity(flat, model(name), KINDS[name].images()).differing == 0


def test_metadata_and_labels_are_where_apps_look(written, read_app):
    app, files = read_app(written("standard"))
    assert files == {"labels.txt": "\n".join(LABELS)}
    (graph,) = app.subgraphMetadata
    (image,), (scores,) = graph.inputTensorMetadata, graph.outputTensorMetadata
    assert (image.name, scores.name) == (b"image", b"scores")
    (unit,) = image.processUnits
    assert (list(unit.options.mean), list(unit.options.std)) == ([120.0], [60.0])
    assert [f.name for f in scores.associatedFiles] == [b"labels.txt"]


@pytest.mark.parametrize(("name", "units"), [("bytes", None), ("rescaled", ([0.0], [1.0]))])
def test_a_model_of_bytes_needs_no_normalization(name, units, written, read_app):
    (image,) = read_app(written(name))[0].subgraphMetadata[0].inputTensorMetadata
    found = image.processUnits and [list(v) for v in vars(image.processUnits[0].options).values()]
    assert found == (units and [*units])


def test_metadata_without_labels(model, read_app):
    flat = mt.convert(model("signed"), normalization=(127.5, 127.5))
    mt.verify(flat)
    app, files = read_app(flat)
    assert app.subgraphMetadata[0].outputTensorMetadata[0].associatedFiles is None
    assert files == {}


def test_equal_files_are_equal(model, written):
    assert mt.convert(model("bytes"), labels=tuple(LABELS)) == written("bytes")


def test_what_becomes_of_our_own_parts_is_reported(written, remake):
    flat = written("bytes")
    assert changes(flat) == []

    def replace(file):
        (entry,) = [m for m in file.metadata if m.name == APP_METADATA.encode()]
        file.buffers[entry.buffer].data = np.zeros(8, np.uint8)

    bare = remake(flat, lambda file: None, rehash=False)
    assert changes(bare) == ["file 'labels.txt' was removed"]
    with io.BytesIO(remake(flat, replace, rehash=False)) as content:
        with zipfile.ZipFile(content, "a") as archive:
            archive.writestr("labels.txt", "other")
            archive.writestr("more.txt", "more")
        found = changes(content.getvalue())
    assert found == [
        "file 'more.txt' was added",
        "metadata 'TFLITE_METADATA' was replaced",
        "file 'labels.txt' was replaced",
    ]


@pytest.fixture
def read_app():
    """read_app(flat) -> (the metadata as the schema has it, the texts of the files)."""
    from ai_edge_litert import schema_py_generated as litert

    schema = app_metadata._schema("metadata_schema")

    def read(flat):
        file = litert.ModelT.InitFromObj(litert.Model.GetRootAs(flat, 0))
        (entry,) = [m for m in file.metadata if m.name == b"TFLITE_METADATA"]
        content = bytes(bytearray(file.buffers[entry.buffer].data))
        assert schema.ModelMetadata.ModelMetadataBufferHasIdentifier(content, 0)
        files = {}
        if zipfile.is_zipfile(io.BytesIO(flat)):
            with zipfile.ZipFile(io.BytesIO(flat)) as archive:
                assert {e.compress_type for e in archive.infolist()} == {zipfile.ZIP_STORED}
                files = {name: archive.read(name).decode() for name in archive.namelist()}
        return schema.ModelMetadataT.InitFromPackedBuf(content), files

    return read


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS[:4], "labels: expected 5, one for each class of output 'scores', found 4"),
        ([], "labels: expected 5, .* found 0"),
        ([*LABELS[:4], "cat"], r"labels: expected different ones, found \['cat'\] repeated"),
        ([*LABELS[:4], ""], "labels: expected printable names, found ''"),
        ([*LABELS[:4], "two\nlines"], r"labels: expected printable names, found 'two\\nlines'"),
        ([*LABELS[:4], " car"], "labels: expected names without blanks around, found ' car'"),
        ([*LABELS[:4], 7], "labels: expected printable names, found 7"),
        ("abcde", "labels: expected a list of names, found str"),
        ({"a": 1}, "labels: expected a list of names, found dict"),
    ],
)
def test_bad_labels_are_named(labels, message, model):
    with pytest.raises((TypeError, ValueError), match=message):
        mt.convert(model("bytes"), labels=labels)


@pytest.mark.parametrize(
    ("normalization", "message"),
    [
        ((1.0,), r"expected \(mean, deviation\), such as \(127.5, 127.5\), found \(1.0,\)"),
        (127.5, r"expected \(mean, deviation\), .* found 127.5"),
        ((0, 0), r"the deviation above 0, found \(0, 0\)"),
        ((0, -1), r"the deviation above 0, found \(0, -1\)"),
        ((float("nan"), 1), "the deviation above 0, found"),
        (("0", "1"), "the deviation above 0, found"),
        (([1, 2, 3], [1, 2, 3]), "one for each channel, which MediaPipe refuses: begin the mod"),
    ],
)
def test_what_is_no_normalization_is_named(normalization, message, model):
    with pytest.raises(ValueError, match=f"normalization: .*{message}"):
        mt.convert(model("signed"), normalization=normalization)


@pytest.mark.parametrize(
    ("name", "normalization", "message"),
    [
        ("bytes", (0, 1), "input 'image' takes bytes as they are, so that there is none"),
        ("rescaled", (127.5, 127.5), "trained on values of about 0 to 2.*bytes become -1 to 1:"),
        ("signed", None, r"of about -1.01 to 1, .* bytes of 0 to 255: .*such as \(127.5, 127.5\)"),
        ("signed", (0, 255), r"bytes become 0 to 1: .*such as \(127.5, 127.5\)"),
        ("signed", (127.5, 1), "bytes become -128 to 128"),
        ("unsigned", None, r"of about 0 to 1, .*such as \(0, 255\)"),
        ("unsigned", (127.5, 127.5), "bytes become -1 to 1"),
        ("divided", None, r"of about 0 to 1, .*such as \(0, 255\)"),
        ("standard", None, "of about -2.* to 2.*, and an app has bytes"),
        ("standard", (0, 60), "bytes become 0 to 4.25: expected what the training images had"),
    ],
)
def test_a_normalization_that_was_not_trained_is_named(name, normalization, message, model):
    with pytest.raises(ValueError, match=f"normalization: .*{message}"):
        mt.convert(model(name), labels=LABELS, normalization=normalization)


def two_inputs():
    images = [keras.Input((8, 8, 3), name=name) for name in ("left", "right")]
    return keras.Model(images, network(KINDS["signed"])(layers.Add()(images)))


def two_outputs():
    base = network(KINDS["signed"])
    return keras.Model(base.input, [base.output, layers.Dense(2, name="more")(base.output)])


def a_signal():
    image = keras.Input((8, 3), name="signal")
    x = layers.GlobalAveragePooling1D()(layers.Conv1D(4, 3)(image))
    return keras.Model(image, layers.Dense(5)(x))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: network(KINDS["signed"], channels=1), "found 'image' of shape .*1x1 convolution"),
        (two_inputs, "of one input .*, found 'left' of shape .*, 'right' of shape"),
        (two_outputs, r"of one output, .*, found 'scores' of shape \(None, 5\), 'more' of shape"),
        (a_signal, "found 'signal' of shape"),
    ],
)
def test_a_model_of_no_task_is_named(build, message):
    quantized = kmm.QuantizedModel.from_float(build(), 8, 8)
    with pytest.raises(ValueError, match=f"labels and normalization: .*{message}"):
        mt.convert(quantized, labels=LABELS)  # not even calibrated: this is found out first


def test_integer_ends_have_no_metadata(model):
    with pytest.raises(ValueError, match="MediaPipe takes pictures of float32 or uint8 alone"):
        mt.convert(model("signed"), io="int8", labels=LABELS)


@pytest.mark.parametrize("name", ["rescaled", "signed", "unsigned", "standard"])
def test_ends_of_bytes_are_those_of_the_normalization(name, model):
    folded = kmm.fold_batch_norm(model(name))
    grid = input_grid(Topology(folded), folded.inputs[0])
    arguments = folded, grid, LABELS, KINDS[name].normalization, "uint8"
    if name == "standard":  # its grid is symmetric, and bytes are not
        with pytest.raises(ValueError, match="takes for -2.* to 2.*, and .* -2 to 2.25: exp"):
            app_metadata.described(*arguments)
    else:
        assert app_metadata.described(*arguments).labels == tuple(LABELS)


def test_operating_points_have_no_metadata(model):
    points = dict.fromkeys(("full", "eco"), model("bytes").bit_assignment)
    message = r"files of one signature, found 2 operating points: .* model.set_bits\(bits\)"
    with pytest.raises(ValueError, match=message):
        mt.convert(model("bytes"), operating_points=points, labels=LABELS)
    del points["eco"]
    mt.verify(mt.convert(model("bytes"), operating_points=points, labels=LABELS), points)


def test_without_mediapipe_the_remedy_is_reported(model, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'keras-metamix\[mediapipe\]'"):
        mt.convert(model("bytes"), labels=LABELS)

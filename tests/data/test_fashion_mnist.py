"""The extract, the staging of the published files for TFDS, and the errors on the way."""

import gzip
import hashlib
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from keras_metamix import data
from keras_metamix.data import fashion_mnist

SCRIPT = Path(__file__).parents[2] / "scripts" / "make_fashion_mnist_extract.py"


def published_files() -> Path | None:
    try:
        return fashion_mnist.find_source()
    except FileNotFoundError:
        return None


SOURCE = published_files()
needs_files = pytest.mark.skipif(SOURCE is None, reason="dataset-fashion-mnist missing")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_fashion_mnist_extract", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def no_sources(monkeypatch, tmp_path):
    monkeypatch.delenv(fashion_mnist.SOURCE_VARIABLE, raising=False)
    monkeypatch.setattr(fashion_mnist, "DEBIAN_DIR", tmp_path / "absent")


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(header + array.tobytes(), mtime=0))


def write_source(folder: Path, per_class: int = 6) -> Path:
    folder.mkdir(exist_ok=True)
    random = np.random.RandomState(0)
    for prefix in ("train", "t10k"):
        labels = random.permutation(np.repeat(np.arange(10, dtype=np.uint8), per_class))
        images = random.randint(0, 256, (len(labels), 28, 28)).astype(np.uint8)
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", labels)
    return folder


def test_extract_is_stratified():
    for (images, labels), per_class in zip(data.load_extract(), (1000, 200), strict=True):
        assert images.shape == (10 * per_class, 28, 28, 1) and images.dtype == np.uint8
        assert labels.dtype == np.int64
        np.testing.assert_array_equal(np.bincount(labels), np.full(10, per_class))
        # Shuffled, not sorted by class: any slice can serve as a validation set.
        assert len(np.unique(labels[:100])) == 10


def test_extract_has_the_pixel_statistics_of_normalize():
    pixels = data.load_extract()[0][0] / 255
    assert abs(pixels.mean() - data.MEAN) < 0.005 and abs(pixels.std() - data.STD) < 0.005


def test_load_dispatches_by_name():
    np.testing.assert_array_equal(
        data.load("fashion_mnist_extract")[1][1], data.load_extract()[1][1]
    )
    with pytest.raises(ValueError, match="'mnist'; expected one of fashion_mnist_extract, fash"):
        data.load("mnist")


@needs_files
def test_extract_equals_the_published_files(script):
    expected = script.extract(SOURCE, 1000, 200)
    (train_images, train_labels), (test_images, test_labels) = data.load_extract()
    np.testing.assert_array_equal(train_images, expected["train_images"])
    np.testing.assert_array_equal(train_labels, expected["train_labels"])
    np.testing.assert_array_equal(test_images, expected["test_images"])
    np.testing.assert_array_equal(test_labels, expected["test_labels"])


def test_script_writes_identical_bytes_and_no_temporary_files(script, tmp_path):
    source = write_source(tmp_path / "source")
    outputs = [tmp_path / "out" / name for name in ("first.npz", "second.npz")]
    outputs[0].parent.mkdir()
    for output in outputs:
        counts = ["--train-per-class=4", "--test-per-class=2"]
        script.main([f"--source={source}", f"--output={output}", *counts])
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    assert sorted(outputs[0].parent.iterdir()) == outputs
    with np.load(outputs[0]) as arrays:
        full = script.read_idx(source / "train-images-idx3-ubyte.gz")
        np.testing.assert_array_equal(arrays["train_images"][..., 0], full[arrays["train_index"]])
        np.testing.assert_array_equal(np.bincount(arrays["test_labels"]), np.full(10, 2))


def test_script_refuses_too_few_images_and_files_that_are_not_idx(script, tmp_path):
    source = write_source(tmp_path, per_class=3)
    with pytest.raises(ValueError, match="at least 4 images of class 0, found 3"):
        script.extract(source, 4, 1)
    (source / "broken.gz").write_bytes(gzip.compress(b"not idx"))
    with pytest.raises(ValueError, match="broken.gz: expected an IDX file"):
        script.read_idx(source / "broken.gz")


def test_header_is_restored_around_the_same_stream():
    payload = bytes(range(256)) * 20
    bare = gzip.compress(payload, mtime=5)
    assert bare[3] == 0
    full = fashion_mnist.restore_gzip_header(bare, "some-ubyte.gz", 1504176606)
    assert full[:10] == b"\x1f\x8b\x08\x08" + (1504176606).to_bytes(4, "little") + b"\x00\x03"
    assert full[10:21] == b"some-ubyte\x00" and full[21:] == bare[10:]
    assert gzip.decompress(full) == payload


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b", b"PK\x03\x04" + bytes(20)])
def test_header_is_not_put_on_other_files(content):
    with pytest.raises(ValueError, match="a.gz: expected a gzip file with a bare header"):
        fashion_mnist.restore_gzip_header(content, "a.gz", 0)


def test_checksums_are_those_of_tfds():
    import tensorflow_datasets as tfds

    infos = tfds.builder_cls("fashion_mnist").url_infos
    assert {i.filename: i.checksum for i in infos.values()} == fashion_mnist.SHA256


@needs_files
def test_staged_files_are_as_published_and_kept(tmp_path):
    staged = fashion_mnist.stage_files(SOURCE, tmp_path)
    assert staged == tmp_path / "downloads" / "manual"
    assert sorted(p.name for p in staged.iterdir()) == sorted(fashion_mnist.SHA256)
    for name, expected in fashion_mnist.SHA256.items():
        assert hashlib.sha256((staged / name).read_bytes()).hexdigest() == expected
    before = {p: p.stat().st_mtime_ns for p in staged.iterdir()}
    # Original files, headers intact, are a source too; staged ones are not written again.
    fashion_mnist.stage_files(staged, tmp_path)
    assert before == {p: p.stat().st_mtime_ns for p in staged.iterdir()}
    fashion_mnist.stage_files(staged, tmp_path / "second")


def test_other_data_under_the_published_names_is_refused(tmp_path):
    source = write_source(tmp_path / "source")
    with pytest.raises(ValueError, match="train-images.* is not the published Fashion-MNIST"):
        fashion_mnist.stage_files(source, tmp_path)
    assert not list((tmp_path / "downloads" / "manual").iterdir())


def test_folder_without_the_files(monkeypatch, tmp_path):
    source = write_source(tmp_path / "source")
    (source / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match="source_dir .*source' lacks t10k-labels-idx1"):
        data.load_full(tmp_path, source_dir=source)
    with pytest.raises(FileNotFoundError, match="found no such folder"):
        fashion_mnist.find_source(tmp_path / "absent")
    monkeypatch.setenv(fashion_mnist.SOURCE_VARIABLE, str(tmp_path / "source" / ".."))
    with pytest.raises(FileNotFoundError, match="FASHION_MNIST_DIR .* found source"):
        fashion_mnist.find_source()


def test_nothing_found_and_no_network_is_one_quick_line(monkeypatch, tmp_path, no_sources):
    def unreachable(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr(fashion_mnist.urllib.request, "urlopen", unreachable)
    with pytest.raises(ConnectionError, match="apt-get install dataset-fashion-mnist") as raised:
        data.load_full(tmp_path / "empty")
    message = str(raised.value)
    assert "\n" not in message and str(tmp_path / "empty") in message and "no route" in message


def test_a_set_that_another_process_prepares_meanwhile_is_loaded(monkeypatch, tmp_path):
    import tensorflow_datasets as tfds

    split, times = (np.zeros((1, 28, 28, 1), np.uint8), np.zeros(1, np.int64)), []

    def load(*_, **__):
        times.append(True)
        if len(times) == 1:  # as TFDS's own rename says it
            raise FileExistsError("Cannot rename ... Destination ... already exists.")
        return [split, split]

    builder = SimpleNamespace(data_path=tmp_path)
    monkeypatch.setattr(tfds, "builder", lambda *_, **__: builder)
    monkeypatch.setattr(tfds, "load", load)
    monkeypatch.setattr(tfds, "as_numpy", lambda splits: splits)
    train, test = data.load_full(tmp_path)
    assert train is split and test is split and len(times) == 2


def test_import_is_light():
    code = (
        "import sys, keras_metamix.data; "
        "print([m for m in ('tensorflow_datasets', 'keras_cv') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=SCRIPT.parents[1],
    )
    assert result.stdout.strip() == "[]"


@pytest.mark.slow
@needs_files
@pytest.mark.long
def test_full_set_through_tfds(monkeypatch, tmp_path, no_sources, script):
    (train_images, train_labels), (test_images, test_labels) = data.load_full(tmp_path, SOURCE)
    assert train_images.shape == (60000, 28, 28, 1) and train_images.dtype == np.uint8
    assert test_images.shape == (10000, 28, 28, 1) and test_labels.dtype == np.int64
    np.testing.assert_array_equal(np.bincount(train_labels), np.full(10, 6000))
    # TFDS writes the examples in its own order.
    published = script.read_idx(SOURCE / "t10k-images-idx3-ubyte.gz").reshape(10000, -1)
    assert {i.tobytes() for i in test_images.reshape(10000, -1)} == {i.tobytes() for i in published}
    # The prepared copy is used as it is, without files or a network.
    monkeypatch.setattr(fashion_mnist, "_require_network", None)
    for file in (tmp_path / "downloads" / "manual").iterdir():
        file.unlink()
    np.testing.assert_array_equal(data.load("fashion_mnist", tmp_path)[0][0], train_images)

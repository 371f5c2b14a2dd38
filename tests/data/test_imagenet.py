"""ImageNet's pipeline on a data set of its form: order, resuming, decoding, the index, refusals."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from keras_metamix.data import Augmentation, Form, augmentation, imagenet_sample, record_index
from keras_metamix.data import imagenet_evaluation as evaluation
from keras_metamix.data import imagenet_training as training
from keras_metamix.data import open_imagenet as open_in

TRAIN, VALIDATION = 27, 10
FORM = Form(16)
PLAIN = Augmentation(crop_and_flip=False)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    imagenet_sample.write_sample(folder, TRAIN, VALIDATION)
    return folder


@pytest.fixture(scope="session")
def splits(data_dir):
    return open_in(data_dir, name=imagenet_sample.NAME)


@pytest.fixture
def copy(data_dir, tmp_path):
    """A folder of data sets of the test's own, without an index."""
    target = tmp_path / imagenet_sample.NAME / imagenet_sample.VERSION
    target.mkdir(parents=True)
    for file in (data_dir / imagenet_sample.NAME / imagenet_sample.VERSION).iterdir():
        if file.suffix != ".npz":
            (target / file.name).write_bytes(file.read_bytes())
    return target


def batches(dataset: tf.data.Dataset, count: int = -1) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(dataset.take(count).as_numpy_iterator())


def names(images: np.ndarray) -> list[bytes]:
    return [image.tobytes() for image in images]


# --- order ------------------------------------------------------------------------------------


def test_an_epoch_holds_an_image_once_and_epochs_differ(splits):
    """27 images are 3 batches of 8, and 3 others are left out each time."""
    known = {n for images, _ in batches(evaluation(splits[0], 8, FORM)) for n in names(images)}
    assert len(known) == TRAIN
    steps = batches(training(splits[0], 8, FORM, seed=5, augmentation=PLAIN), 12)
    epochs = [[n for x, _ in steps[i : i + 3] for n in names(x)] for i in range(0, 12, 3)]
    for epoch in epochs:
        assert len(set(epoch)) == 24 and set(epoch) <= known
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert set().union(*epochs) == known


@pytest.mark.parametrize("randaugment", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_goes_on_at_any_step(splits, randaugment):
    settings = (splits[0], 8, FORM, 5, Augmentation(randaugment=randaugment))
    whole = batches(training(*settings), 8)
    for start in (1, 3, 7):  # within an epoch, at the begin of one, and behind
        rest = batches(training(*settings, start_step=start), 8 - start)
        for (images, labels), (x, y) in zip(rest, whole[start:], strict=True):
            np.testing.assert_array_equal(images, x)
            np.testing.assert_array_equal(labels, y)


def test_seeds_differ_and_so_do_the_crops_of_an_image(splits):
    first, other = (batches(training(splits[0], 27, FORM, seed), 2) for seed in (5, 6))
    assert not np.array_equal(first[0][0], other[0][0])
    assert len({n for x, _ in first for n in names(x)}) == 54  # two epochs, no crop twice


def test_a_far_step_is_reached_without_reading_what_is_before(splits):
    started = time.perf_counter()
    batches(training(splits[0], 8, FORM, 5, start_step=10**9), 1)
    assert time.perf_counter() - started < 10


def test_shapes_and_types(splits):
    dataset = training(splits[0], 8, FORM, 5)
    assert dataset.element_spec[0].shape == (8, 16, 16, 3)
    images, labels = batches(dataset, 1)[0]
    assert (images.dtype, labels.dtype) == (np.float32, np.int64)
    assert splits[0].classes == imagenet_sample.CLASSES
    assert [len(y) for _, y in batches(evaluation(splits[1], 4, FORM))] == [4, 4, 2]
    assert [len(y) for _, y in batches(evaluation(splits[1], 4, FORM, count=5))] == [4, 1]


# --- pixels -----------------------------------------------------------------------------------


@pytest.mark.parametrize("pixels", ["minus_one_to_one", "standardized"])
def test_evaluation_is_a_crop_of_the_whole_decoded_image(splits, data_dir, pixels):
    """Against TFDS's own reading and decoding."""
    import tensorflow_datasets as tfds

    folder = data_dir / imagenet_sample.NAME / imagenet_sample.VERSION
    expected = {}
    for example in tfds.builder_from_directory(folder).as_dataset(split="validation"):
        image = example["image"].numpy()
        height, width, _ = image.shape
        side = round(0.875 * min(height, width))
        top, left = (height - side) // 2, (width - side) // 2
        crop = tf.image.resize(image[top : top + side, left : left + side], (16, 16)).numpy()
        if pixels == "standardized":
            crop = (crop / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        else:
            crop = crop / 127.5 - 1
        expected[int(example["label"]), round(float(crop.mean()), 4)] = crop
    ((images, labels),) = batches(evaluation(splits[1], VALIDATION, Form(16, pixels)))
    assert len(expected) == VALIDATION
    for image, label in zip(images, labels, strict=True):
        key = min((k for k in expected if k[0] == label), key=lambda k: abs(k[1] - image.mean()))
        np.testing.assert_allclose(image, expected.pop(key), atol=1e-5)


def test_a_flip_mirrors_half_of_the_images():
    image = tf.constant(np.random.default_rng(0).uniform(0, 255, (4, 6, 3)), tf.float32)
    flipped = 0
    for seed in range(100):
        result = augmentation.random_flip(image, tf.constant([1, seed])).numpy()
        mirrored = np.array_equal(result, image[:, ::-1])
        assert mirrored or np.array_equal(result, image)
        flipped += mirrored
    assert 30 < flipped < 70  # binomial: outside once in 10,000


def test_the_draws_are_in_the_order_of_keras_cvs_policy():
    import keras_cv

    layers = keras_cv.layers.RandAugment.get_standard_policy((0, 255), 0.5, 0.15)
    found = [type(layer).__name__ for layer in layers]
    assert found == [
        "AutoContrast", "Equalization", "Solarization", "RandomColorDegeneration",
        "RandomContrast", "RandomBrightness", "RandomShear", "RandomShear",
        "RandomTranslation", "RandomTranslation",
    ]  # fmt: skip
    assert layers[6].y_factor(shape=()) == 0 and layers[7].x_factor(shape=()) == 0
    assert layers[8].height_factor == 0 and layers[9].width_factor == 0


@pytest.mark.parametrize("number", range(10))
def test_an_operations_numbers_have_the_shapes_that_its_layer_draws(number):
    import keras_cv

    layer = keras_cv.layers.RandAugment.get_standard_policy((0, 255), 0.5, 0.15)[number]
    ours = augmentation._DRAWS[number](tf.constant([3, 4]), 0.5)
    theirs = layer.get_random_transformation_batch(batch_size=1)
    if not isinstance(theirs, dict):
        ours, theirs = {"": ours}, {"": theirs}
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if ours[name] is None:  # what the layer draws there is 0
            assert value is None or not np.any(value)
        else:
            assert ours[name].shape == value.shape


def test_rand_augment_depends_on_its_seed_alone():
    image = tf.constant(np.random.default_rng(0).uniform(0, 255, (8, 8, 3)), tf.float32)
    results = [
        augmentation.rand_augment(image, tf.constant(seed), 2).numpy()
        for seed in ([1, 2], [1, 3], [1, 2])
    ]
    np.testing.assert_array_equal(results[0], results[2])
    assert not np.array_equal(results[0], results[1])
    assert results[0].shape == (8, 8, 3) and results[0].min() >= 0 and results[0].max() <= 255


# --- the index --------------------------------------------------------------------------------


def test_the_index_is_kept_and_read_again(copy, monkeypatch):
    train, _ = open_in(copy.parents[1], name=imagenet_sample.NAME)
    assert len(list(copy.glob("*.index.npz"))) == 2
    monkeypatch.setattr(record_index, "_scan", None)
    again, _ = open_in(copy.parents[1], name=imagenet_sample.NAME)
    np.testing.assert_array_equal(again.index.offsets, train.index.offsets)


def test_an_index_of_other_files_is_replaced(copy):
    cache = copy / f"{imagenet_sample.NAME}-{imagenet_sample.VERSION}-train.index.npz"
    np.savez(cache, names=["x"], sizes=[1], offsets=np.zeros(TRAIN, np.int64))
    train, _ = open_in(copy.parents[1], name=imagenet_sample.NAME)
    assert train.index.offsets.max() > 0


def test_the_index_goes_where_it_is_told(copy, tmp_path):
    open_in(copy.parents[1], tmp_path / "made" / "here", imagenet_sample.NAME)
    assert len(list((tmp_path / "made" / "here").glob("*.npz"))) == 2
    assert not list(copy.glob("*.npz"))


def test_a_folder_that_cannot_be_written_names_the_option(copy, monkeypatch):
    def refuse(path):
        raise PermissionError(path)

    monkeypatch.setattr(record_index, "written_whole", refuse)
    with pytest.raises(PermissionError, match=r"train\.index\.npz: .*index_dir"):
        open_in(copy.parents[1], name=imagenet_sample.NAME)


@pytest.mark.parametrize(("kept", "message"), [(-5, "13 or a part|14 or a part"), (0, "found 0")])
def test_a_file_cut_short_is_named(copy, kept, message):
    file = sorted(copy.glob("*train.tfrecord*"))[0]
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ValueError, match=rf"{file.name}: expected 1[34] records, found"):
        open_in(copy.parents[1], name=imagenet_sample.NAME)


# --- refusals ---------------------------------------------------------------------------------


def test_a_missing_imagenet_says_what_to_do_at_once(tmp_path, monkeypatch):
    started = time.perf_counter()
    with pytest.raises(FileNotFoundError) as raised:
        open_in(tmp_path)
    message = str(raised.value)
    assert f"{tmp_path / 'imagenet2012'}: expected imagenet2012 as TFDS prepares it" in message
    assert "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar" in message
    assert f"{tmp_path / 'downloads' / 'manual'}" in message and "tfds build" in message
    assert time.perf_counter() - started < 10  # no network was waited for
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "elsewhere"))
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        open_in()


def test_archives_that_are_there_are_not_asked_for(tmp_path):
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    (manual / "ILSVRC2012_img_train.tar").touch()
    with pytest.raises(FileNotFoundError, match=r"put ILSVRC2012_img_val\.tar \("):
        open_in(tmp_path)
    (manual / "ILSVRC2012_img_val.tar").touch()
    with pytest.raises(FileNotFoundError, match="no such folder: run `tfds build imagenet2012"):
        open_in(tmp_path)


def test_another_format_and_a_missing_split_are_named(copy):
    info = copy / "dataset_info.json"
    content = json.loads(info.read_text())
    info.write_text(json.dumps(content | {"fileFormat": "array_record"}))
    with pytest.raises(ValueError, match="expected the file format 'tfrecord', found 'array_rec"):
        open_in(copy.parents[1], name=imagenet_sample.NAME)
    splits = [s for s in content["splits"] if s["name"] == "train"]
    info.write_text(json.dumps(content | {"splits": splits}))
    with pytest.raises(ValueError, match=r"expected a split 'validation', found \['train'\]"):
        open_in(copy.parents[1], name=imagenet_sample.NAME)


def test_arguments_out_of_range_are_refused(splits):
    for size in (0, TRAIN + 1):
        with pytest.raises(ValueError, match=f"batch_size: expected 1 to 27 images, found {size}"):
            training(splits[0], size, FORM, 0)
    with pytest.raises(ValueError, match="start_step: expected 0 or more, found -1"):
        training(splits[0], 8, FORM, 0, start_step=-1)
    with pytest.raises(ValueError, match="pixels: expected one of .*found 'raw'"):
        Form(16, "raw")
    with pytest.raises(ValueError, match="size: expected a whole number, at least 1, found 0"):
        Form(0)


def test_the_sample_is_written_once(data_dir):
    folder = Path(data_dir) / imagenet_sample.NAME / imagenet_sample.VERSION
    before = {p: p.stat().st_mtime_ns for p in folder.glob("*tfrecord*")}
    assert imagenet_sample.write_sample(data_dir, TRAIN, VALIDATION) == folder
    assert len(before) == 4  # two shards of each split
    assert before == {p: p.stat().st_mtime_ns for p in folder.glob("*tfrecord*")}

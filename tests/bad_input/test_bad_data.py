"""What fit, calibrate, parity and the pipelines say of images and labels that are none."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_metamix as kmm
import metamix_tflite as mt
from keras_metamix import data
from keras_metamix.zoo import small_cnn

NAN = float("nan")
PIXELS = np.zeros((8, 8, 8, 1), np.uint8)
LABELS = np.arange(8) % 4


def with_value(images, value):
    images = images.copy()
    images[1, 2, 3, 0] = value
    return images


IMAGES = {
    "NaN": (lambda x: with_value(x, NAN), ValueError, "images hold 1 NaN or Inf of 512 values"),
    "Inf": (lambda x: with_value(x, np.inf), ValueError, "images hold 1 NaN or Inf of 512"),
    "overflow": (lambda x: x * 1e300, ValueError, "images hold 512 NaN or Inf"),
    "none": (lambda x: None, TypeError, "NoneType|None"),
    "generator": (lambda x: (i for i in x), Exception, "found .*generator|found .8, 8, 1."),
    "text": (lambda x: x.astype(str), TypeError, "numbers, found|array of images, found"),
    "objects": (lambda x: np.full(x.shape, None), TypeError, "numbers, found|of images, found"),
    "complex": (lambda x: x.astype(complex), TypeError, "numbers, found|of images, found"),
    "size": (
        lambda x: np.zeros((8, 9, 9, 1)),
        ValueError,
        r"images.*8, 8, 1\).*\(\d?,? ?9, 9, 1",
    ),
    "one image": (lambda x: x[0], ValueError, r"8, 8, 1\).*found \(8, 8, 1\): .*image\[None\]"),
    "channels": (lambda x: np.zeros((8, 8, 8, 3)), ValueError, r"8, 8, 1\).*found .*8, 8, 3\)"),
    "no image": (lambda x: x[:0], ValueError, "at least one|found .0, 8, 8, 1"),
}
HUGE = "The input of 'conv1_input' holds NaN, Inf or values beyond 1e.18"


def metamix(given):
    model = kmm.MetaMixModel.from_float(given.model)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


def fit(given, x, y=None, **arguments):
    callback = kmm.MetaMixCallback(1e9, verbose=0)
    metamix(given).fit(x, y, verbose=0, callbacks=[callback], **arguments)


def calibrate(given, x, **arguments):
    kmm.calibrate(metamix(given), x, **arguments)


def parity(given, x, model=None, flat=None):
    mt.parity(given.flat if flat is None else flat, model or given.quantized, x)


def dataset(x, y, batch=4, whole=False):
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(batch, drop_remainder=whole)


def of_five_classes(given):
    model = small_cnn((8, 8, 1), classes=5, width=4)
    quantized = kmm.MetaMixModel.from_float(model)
    kmm.calibrate(quantized, given.images)
    quantized.set_bits(kmm.uniform_assignment(model, 4, 4))
    return quantized


@pytest.mark.parametrize("call", [calibrate, parity], ids=["calibrate", "parity"])
@pytest.mark.parametrize("name", IMAGES)
def test_bad_images_are_refused(name, call, given, refuses):
    make, error, message = IMAGES[name]
    refuses(lambda: call(given, make(given.images)), error, message)


@pytest.mark.parametrize("name", IMAGES)
def test_bad_training_images_are_refused(name, given, refuses):
    make, error, message = IMAGES[name]
    refuses(lambda: fit(given, make(given.images), given.labels), error, message)


CASES = [
    ("1e30", lambda g: fit(g, with_value(g.images, 1e30), g.labels), ValueError, HUGE),
    ("1e30 calibrates", lambda g: calibrate(g, g.images * 1e30), ValueError, HUGE),
    ("rule", lambda g: calibrate(g, g.images, rule="x"), ValueError, "rule: .* found 'x'"),
    (
        "calibrate a float model",
        lambda g: kmm.calibrate(g.model, g.images),
        TypeError,
        "calibrate: expected a QuantizedModel, MetaMixModel or BitMixerModel, found Functional "
        "'small_cnn': from_float makes one of a float model",
    ),
    (
        "two inputs",
        lambda g: calibrate(g, (g.images,) * 2),
        ValueError,
        r"found \[\(8, 8, 8, 1\), ",
    ),
    ("lists", lambda g: fit(g, g.images.tolist(), g.labels), TypeError, "arrays.* found list"),
    ("scalar", lambda g: calibrate(g, np.float32(3)), ValueError, r"input, .* found \(\)"),
    *(
        (
            f"labels {name}",
            lambda g, make=make: fit(g, g.images, make(g.labels)),
            error,
            message,
        )
        for name, make, error, message in [
            ("too large", lambda y: y + 2, ValueError, "classes from 0 to 3, .* found 2 to 5"),
            ("negative", lambda y: y - 1, ValueError, "classes from 0 to 3, .* found -1 to 2"),
            ("too few", lambda y: y[:5], ValueError, "as many labels as images, found 8 and 5"),
            ("no one", lambda y: None, ValueError, "a label for each image, found none"),
            ("NaN", lambda y: y * NAN, ValueError, "labels: expected finite ones, found 8 NaN"),
            ("text", lambda y: y.astype(str), TypeError, "labels: expected numbers, found <U"),
            ("objects", lambda y: np.full(8, None), TypeError, "labels: .* found object"),
            ("one-hot", lambda y: np.eye(4)[y], ValueError, r"target.shape=\(None, 4\)"),
        ]
    ),
    (
        "mixer's labels",
        lambda g: kmm_mixer(g).fit(g.images, g.labels + 2, verbose=0),
        ValueError,
        "labels: expected classes from 0 to 3",
    ),
    (
        "empty data set",
        lambda g: fit(g, dataset(g.images[:0], g.labels[:0])),
        ValueError,
        "fit: expected at least one batch of training data, found none",
    ),
    (
        "batches larger than the set",
        lambda g: fit(g, dataset(g.images, g.labels, 100, whole=True)),
        ValueError,
        "fit: expected at least one batch of training data, found none",
    ),
    (
        "data set of NaN",
        lambda g: fit(g, dataset(g.images * NAN, g.labels)),
        ValueError,
        "images hold 256 NaN or Inf of 256 values",
    ),
    (
        "data set without batches",
        lambda g: fit(g, tf.data.Dataset.from_tensor_slices((g.images, g.labels))),
        ValueError,
        r"images: expected .*\(None, 8, 8, 1\), found \(8, 8, 1\)",
    ),
    (
        "data set of another size",
        lambda g: fit(g, dataset(np.zeros((8, 9, 9, 1), np.float32), g.labels)),
        ValueError,
        r"images: expected .*8, 8, 1\), found \(4, 9, 9, 1\)",
    ),
    *(
        (
            f"batch_size {value!r}",
            lambda g, v=value: fit(g, g.images, g.labels, batch_size=v),
            ValueError,
            f"batch_size: expected a whole number, at least 1, found {value!r}",
        )
        for value in (0, -1, 1.5, "4")
    ),
    ("parity with a float model", lambda g: parity(g, g.images, g.model), TypeError, "found Func"),
    (
        "parity of other outputs",
        lambda g: parity(g, g.images, of_five_classes(g)),
        ValueError,
        r"parity: expected the file of this model, .*\[\(5,\)\], found one .*\[\(4,\)\]",
    ),
    (
        "parity of an unfinished model",
        lambda g: parity(g, g.images, metamix(g)),
        ValueError,
        "phase 'weight_training', found 'bit_meta'",
    ),
    (
        "parity of integers",
        lambda g: parity(g, g.images, flat=mt.convert(g.quantized, io="int8")),
        ValueError,
        "parity compares files of io='float32'",
    ),
    (
        "parity of no point",
        lambda g: mt.parity(g.points_flat, g.mixer, g.images, {}),
        ValueError,
        r"parity: expected some of \['full', 'eco'\], found \[\]",
    ),
    (
        "parity of one assignment",
        lambda g: mt.parity(g.points_flat, g.mixer, g.images, g.bits),
        TypeError,
        "operating_points: expected {name: bit assignment}, found BitAssignment",
    ),
    (
        "parity of a point without bits",
        lambda g: mt.parity(g.points_flat, g.mixer, g.images, {"eco": None}),
        TypeError,
        "bits: expected a BitAssignment, found None",
    ),
]
PIPELINES = [
    ("labels too large", {"num_classes": 3}, "labels in 0 to 2, found 0 to 3"),
    ("labels negative", {"labels": LABELS - 1}, "labels in 0 to 9, found -1 to 2"),
    ("labels of two axes", {"labels": LABELS[:, None]}, r"shape \(8,\), .* found shape \(8, 1\)"),
    ("labels float", {"labels": LABELS * 1.0}, "integer labels, found float64"),
    ("labels missing", {"labels": None}, r"labels of shape \(8,\), .*found shape \(\)"),
    ("images missing", {"images": None}, r"images of shape \(N, H, W, C\), found shape \(\)"),
    ("generator", {"images": (i for i in PIXELS)}, r"images of shape .*, found shape \(\)"),
    ("images NaN", {"images": PIXELS * NAN}, "finite images, found 512 NaN"),
    ("images 1e30", {"images": PIXELS + 1e30}, r"images in \[0, 1\], found 1e\+30"),
    ("images int", {"images": PIXELS.astype(int)}, "uint8 or float images, found int64"),
    ("images flat", {"images": PIXELS[..., 0]}, r"found shape \(8, 8, 8\)"),
    ("no image", {"images": PIXELS[:0], "labels": LABELS[:0]}, r"found shape \(0, 8, 8, 1\)"),
    ("ragged", {"images": [PIXELS[0], PIXELS[1, :3]]}, "images and labels of one shape each"),
    ("batch too large", {"batch_size": 9}, "batch_size: expected 1 to 8 images, found 9"),
    ("batch of none", {"batch_size": 0}, "batch_size >= 1, found 0"),
    ("batch text", {"batch_size": "4"}, "batch_size >= 1, found '4'"),
    ("batch float", {"batch_size": 4.0}, "batch_size >= 1, found 4.0"),
    ("seed text", {"seed": "x"}, "seed: expected a whole number, .* found 'x'"),
    ("classes text", {"num_classes": "x"}, "num_classes: expected a whole number.*found 'x'"),
]
SOURCES = [
    (
        "unknown name",
        lambda g: data.load("mnist"),
        ValueError,
        "unknown data set 'mnist'; expected",
    ),
    ("no name", lambda g: data.load(None), ValueError, "unknown data set None"),
    ("normalize none", lambda g: data.normalize(None), ValueError, "float images, found None"),
    ("normalize int", lambda g: data.normalize(LABELS), ValueError, "float images, found int64"),
    ("pixels", lambda g: data.Form(pixels="x"), ValueError, "pixels: expected one of .* found 'x'"),
    ("size", lambda g: data.Form(size=1.5), ValueError, "size: .*whole number.* found 1.5"),
    (
        "randaugment",
        lambda g: data.Augmentation(randaugment=-1),
        ValueError,
        "randaugment: expected a whole number, at least 0, found -1",
    ),
    (
        "magnitude",
        lambda g: data.Augmentation(magnitude=NAN),
        ValueError,
        "magnitude: expected a number in .0, 1], found nan",
    ),
]


def kmm_mixer(given):
    model = kmm.BitMixerModel.from_float(given.model)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [pytest.param(*case[1:], id=case[0]) for case in [*CASES, *SOURCES]],
)
def test_bad_data_are_refused(call, error, message, given, refuses):
    refuses(lambda: call(given), error, message)


@pytest.mark.parametrize(
    ("change", "message"), [pytest.param(*case[1:], id=case[0]) for case in PIPELINES]
)
def test_a_pipeline_of_bad_data_is_refused(change, message, refuses):
    arguments = {"images": PIXELS, "labels": LABELS, "batch_size": 4, "seed": 0} | change
    refuses(lambda: data.training_dataset(**arguments), ValueError, message)

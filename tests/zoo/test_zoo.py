"""The ImageNet networks: shapes, parameter counts, arguments, and weights of published models."""

import sys

import keras
import numpy as np
import pytest

from keras_metamix import zoo
from keras_metamix.zoo.blocks import make_divisible

# keras.applications' documentation for the MobileNets; ResNet-18: torchvision's 11,689,512
# trainable parameters and two moving statistics for each of 4,800 channels.
PARAMETERS = {
    "mobilenet_v2": 3_538_984,
    "mobilenet_v3_large": 5_507_432,
    "resnet18": 11_689_512 + 2 * 4_800,
}


@pytest.fixture(params=PARAMETERS)
def make(request):
    """Each network's function."""
    return getattr(zoo, request.param)


def random_images(size, channels=3, number=2):
    rng = np.random.default_rng(7)
    return rng.uniform(-1, 1, (number, size, size, channels)).astype("float32")


@pytest.mark.parametrize(("name", "parameters"), PARAMETERS.items())
def test_parameters_are_as_published(name, parameters):
    assert getattr(zoo, name)().count_params() == parameters


def test_logits_of_small_images(make):
    model = make((32, 32, 1), 10, width=0.25, stem_strides=1)
    logits = np.asarray(model(random_images(32, 1)))
    assert logits.shape == (2, 10)
    assert np.isfinite(logits).all()
    assert (logits < 0).any()  # no softmax
    assert model.name == make.__name__


def test_only_keras_layers_and_steady_names(make):
    first, second = (make((32, 32, 3), 10, width=0.25) for _ in range(2))
    assert [type(op).__module__.split(".")[0] for op in first.operations] == (
        ["keras"] * len(first.layers)
    )
    assert [layer.name for layer in first.layers] == [layer.name for layer in second.layers]


@pytest.mark.parametrize("strides", [1, 2])
def test_stem_strides_halve_the_image_or_not(make, strides):
    model = make((32, 32, 3), 10, 0.25, strides)
    # ResNet-18's stem pools too, but only with strides of 2.
    halvings = 3 + (strides - 1) * 2 if make is zoo.resnet18 else 3 + strides
    assert model.get_layer("stem").output.shape[1] == 32 // strides
    assert model.get_layer("features").input.shape[1] == 32 // 2**halvings


def test_momentum_reaches_every_batch_norm(make):
    model = make((32, 32, 3), 10, 0.25, momentum=0.8)
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    assert {norm.momentum for norm in norms} == {0.8}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 16}, "width: expected a channel multiplier.*found 16"),
        ({"width": 0}, "width: expected a channel multiplier.*found 0"),
        ({"stem_strides": 4}, "stem_strides: expected 2, or 1.*found 4"),
        ({"weights": "image-net"}, "weights: expected None or 'imagenet', found 'image-net'"),
        ({"weights": "imagenet", "classes": 10}, "classes: expected 1000.*found 10"),
        (
            {"weights": "imagenet", "input_shape": (28, 28, 1)},
            r"input_shape: expected three channels.*\(28, 28, 1\)",
        ),
        ({"weights": "imagenet", "width": 0.3}, "width: expected one of .*1.0.*found 0.3"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_make_divisible_is_the_reference_rule():
    given = (3, 8, 11, 12, 18, 19, 32 * 0.35, 32 * 1.4, 24 * 1.3)
    assert [make_divisible(c) for c in given] == [8, 8, 16, 16, 24, 24, 16, 48, 32]


@pytest.mark.parametrize(
    ("name", "application", "width", "size", "source"),
    [
        ("mobilenet_v2", "MobileNetV2", 1.0, 96, 96),
        ("mobilenet_v2", "MobileNetV2", 0.35, 75, 224),  # an odd size
        ("mobilenet_v3_large", "MobileNetV3Large", 1.0, 96, 224),
        ("mobilenet_v3_large", "MobileNetV3Large", 0.75, 75, 224),
    ],
)
def test_weights_of_keras_applications_give_their_outputs(
    published_application, name, application, width, size, source
):
    extra = {"include_preprocessing": False} if "V3" in application else {}
    published = published_application(application, size, alpha=width, **extra)
    model = getattr(zoo, name)((size, size, 3), width=width, weights="imagenet")
    (asked,) = published.asked_for
    assert asked["weights"] == "imagenet" and asked["alpha"] == width and asked["include_top"]
    assert asked["input_shape"] == (source, source, 3)
    images = random_images(size)
    expected = np.asarray(published(images))
    assert expected.std() > 1e-3
    np.testing.assert_allclose(np.asarray(model(images)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [64, 75])
def test_weights_of_keras_hub_give_its_outputs(keras_hub, size):
    model = zoo.resnet18((size, size, 3), weights="imagenet")
    images = random_images(size)
    expected = np.asarray(keras_hub(images))
    assert expected.std() > 1e-3
    np.testing.assert_allclose(np.asarray(model(images)), expected, rtol=1e-4, atol=1e-5)


def test_resnet18_s_small_stem_has_no_imagenet_weights():
    with pytest.raises(ValueError, match="stem_strides: expected 2 with weights='imagenet'"):
        zoo.resnet18(stem_strides=1, weights="imagenet")


def test_without_keras_hub_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_hub", None)  # as if it were not installed
    with pytest.raises(OSError, match="resnet_18_imagenet.*keras_hub.*pip install keras-hub"):
        zoo.resnet18((32, 32, 3), weights="imagenet")


@pytest.mark.parametrize(
    ("name", "application"),
    [("mobilenet_v2", "MobileNetV2"), ("mobilenet_v3_large", "MobileNetV3Large")],
)
def test_a_failed_download_says_what_to_do(monkeypatch, name, application):
    def fail(**_):
        raise Exception("URL fetch failure on some place:\nNone")  # what keras.utils.get_file does

    monkeypatch.setattr(keras.applications, application, fail)
    with pytest.raises(OSError, match=f"{application} .*failure on some place: None.*load_weights"):
        getattr(zoo, name)((32, 32, 3), weights="imagenet")


@pytest.mark.parametrize("alpha", [0.35, 1.0])
def test_another_structure_is_refused_by_name(published_application, alpha):
    published_application("MobileNetV2", 32, alpha=alpha, classes=10)
    with pytest.raises(ValueError, match="'stem'.*'Conv1'" if alpha < 1 else "'logits'"):
        zoo.mobilenet_v2((32, 32, 3), weights="imagenet")

"""MLPerf Tiny's networks, an Inception block, and transfer learning, as their users write them.

Of MLPerf Tiny (Banbury et al., NeurIPS 2021) these are the four architectures, two of them on
smaller images. Its data sets are in no package that the project may install, so that the accuracies
that the benchmark asks for are not tested.
"""

import keras
import numpy as np
import pytest
from keras import layers

import keras_metamix as kmm
import metamix_tflite as mt

SPACE = kmm.SearchSpace((8, 3), (8, 4, 2))


def conv(x, filters, size=3, strides=1):
    x = layers.Conv2D(filters, size, strides, "same")(x)
    return layers.Activation("relu")(layers.BatchNormalization()(x))


def separable(x, filters, strides=1):
    x = layers.DepthwiseConv2D(3, strides, "same")(x)
    x = layers.Activation("relu")(layers.BatchNormalization()(x))
    return conv(x, filters, 1)


def image_classification():
    """ResNet-8."""
    x = image = keras.Input((32, 32, 3), name="image")
    x = conv(x, 16)
    for filters, strides in ((16, 1), (32, 2), (64, 2)):
        y = layers.BatchNormalization()(
            layers.Conv2D(filters, 3, padding="same")(conv(x, filters, 3, strides))
        )
        x = x if strides == 1 else layers.Conv2D(filters, 1, strides, "same")(x)
        x = layers.Activation("relu")(layers.add([x, y]))
    x = layers.Flatten()(layers.AveragePooling2D(8)(x))
    return keras.Model(image, layers.Dense(10, activation="softmax")(x))


def visual_wake_words():
    """MobileNetV1 of a quarter of its width."""
    x = image = keras.Input((48, 48, 3), name="image")
    x = conv(x, 8, 3, 2)
    for filters, strides in ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1)):
        x = separable(x, filters, strides)
    x = layers.Flatten()(layers.AveragePooling2D(x.shape[1:3])(x))
    return keras.Model(image, layers.Dense(2, activation="softmax")(x))


def keyword_spotting():
    """DS-CNN on 49 frames of 10 MFCCs."""
    x = frames = keras.Input((49, 10, 1), name="mfcc")
    x = layers.Dropout(0.2)(conv(x, 64, (10, 4), 2))
    for _ in range(2):
        x = separable(x, 64)
    x = layers.AveragePooling2D((25, 5))(layers.Dropout(0.4)(x))
    return keras.Model(frames, layers.Dense(12, activation="softmax")(layers.Flatten()(x)))


def anomaly_detection():
    """An autoencoder of 5 frames of 128 bands."""
    x = frames = keras.Input((640,), name="frames")
    for units in (128, 128, 8, 128, 128):
        x = layers.Activation("relu")(layers.BatchNormalization()(layers.Dense(units)(x)))
    return keras.Model(frames, layers.Dense(640)(x))


def inception():
    """GoogLeNet's block: branches of 1x1, 3x3, 5x5 and a pool, side by side."""
    x = image = keras.Input((16, 16, 3), name="image")
    x = layers.MaxPooling2D(3, 2, "same")(conv(x, 16))
    for _ in range(2):
        pooled = layers.AveragePooling2D(3, 1, "same")(x)
        branches = [
            conv(x, 8, 1),
            conv(conv(x, 6, 1), 8),
            conv(conv(x, 4, 1), 6, 5),
            conv(pooled, 6, 1),
        ]
        x = layers.Concatenate()(branches)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, layers.Dense(7)(x))


def transfer():
    """Augmentation inside, a frozen backbone as a model, and a new head."""
    inner = keras.Input((24, 24, 3))
    backbone = keras.Model(inner, separable(conv(inner, 8, 3, 2), 16, 2), name="backbone")
    backbone.trainable = False
    augment = keras.Sequential([layers.RandomFlip("horizontal"), layers.RandomRotation(0.1)])
    image = keras.Input((24, 24, 3), name="image")
    x = layers.GlobalAveragePooling2D()(backbone(augment(image), training=False))
    x = layers.Dropout(0.2)(x)
    return keras.Model(image, layers.Dense(3, activation="softmax", name="kinds")(x))


NETWORKS = [
    image_classification, visual_wake_words, keyword_spotting, anomaly_detection, inception,
    transfer,
]  # fmt: skip


@pytest.mark.parametrize("build", NETWORKS)
def test_files_are_exact(build, quantized, differing):
    keras.utils.set_random_seed(1)
    source = build()
    assert kmm.explain(source).not_exported == {}
    model, images = quantized(source, 1, images=8, space=SPACE)
    assert model.output_names == source.output_names
    with kmm.quantizers_off():
        found, expected = (m(images, training=False) for m in (model, source))
        np.testing.assert_array_equal(found, expected)
    folded = kmm.fold_batch_norm(model)
    flat = mt.convert(folded)
    mt.verify(flat, model.bit_assignment)
    assert differing(flat, folded, images) == (0, True)


QUICK = [(keyword_spotting, "MetaMix")]
TRAINED = [
    pytest.param(build, method, marks=[pytest.mark.long] * ((build, method) not in QUICK))
    for build in NETWORKS
    for method in ("MetaMix", "Bit-Mixer")
]


@pytest.mark.slow
@pytest.mark.parametrize(("build", "method"), TRAINED)
def test_networks_train_in_all_phases_and_are_saved(build, method, trains_and_is_saved):
    trains_and_is_saved(build, method, SPACE)

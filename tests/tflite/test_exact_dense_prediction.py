"""Small networks for segmentation, detection and larger images, written as their users write them.

Each computes as its float model while its quantizers are off, and its file at random bits is exact,
within one XNNPACK partition, with the names of the model's outputs.
"""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_metamix as kmm
import metamix_tflite as mt

SPACE = kmm.SearchSpace((8, 3), (8, 4, 2))


def conv_block(x, filters):
    for _ in range(2):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    return x


def unet(up):
    """Ronneberger et al.: a contracting and an expanding path, joined by concatenations."""
    x = inputs = keras.Input((16, 16, 3), name="image")
    skips = []
    for filters in (4, 8):
        skips.append(conv_block(x, filters))
        x = layers.MaxPooling2D()(skips[-1])
    x = layers.Dropout(0.3)(conv_block(x, 64))
    for filters, skip in zip((8, 4), reversed(skips), strict=True):
        x = conv_block(layers.Concatenate()([up(filters)(x), skip]), filters)
    return keras.Model(inputs, layers.Conv2D(3, 1, activation="softmax", name="mask")(x))


def transposed_unet():
    return unet(lambda filters: layers.Conv2DTranspose(filters, 2, strides=2, padding="same"))


def upsampling_unet():
    return unet(lambda filters: layers.UpSampling2D(2))


def bilinear_unet():
    return unet(lambda filters: layers.UpSampling2D(2, interpolation="bilinear"))


def fpn():
    """Lin et al.: lateral convolutions, and sums with what is enlarged from above."""
    x = inputs = keras.Input((16, 16, 3), name="image")
    levels = []
    for filters in (6, 8, 10):
        x = layers.Conv2D(filters, 3, strides=2, padding="same", activation="relu")(x)
        levels.append(x)
    top = layers.Conv2D(6, 1, name="lateral2")(levels[2])
    found = {"p2": layers.Conv2D(4, 3, padding="same", name="output2")(top)}
    for number in (1, 0):
        lateral = layers.Conv2D(6, 1, name=f"lateral{number}")(levels[number])
        top = layers.Add()([lateral, layers.UpSampling2D()(top)])
        found[f"p{number}"] = layers.Conv2D(4, 3, padding="same", name=f"output{number}")(top)
    return keras.Model(inputs, found)


def super_resolution():
    """ESPCN: channels of the last convolution become pixels; the enlarged image is added."""
    inputs = keras.Input((8, 9, 3), name="image")
    x = layers.Conv2D(12, 5, padding="same", activation="tanh")(inputs)
    x = layers.Conv2D(8, 3, padding="same", activation="relu")(x)
    x = ops.depth_to_space(layers.Conv2D(3 * 4, 3, padding="same")(x), 2)
    enlarged = ops.image.resize(inputs, (16, 18), interpolation="bilinear")
    return keras.Model(inputs, layers.Add(name="large")([x, enlarged]))


def center_net():
    """Zhou et al.: transposed convolutions of kernel 4, and three heads."""
    x = inputs = keras.Input((16, 16, 3), name="image")
    for filters in (6, 8, 12):
        x = layers.Conv2D(filters, 3, strides=2, padding="same", activation="relu")(x)
    for filters in (8, 6):
        x = layers.Conv2DTranspose(filters, 4, strides=2, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    heads = {}
    for name, filters, end in (("heat", 3, "sigmoid"), ("size", 2, None), ("offset", 2, None)):
        y = layers.Conv2D(8, 3, padding="same", activation="relu")(x)
        heads[name] = layers.Conv2D(filters, 1, activation=end, name=f"{name}_map")(y)
    return keras.Model(inputs, heads)


def deeplab_head():
    """Chen et al.: dilated branches, the mean of the image, and bilinear logits."""
    inputs = keras.Input((16, 16, 3), name="image")
    x = layers.Resizing(24, 24)(inputs)
    for filters in (6, 8):
        x = layers.Conv2D(filters, 3, strides=2, padding="same", activation="relu")(x)
    parts = [layers.Conv2D(4, 1, activation="relu")(x)]
    parts += [
        layers.Conv2D(4, 3, padding="same", dilation_rate=rate, activation="relu")(x)
        for rate in (2, 3)
    ]
    mean = layers.GlobalAveragePooling2D(keepdims=True)(x)
    mean = layers.Conv2D(4, 1, activation="relu")(mean)
    parts.append(layers.UpSampling2D(6, interpolation="bilinear")(mean))
    x = layers.Conv2D(8, 1, activation="relu")(layers.Concatenate()(parts))
    logits = layers.Conv2D(3, 1)(x)
    return keras.Model(inputs, layers.Resizing(16, 16, name="mask")(logits))


NETWORKS = [
    transposed_unet, upsampling_unet, bilinear_unet, fpn, super_resolution, center_net,
    deeplab_head,
]  # fmt: skip


@pytest.mark.parametrize("build", NETWORKS, ids=lambda build: build.__name__)
def test_networks_for_images_out_are_exact(build, quantized, differing):
    keras.utils.set_random_seed(1)
    source = build()
    model, images = quantized(source, 1, images=8, space=SPACE)
    assert model.output_names == source.output_names
    with kmm.quantizers_off():
        pairs = (keras.tree.flatten(m(images, training=False)) for m in (model, source))
        for found, expected in zip(*pairs, strict=True):
            np.testing.assert_array_equal(found, expected)
    folded = kmm.fold_batch_norm(model)
    flat = mt.convert(folded)
    mt.verify(flat, model.bit_assignment)
    assert differing(flat, folded, images) == (0, True)
    found, expected = mt.Runner(flat).predict(images[:1]), source(images[:1])
    assert type(found) is type(expected) or not isinstance(expected, dict)
    if isinstance(expected, dict):
        assert list(found) == list(expected)


def every_operator():
    """What computes on the grid of its input, changes sizes, clips or ends the model, in a small
    network."""
    image = keras.Input((16, 16, 3), name="image")
    x = layers.Conv2D(6, 3, strides=2, padding="same")(layers.Resizing(12, 12)(image))
    skip = layers.LeakyReLU(0.1)(layers.BatchNormalization()(x))
    x = layers.Conv2D(8, 3, padding="same")(layers.AveragePooling2D(3, 2, "same")(skip))
    x = layers.PReLU(shared_axes=[1, 2], name="slopes")(layers.BatchNormalization()(x))
    y = layers.BatchNormalization()(layers.Conv2DTranspose(6, 3, strides=2, padding="same")(x))
    y = layers.Subtract()([layers.ReLU(4.0)(y), skip])
    x = layers.Concatenate()([y, layers.UpSampling2D()(layers.Conv2D(4, 1, activation="elu")(x))])
    x = ops.depth_to_space(layers.Conv2D(8, 3, padding="same")(x), 2)
    x = layers.Conv2D(3, 1, name="last")(layers.UpSampling2D(2, interpolation="bilinear")(x))
    return keras.Model(image, layers.UnitNormalization(name="normals")(x))


TRAINED = [
    every_operator,
    *(pytest.param(f, marks=pytest.mark.long) for f in (transposed_unet, center_net, deeplab_head)),
]


@pytest.fixture
def examples():
    """examples(model) -> images and labels."""

    def make(source):
        images = np.random.default_rng(0).normal(size=(16, 16, 16, 3)).astype(np.float32)
        labels = keras.tree.map_structure(
            lambda t: np.random.default_rng(1).uniform(size=(16, *t.shape[1:])).astype(np.float32),
            source.output,
        )
        return images, labels

    return make


@pytest.mark.slow
@pytest.mark.parametrize("build", TRAINED)
@pytest.mark.parametrize("method", ["MetaMix", "Bit-Mixer"])
def test_they_train_in_all_phases_and_are_saved(build, method, examples, tmp_path):
    keras.utils.set_random_seed(2)
    source = build()
    images, labels = examples(source)
    if method == "MetaMix":
        model = kmm.MetaMixModel.from_float(source, SPACE)
        schedule = kmm.MetaMixCallback(
            meta_epochs=1, search_epochs=1, budget=kmm.Bops(share=0.5), verbose=0
        )
    else:
        model = kmm.BitMixerModel.from_float(source, kmm.SearchSpace((4, 2)))
        schedule = kmm.BitMixerCallback(stage_epochs=(1, 1, 1))
    trained = [v for v in model.trainable_variables if not v.path.endswith("_input/alpha")]
    before = [np.array(v) for v in trained]
    # Tracing the phases of MetaMix takes longer than their few steps.
    model.compile("adam", "mse", run_eagerly=method == "MetaMix")
    fitted = model.fit(images, labels, epochs=3, batch_size=8, callbacks=[schedule], verbose=0)
    assert np.all(np.isfinite(fitted.history["loss"]))
    for old, new in zip(before, trained, strict=True):
        assert np.any(old != np.asarray(new)), new.path
    if method == "Bit-Mixer":
        model.set_bits(model.uniform_bits(2))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for found, expected in zip(
        *(keras.tree.flatten(m(images)) for m in (loaded, model)), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
    flat = mt.convert(loaded)
    mt.verify(flat, model.bit_assignment)
    assert mt.parity(flat, model, images).differing == 0
    assert mt.Runner(flat).delegated

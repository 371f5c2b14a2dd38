"""Small networks over time, written as their users write them.

Each computes as its float model while its quantizers are off, and its file at random bits is exact,
within one XNNPACK partition, with the shapes and names of the model's inputs and outputs.
"""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_metamix as kmm
import metamix_tflite as mt
from metamix_tflite.read.files import read_file

SPACE = kmm.SearchSpace((8, 3), (8, 4, 2))


def separable_block(x, filters, kernel, strides=1):
    """Depthwise, then pointwise, each with its batch norm."""
    x = layers.DepthwiseConv1D(kernel, strides, padding="same", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Conv1D(filters, 1, use_bias=False)(x)
    return layers.ReLU()(layers.BatchNormalization()(x))


def keyword_ds_cnn():
    """Zhang et al.'s DS-CNN over time: 10 MFCCs of each frame are the channels."""
    inputs = keras.Input((25, 10), name="mfcc")
    x = layers.Conv1D(8, 4, strides=2, padding="same", use_bias=False, name="stem")(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    for filters in (8, 12):
        x = separable_block(x, filters, 3)
    x = layers.Dropout(0.4)(layers.AveragePooling1D(2)(x))
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(12, activation="softmax", name="word")(x))


def tcn():
    """Bai et al.: dilated causal convolutions in residual blocks, and a result for each step."""
    x = inputs = keras.Input((20, 3), name="history")
    for number, dilation in enumerate((1, 2, 4)):
        y = x
        for _ in range(2):
            y = layers.Conv1D(6, 3, padding="causal", dilation_rate=dilation, activation="relu")(y)
            y = layers.SpatialDropout1D(0.2)(y)
        skip = layers.Conv1D(6, 1, name="match")(x) if number == 0 else x
        x = layers.ReLU()(layers.Add()([y, skip]))
    return keras.Model(inputs, layers.Dense(2, name="next")(x))


def sensors():
    """Separable convolutions over an accelerometer's axes, two heads."""
    inputs = keras.Input((32, 6), name="motion")
    x = layers.BatchNormalization()(inputs)
    x = layers.SeparableConv1D(8, 5, padding="same", activation="relu", name="first")(x)
    x = layers.MaxPooling1D(2)(x)
    x = layers.SeparableConv1D(12, 3, strides=2, padding="same", use_bias=False)(x)
    x = layers.Activation("silu")(layers.BatchNormalization()(x))
    last = layers.GlobalMaxPooling1D()(layers.Conv1D(5, 3, groups=1, padding="same")(x))
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, {"kind": layers.Dense(4, name="activity")(x), "peak": last})


def autoencoder():
    """Strided convolutions, and transposed or repeated ones back to the signal's own size."""
    inputs = keras.Input((24, 2), name="signal")
    x = layers.Conv1D(6, 7, strides=2, padding="same", activation="relu")(inputs)
    x = layers.Conv1D(8, 7, strides=2, padding="same", activation="relu")(x)
    x = layers.Dense(4, activation="relu", name="code")(x)
    x = layers.Conv1DTranspose(6, 2, strides=2, padding="same", activation="relu")(x)
    x = layers.UpSampling1D(2)(x)
    return keras.Model(inputs, layers.Conv1D(2, 5, padding="same", name="restored")(x))


def resnet():
    """Padding and cropping by hand, grouped and dilated ones, a gate, a dense head."""
    inputs = keras.Input((30,), name="wave")
    x = layers.Normalization(mean=0.1, variance=1.5, axis=None)(layers.Reshape((30, 1))(inputs))
    x = layers.Conv1D(8, 5, strides=2, name="stem")(layers.ZeroPadding1D((3, 1))(x))
    skip = x = layers.PReLU("random_uniform", shared_axes=[1])(layers.BatchNormalization()(x))
    x = layers.Conv1D(8, 3, padding="same", groups=2, dilation_rate=2)(x)
    x = layers.LeakyReLU(0.1)(layers.BatchNormalization()(x))
    gate = ops.mean(x, axis=1, keepdims=True)
    x = x * layers.Dense(8, activation="sigmoid")(gate)
    x = layers.Concatenate()([x, skip, layers.AveragePooling1D(3, 1, "same")(x)])
    x = layers.Concatenate(axis=1)([x, layers.Cropping1D((2, 3))(x)])
    x = layers.Conv1D(4, 3, padding="valid", activation=layers.ELU())(x - 0.5)
    return keras.Model(inputs, layers.Dense(3, name="logits")(layers.Flatten()(x)))


class Block(layers.Layer):
    """A residual block that a user wrote, whose convolution is called on two tensors."""

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.conv = layers.Conv1D(filters, 3, padding="causal")
        self.drop = layers.Dropout(0.1)

    def call(self, x, training=None):
        x = ops.relu(self.conv(x))
        return x + self.drop(self.conv(x), training=training)

    def get_config(self):
        return super().get_config() | {"filters": self.filters}


def nested():
    """A user's layer, and a model inside, whose output is sequences too."""
    x = inputs = keras.Input((12, 4), name="steps")
    encoder = keras.Sequential([keras.Input((12, 4)), layers.Conv1D(4, 3, padding="same")])
    x = Block(4, name="block")(encoder(x))
    return keras.Model(inputs, [layers.Conv1D(3, 1, name="each")(x), encoder(x)])


# Each with the RESHAPEs of its inputs and outputs: there is none between two layers.
NETWORKS = {keyword_ds_cnn: 1, tcn: 2, sensors: 1, autoencoder: 2, resnet: 1, nested: 3}


@pytest.mark.parametrize("build", NETWORKS, ids=lambda build: build.__name__)
def test_networks_over_time_are_exact(build, quantized, differing):
    keras.utils.set_random_seed(1)
    source = build()
    model, signals = quantized(source, 1, images=8, space=SPACE)
    assert model.output_names == source.output_names
    with kmm.quantizers_off():
        pairs = (keras.tree.flatten(m(signals, training=False)) for m in (model, source))
        for found, expected in zip(*pairs, strict=True):
            np.testing.assert_array_equal(found, expected)
    folded = kmm.fold_batch_norm(model)
    flat = mt.convert(folded)
    mt.verify(flat, model.bit_assignment)
    assert differing(flat, folded, signals) == (0, True)
    found, expected = mt.Runner(flat).predict(signals[:1]), source(signals[:1])
    for ours, theirs in zip(*map(keras.tree.flatten, (found, expected)), strict=True):
        assert ours.shape == theirs.shape
    rows = kmm.explain(source).rows
    assert sum("image of one row" in row.note for row in rows) == NETWORKS[build]
    assert {row.name for row in rows if row.macs} == {*model.bit_assignment.activation_bits}


def test_bops_and_macs_by_hand(quantized):
    source = keras.Sequential(
        [
            keras.Input((16, 3)),
            layers.Conv1D(5, 4, padding="causal", dilation_rate=2, name="causal"),
            layers.SeparableConv1D(6, 3, strides=2, padding="same", name="apart"),
            layers.Conv1D(4, 3, groups=2, name="grouped"),
            layers.Conv1DTranspose(2, 2, strides=2, name="longer"),
            layers.Dense(7, name="each"),
        ]
    )
    model, _ = quantized(source, 0, images=4)
    macs = {
        "causal": 16 * 4 * 3 * 5,
        "apart_depthwise": 8 * 3 * 5,
        "apart_pointwise": 8 * 5 * 6,
        "grouped": 6 * 3 * 3 * 4,
        "longer": 6 * 4 * 2 * 2,
        "each": 12 * 2 * 7,
    }
    assert {cost.name: cost.macs for cost in kmm.layer_costs(source)} == macs
    bits = model.bit_assignment
    expected = sum(
        count * bits.activation_bits[name] * bits.weight_bits[name] for name, count in macs.items()
    )
    assert kmm.bops(source, bits) == kmm.bops(model, bits) == expected
    assert mt.verify(mt.convert(model), bits).metadata["bops"] == expected


def test_large_kernels_hold_int4_weights_as_products_of_patches(quantized, differing):
    source = keras.Sequential(
        [
            keras.Input((20, 4)),
            layers.Conv1D(32, 3, padding="causal", activation="relu"),
            layers.Conv1D(64, 5, padding="causal", dilation_rate=2, name="dilated"),
            layers.Conv1D(48, 3, strides=2, padding="same", name="strided"),
            layers.GlobalAveragePooling1D(),
            layers.Dense(3),
        ]
    )
    model, signals = quantized(source, 0, images=4, space=kmm.SearchSpace((4,), 4))
    folded = kmm.fold_batch_norm(model)
    flat = mt.convert(folded)
    mt.verify(flat, model.bit_assignment)
    declared = read_file(flat).metadata["layers"]
    assert {declared[name]["container"] for name in ("dilated", "strided")} == {"INT4"}
    assert differing(flat, folded, signals) == (0, True)


@pytest.mark.parametrize("container", ["smallest", "int8"])
def test_the_other_containers_take_them(container, quantized):
    keras.utils.set_random_seed(1)
    model, signals = quantized(tcn(), 1, images=8, space=SPACE)
    flat = mt.convert(model, weight_container=container)
    mt.verify(flat, model.bit_assignment)
    assert mt.Runner(flat).predict(signals).shape == (8, 20, 2)


def trained():
    """A dilated causal block, a separable convolution and a pool."""
    x = inputs = keras.Input((10, 3), name="signal")
    y = layers.Conv1D(3, 2, padding="causal", dilation_rate=3)(x)
    x = layers.Add()([layers.SpatialDropout1D(0.1)(layers.BatchNormalization()(y)), x])
    x = layers.SeparableConv1D(4, 3, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "build", [trained, *(pytest.param(f, marks=pytest.mark.long) for f in (tcn, resnet))]
)
@pytest.mark.parametrize("method", ["MetaMix", "Bit-Mixer"])
def test_they_train_in_all_phases_and_are_saved(build, method, tmp_path):
    keras.utils.set_random_seed(2)
    source = build()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, *source.input_shape[1:])).astype(np.float32)
    y = rng.normal(size=(16, *source.output_shape[1:])).astype(np.float32)
    if method == "MetaMix":
        model = kmm.MetaMixModel.from_float(source, SPACE)
        schedule = kmm.MetaMixCallback(
            meta_epochs=1, search_epochs=1, budget=kmm.Bops(share=0.5), verbose=0
        )
    else:
        model = kmm.BitMixerModel.from_float(source, kmm.SearchSpace((4, 2)))
        schedule = kmm.BitMixerCallback(stage_epochs=(1, 1, 1))
    # Tracing the phases takes longer than their few steps.
    model.compile("adam", "mse", run_eagerly=True)
    before = [np.array(layer.kernel) for layer in model.mac_layers]
    fitted = model.fit(x, y, epochs=3, batch_size=8, callbacks=[schedule], verbose=0)
    assert np.all(np.isfinite(fitted.history["loss"]))
    assert all(
        np.any(old != np.asarray(layer.kernel))
        for old, layer in zip(before, model.mac_layers, strict=True)
    )
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    if method == "MetaMix":
        np.testing.assert_array_equal(loaded(x), model(x))
        flat = mt.convert(loaded)
        mt.verify(flat, model.bit_assignment)
        report = mt.parity(flat, model, x)
        assert (report.differing, report.delegated) == (0, True)
        return
    points = {"full": loaded.uniform_bits(4), "eco": loaded.uniform_bits(2)}
    flat = mt.convert(loaded, operating_points=points)
    mt.verify(flat, points)
    reports = mt.parity(flat, model, x, points)
    assert [(r.differing, r.delegated) for r in reports.values()] == [(0, True)] * 2

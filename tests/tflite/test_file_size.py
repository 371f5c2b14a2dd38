"""`Size` against the files that `convert` writes: within 1 %, or 100 bytes of a small one."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_metamix as kmm
import metamix_tflite as mt
from keras_metamix import zoo
from keras_metamix.layers.parts import activation_quantizers
from metamix_tflite.targets import TARGETS


def wide(image_shape=(12, 12, 3)):
    """Odd channels, strides, a shared layer, pools, a padding, a concatenation, two outputs."""
    x = image = keras.Input(image_shape, name="image")
    x = layers.Conv2D(32, 3, padding="same", activation="relu", name="first")(x)
    x = layers.Conv2D(48, 3, strides=2, padding="same", activation="relu", name="large")(x)
    shared = layers.Conv2D(48, 3, padding="same", activation="relu", name="shared")
    y = shared(shared(x))
    z = layers.Conv2D(33, 1, activation="relu", name="odd")(layers.MaxPooling2D(2, 1, "same")(x))
    x = layers.Concatenate(name="joined")([y, z])
    x = layers.ZeroPadding2D(1, name="padded")(layers.Conv2D(25, 1, name="narrow")(x))
    x = layers.SeparableConv2D(40, 3, name="separable")(x)
    x = layers.GlobalAveragePooling2D(name="pooled")(x)
    return keras.Model(image, [layers.Dense(10, name="a")(x), layers.Dense(3, name="b")(x)])


def sizes(image_shape=(12, 12, 3)):
    """Bilinear, repeated and left out pixels, and blocks of them."""
    x = image = keras.Input(image_shape, name="image")
    x = layers.Conv2D(16, 3, activation="relu", name="first")(layers.Resizing(9, 14)(x))
    x = layers.Conv2D(64, 3, activation="relu", name="second")(layers.UpSampling2D((2, 7))(x))
    x = layers.MaxPooling2D(2)(layers.Conv2DTranspose(32, 2, 2, name="blocks")(x))
    x = layers.Conv2DTranspose(24, 3, padding="same", name="transposed")(x)
    x = layers.Conv2D(24, 3, 2, name="third")(layers.Resizing(6, 41, "nearest")(x))
    x = layers.Concatenate()([keras.ops.depth_to_space(x, 2)] * 7)
    x = layers.GlobalMaxPooling2D(name="largest")(x)
    return keras.Model(image, layers.Dense(10, name="a")(x))


def elementwise(image_shape=(12, 12, 3)):
    """Slopes below 0, tables, differences, clips, averages over borders, and blocks twice."""
    x = image = keras.Input(image_shape, name="image")
    x = layers.LeakyReLU(0.1)(layers.Conv2D(72, 3, 3, name="first")(x))
    x = layers.PReLU(shared_axes=[1, 2], name="slopes")(x)
    x = layers.Subtract()([x, layers.AveragePooling2D(3, 1, "same", name="pool")(x)])
    shared = layers.Conv2DTranspose(72, 2, 2, name="blocks")
    x = shared(layers.MaxPooling2D(2)(shared(layers.ELU()(x))))
    x = layers.AveragePooling2D(2, 2, "same")(layers.ReLU(4.0)(x))
    x = layers.Activation("tanh")(layers.Conv2D(8, 1, name="second")(x))
    x = layers.PReLU(name="vector")(layers.Dense(12, name="a")(layers.Flatten()(x)))
    return keras.Model(image, layers.UnitNormalization()(layers.Dense(10, name="b")(x)))


def sequences(image_shape=(24, 6)):
    """Over time: causal, separable, strided, pooled, a result for each step."""
    x = signal = keras.Input(image_shape, name="signal")
    x = layers.Conv1D(32, 5, padding="causal", dilation_rate=2, activation="relu", name="a")(x)
    x = layers.Conv1D(64, 5, padding="causal", dilation_rate=2, activation="relu", name="b")(x)
    x = layers.SeparableConv1D(48, 3, name="separable")(layers.MaxPooling1D()(x))
    x = layers.Conv1D(48, 3, 2, "same", name="c")(layers.AveragePooling1D(3, 1, "same")(x))
    return keras.Model(signal, layers.Dense(10, name="each")(x))


def moves(image_shape=(12, 12, 3)):
    """Slices of the image, halves that are shuffled, other orders and reduced axes."""
    x = image = keras.Input(image_shape, name="image")
    x = keras.ops.concatenate([x[:, a::2, b::2] for a in (0, 1) for b in (0, 1)], -1)
    x = layers.Conv2D(48, 3, padding="same", activation="relu", name="first")(x)
    first, second = keras.ops.split(x, 2, axis=-1)
    x = keras.ops.concatenate([first, layers.Conv2D(24, 1, name="second")(second)], -1)
    x = layers.Permute((1, 2, 4, 3))(layers.Reshape((6, 6, 2, 24))(x))
    x = layers.Conv2D(32, 3, name="third")(layers.Reshape((6, 6, 48))(x))
    gate = [f(x, -1, keepdims=True) for f in (keras.ops.mean, keras.ops.max)]
    gate = layers.Conv2D(1, 3, padding="same", name="gate")(keras.ops.concatenate(gate, -1))
    x = layers.Dense(20, name="rows")(keras.ops.swapaxes(x * keras.ops.sigmoid(gate), 1, 3))
    return keras.Model(image, layers.Dense(10, name="a")(keras.ops.sum(x, (1, 2))))


def attention(token_shape=(12, 16)):
    """Products of two activations, one of them shared, maxima and minima, and GELU."""
    x = tokens = keras.Input(token_shape, name="tokens")
    x = layers.Dense(48, activation="gelu", name="first")(x)
    parts = [layers.Dense(48, name=name)(x) for name in ("queries", "keys", "values")]
    queries, keys, values = parts
    scores = keras.ops.relu(keras.ops.einsum("bqd,bkd->bqk", queries, keys))
    y = layers.Dot((1, 1), name="product")([scores, values])
    x = layers.Maximum(name="most")([x, layers.Dense(48, name="projected")(y), queries])
    x = layers.Flatten()(keras.ops.minimum(x, layers.Dense(48, "relu", name="last")(x)))
    return keras.Model(tokens, layers.Dense(10, name="logits")(x))


def maps(image_shape=(40, 40, 3)):
    """An output of more values than a file holds."""
    image = keras.Input(image_shape, name="image")
    x = layers.Conv2D(64, 7, padding="same", name="first")(image)
    x = layers.Conv2D(64, 3, 2, "same", name="second")(layers.LeakyReLU(name="leaky")(x))
    return keras.Model(image, layers.Conv2D(11, 3, padding="same", name="last")(x))


NETWORKS = {
    "sizes": sizes,
    "elementwise": elementwise,
    "attention": attention,
    "maps": maps,
    "sequences": sequences,
    "moves": moves,
    "small_cnn": lambda: zoo.small_cnn((28, 28, 1), 10, width=8),
    "tiny_cnn": lambda: zoo.small_cnn((8, 8, 1), 4, width=4),
    "small_resnet": lambda: zoo.small_resnet((28, 28, 1), 10),
    "small_mobilenet": lambda: zoo.small_mobilenet((28, 28, 1), 10),
    "wide": wide,
    "mobilenet_v3": lambda: zoo.mobilenet_v3_large((32, 32, 3), 10, width=0.35),
}


def distinct_steps(model):
    """Calibrates a model; no two steps are equal, as after training."""
    images = np.random.default_rng(1).normal(size=(8, *model.network.input_shape[1:]))
    kmm.calibrate(model, images.astype(np.float32))
    for number, quantizer in enumerate(activation_quantizers(model.network)):
        if hasattr(quantizer, "log_step"):
            quantizer.log_step.assign(quantizer.log_step + 1e-3 * number)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.long] * (n == "mobilenet_v3")) for n in NETWORKS]
)
def test_size_is_that_of_the_file(name, as_trained):
    keras.utils.set_random_seed(0)
    network = NETWORKS[name]()
    model = kmm.MetaMixModel.from_float(network, kmm.SearchSpace((8, 4, 3), (8, 4, 2)))
    untrained = kmm.Size(share=1.0).priced(model)  # of steps that nobody set
    as_trained(model.network)
    distinct_steps(model)
    mixed = [p[i % len(p)] for i, p in enumerate(untrained.choices.values())]
    activations, weights = (
        dict(zip(untrained.choices, b, strict=True)) for b in zip(*mixed, strict=True)
    )
    assignments = [kmm.uniform_assignment(network, *bits) for bits in ((8, 8), (4, 4), (3, 2))]
    assignments.append(kmm.BitAssignment(activations, weights))
    for bits in assignments:
        model.set_bits(bits)
        found = len(mt.convert(model))
        assert untrained.total(bits) == pytest.approx(found, abs=max(100, 0.01 * found))
    most, _, least = (untrained.total(bits) for bits in assignments[:3])
    assert (most, least) == (untrained.most, untrained.least)


def test_a_mixer_s_point_has_a_size_of_its_own(as_trained):
    keras.utils.set_random_seed(0)
    mixer = kmm.BitMixerModel.from_float(zoo.small_resnet((28, 28, 1), 10))
    as_trained(mixer.network)
    kmm.calibrate(mixer, np.random.default_rng(1).normal(size=(8, 28, 28, 1)).astype(np.float32))
    mixer.stage = "layer_wise"
    bits = mixer.uniform_bits(3)
    mixer.set_bits(bits)
    found = kmm.Size(share=0.5).priced(mixer).total(bits)
    assert found == pytest.approx(len(mt.convert(mixer)), rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"float_layers": ["conv2"]}, r"\['conv2'\] were left in float"),
        ({"space": kmm.SearchSpace(stream_bits=None)}, "stream_bits=None"),
    ],
)
def test_what_has_no_file_has_no_size(arguments, message, float_model):
    model = kmm.MetaMixModel.from_float(float_model, **arguments)
    with pytest.raises(ValueError, match=message):
        kmm.Size("64 kB").priced(model)
    assert kmm.Bops(share=0.5).priced(model).limit > 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [("300 kB", 300e3), ("1.5MB", 1.5e6), ("64 KiB", 65536), ("12 bytes", 12), ("0.5 MiB", 2**19)],
)
def test_bytes_may_be_a_text(text, expected):
    assert kmm.Size(text) == kmm.Size(expected)
    assert kmm.Size(text).limit == expected


@pytest.mark.parametrize("text", ["1,500 kB", "0,5 MiB", "1.5.0 MB", "many MB"])
def test_other_texts_are_refused(text):
    with pytest.raises(
        ValueError, match=f"Size: expected bytes, .*without a comma, found '{text}'"
    ):
        kmm.Size(text)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_convert_explain_and_prices_hold_weights_alike(target, bits, as_trained):
    """What is decided in one place is what a file has."""
    space = kmm.SearchSpace((8,), bits)
    model = kmm.MetaMixModel.from_float(wide(), space)
    as_trained(model.network)
    distinct_steps(model)
    model.set_bits(kmm.uniform_assignment(model, 8, bits))
    rows = kmm.explain(wide(), space, target=target).rows
    explained = {row.name: (row.operator, row.container) for row in rows if row.container}
    flat = mt.convert(model, target)
    graph = mt.verify(flat, model.bit_assignment)
    operators = {graph.tensors[o.outputs[0]].name: o.op for o in graph.operators}
    for name, entry in graph.metadata["layers"].items():
        if entry["layer"] in explained:
            assert (operators[name], entry["container"]) == explained[entry["layer"]], name
    priced = kmm.Size(share=1.0, target=target).priced(model)
    assert priced.total(model.bit_assignment) == pytest.approx(len(flat), rel=0.01)

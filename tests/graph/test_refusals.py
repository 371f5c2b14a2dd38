"""`explain`, `from_float` and `convert` say the same of every model, in the user's words."""

import functools
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import keras_metamix as kmm
import metamix_tflite as mt
from keras_metamix.layers.mode import FLOAT, quantization_mode

SHAPE = (8, 8, 4)


def conv(filters=4, size=3, **arguments):
    return layers.Conv2D(filters, size, padding="same", **arguments)


def model_of(*middle, shape=SHAPE):
    """A stem, what stands between, and logits."""
    image = keras.Input(shape, name="image")
    x = conv(name="stem")(image)
    for function in middle:
        x = function(x)
    return ended(image, x)


def ended(image, x):
    x = layers.Dense(3, name="logits")(layers.Flatten(name="flat")(x))
    return keras.Model(image, x, name="whole")


def two(function):
    return lambda x: function([x, conv(name="other")(x)])


def sequence(*middle):
    """Features over time: (time, channels)."""
    image = keras.Input((8, 4), name="image")
    x = layers.Dense(4, name="stem")(image)
    for function in middle:
        x = function(x)
    return ended(image, x)


# --- layers of users ----------------------------------------------------------------------------


@keras.saving.register_keras_serializable("test_refusals")
class DropPath(layers.Layer):
    """Stochastic depth, as people write it."""

    def __init__(self, rate=0.5, **kwargs):
        super().__init__(**kwargs)
        self.rate = rate

    def call(self, x, training=False):
        if not training:
            return x
        keep = ops.cast(keras.random.uniform((ops.shape(x)[0], 1, 1, 1)) > self.rate, x.dtype)
        return x * keep / (1 - self.rate)

    def get_config(self):
        return super().get_config() | {"rate": self.rate}


class Holder(layers.Layer):
    """Augmentation in a layer without a config of its own."""

    def __init__(self, rate, **kwargs):
        super().__init__(**kwargs)
        self.parts = [layers.RandomFlip(), layers.Dropout(rate)]

    def call(self, x, training=None):
        for part in self.parts:
            x = part(x, training=training)
        return x


def block(default):
    class Block(layers.Layer):
        """A block with the usual signature, and a drop path inside."""

        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.conv, self.norm = conv(name="inner"), layers.BatchNormalization(name="norm")
            self.drop, self.noise = layers.Dropout(0.3), DropPath(0.3)

        def call(self, x, training=default):
            y = ops.relu(self.norm(self.conv(x), training=training))
            return x + self.noise(self.drop(y, training=training), training=training)

    return Block(name="block")


@keras.saving.register_keras_serializable("test_refusals")
class Branches(layers.Layer):
    """It computes something else in training than in evaluation."""

    def __init__(self, scale=0.5, **kwargs):
        super().__init__(**kwargs)
        self.scale, self.conv = scale, conv(name="inner")

    def call(self, x, training=None):
        y = self.conv(x)
        return x + y if training else x + self.scale * y


class Sampled(layers.Layer):
    """Monte Carlo dropout."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.drop = layers.Dropout(0.5, name="drop")

    def call(self, x):
        return self.drop(x, training=True)


@keras.saving.register_keras_serializable("test_refusals")
class Slicing(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv, self.act = conv(name="inner"), layers.LeakyReLU(2.0, name="leaky")

    def call(self, x):
        return self.act(self.conv(x))[..., ::-1]


class Clipped(layers.ReLU):
    def call(self, inputs):
        return ops.clip(inputs, -0.5, 0.5)


class Scaled(layers.Activation):
    def call(self, inputs):
        return 3.0 * super().call(inputs)


class Standardized(layers.Conv2D):
    def call(self, inputs):
        kernel = self.kernel - ops.mean(self.kernel)
        return ops.conv(inputs, kernel, padding=self.padding)


class PlainConv(layers.Conv2D):
    """It computes what its base does."""

    def __init__(self, filters, kernel_size=3, padding="same", rank=None, **kwargs):
        super().__init__(filters, kernel_size, padding=padding, **kwargs)
        self.rank_of_mine = rank

    def get_config(self):
        return super().get_config() | {"rank": self.rank_of_mine}


class PlainNorm(layers.BatchNormalization):
    def helper(self):
        return 3


class Doubled(layers.Add):
    def _merge_function(self, inputs):
        return 2.0 * super()._merge_function(inputs)


@keras.saving.register_keras_serializable("test_refusals")
def relu(x):
    return ops.clip(x, -0.1, 1.0)


def hard_tanh(x):
    return ops.clip(x, -1.0, 1.0)


def hard_sigmoid(x):  # as in Keras 2
    return ops.clip(0.2 * x + 0.5, 0.0, 1.0)


def known(x):
    return ops.relu(x) * 0.5 + ops.sigmoid(x)


def quantized_by_keras():
    model = model_of()
    model.get_layer("logits").quantize("int8")
    return model


def with_lora():
    model = model_of()
    model.get_layer("logits").enable_lora(2)
    return model


@keras.saving.register_keras_serializable("test_refusals")
class Composite(layers.Layer):
    """A block whose call is the function `what` here, of it and of what its convolution gives."""

    def __init__(self, what, **kwargs):
        super().__init__(**kwargs)
        self.what, self.conv = what, conv(name="inner")
        self.mean = keras.metrics.Mean()

    def call(self, x):
        return globals()[self.what](self, self.conv(x))

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape)

    def build(self, shape):
        self.conv.build(shape)

    def get_config(self):
        return super().get_config() | {"what": self.what}


def of_call(what):
    return lambda: model_of(Composite(what.__name__, name="block"))


def with_loss(block, x):
    block.add_loss(0.1 * ops.mean(x))
    return x


def with_metric(block, x):
    block.mean.update_state(ops.mean(x))
    return x


def with_noise(block, x):
    return x + keras.random.normal(ops.shape(x))


def with_tensorflow(block, x):
    return tf.math.sin(x)


def with_numpy(block, x):
    return np.abs(x)


def with_values(block, x):
    return x if ops.mean(x) > 0 else -x


def with_new_layers(block, x):
    return conv()(x)


def of_curves(block, x):
    return ops.exp(ops.sin(x))


class Enlarged(layers.Resizing):
    def call(self, x):
        return 2.0 * super().call(x)


class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv, self.norm = conv(name="inner"), layers.BatchNormalization()
        self.drop = layers.Dropout(0.5)

    def call(self, x, training=None):
        return self.drop(self.norm(self.conv(x), training=training), training=training)


def unregistered(x):
    return ops.sin(x)


def unregistered_tensorflow(x):
    return tf.math.l2_normalize(x, axis=-1)


def trained(layer, shape=SHAPE, training=True):
    """A model that calls a layer with training=True."""
    image = keras.Input(shape, name="image")
    x = layer(image, training=training)
    return ended(image, conv(name="stem")(x))


def base():
    return keras.Sequential(
        [keras.Input(SHAPE), conv(name="inner"), layers.BatchNormalization(), layers.Dropout(0.5)],
        name="base",
    )


def with_nan(layer="stem", index=0, value=np.nan):
    model = model_of(layers.BatchNormalization(name="norm"))
    variable = model.get_layer(layer).variables[index]
    variable.assign(np.full(variable.shape, value))
    return model


def of_bytes(*middle):
    image = keras.Input(SHAPE, name="image", dtype="uint8")
    x = image
    for function in middle:
        x = function(x)
    return ended(image, conv(name="stem")(x))


def half():
    image = keras.Input(SHAPE, name="image")
    x = layers.ELU(0.5, name="elu")(conv(name="half", dtype="mixed_float16")(image))
    return ended(image, x)


def numbered():
    image, number = (
        keras.Input(SHAPE, name="image"),
        keras.Input((3,), name="number", dtype="int32"),
    )
    parts = conv(name="stem")(image), layers.Embedding(5, 2, name="lookup")(number)
    x = layers.Concatenate()([layers.Flatten()(part) for part in parts])
    return keras.Model([image, number], layers.Dense(3)(x))


def any_size():
    image = keras.Input((None, None, 3), name="image")
    x = layers.RandomFlip()(conv(name="stem")(image))
    x = layers.GlobalAveragePooling2D()(layers.ELU(0.5, name="elu")(x))
    return keras.Model(image, layers.Dense(3)(x))


def behind_logits(*ends):
    model = model_of()
    x = model.output
    for function in ends:
        x = function(x)
    return keras.Model(model.input, x)


def behind_a_relu(function):
    """A raw operation behind a layer whose activation is a part of it."""
    return lambda: model_of(conv(activation="relu", name="next"), function)


# --- what is taken ------------------------------------------------------------------------------

AUGMENTATION = [
    layers.RandomFlip("horizontal"),
    layers.RandomRotation(0.1),
    layers.RandomZoom(0.2),
    layers.RandomTranslation(0.1, 0.1),
    layers.RandomContrast(0.5),
    layers.RandomBrightness(0.2),
    layers.RandomErasing(),
]
IN_TRAINING = {
    type(layer).__name__: layer
    for layer in (
        layers.GaussianNoise(1.0),
        layers.GaussianDropout(0.5),
        layers.AlphaDropout(0.5),
        layers.Dropout(0.5),
        layers.SpatialDropout2D(0.5),
        DropPath(),
        *AUGMENTATION,
    )
}
TAKEN = {
    **{
        name: lambda a=IN_TRAINING[name]: augmented(a)
        for name in ("GaussianNoise", "DropPath", "RandomContrast")
    },
    "noise between": lambda: model_of(layers.ReLU(), layers.GaussianNoise(0.1), conv()),
    "noise behind a layer": lambda: model_of(layers.GaussianNoise(0.1), layers.ReLU(), conv()),
    "ActivityRegularization": lambda: model_of(layers.ActivityRegularization(l1=0.1)),
    "a pipeline": lambda: augmented(keras.Sequential(AUGMENTATION[:2])),
    "Resizing": lambda: augmented(layers.Resizing(4, 6)),
    "Resizing to the same size": lambda: augmented(layers.Resizing(8, 8)),
    "CenterCrop": lambda: augmented(layers.CenterCrop(5, 4)),
    **{f"training={value}": lambda v=value: model_of(block(v)) for value in (None, False, True)},
    "a subclass that computes as its base": lambda: model_of(
        PlainConv(4, activation="relu", name="plain"), PlainNorm(name="norm")
    ),
    "a subclass that can be opened": lambda: model_of(Scaled("relu", name="scaled")),
    "a sum that can be opened": lambda: model_of(two(Doubled(name="doubled"))),
    **{
        f"tf.nn.{function.__name__}": lambda f=function: model_of(conv(activation=f))
        for function in (tf.nn.relu, tf.nn.relu6, tf.nn.sigmoid, tf.nn.tanh, tf.nn.silu)
    },
    "ops.relu": lambda: model_of(layers.Activation(ops.relu)),
    "a lambda": lambda: model_of(conv(activation=lambda x: ops.relu(x))),
    "a partial function": lambda: model_of(
        conv(activation=functools.partial(keras.activations.relu, max_value=6.0))
    ),
    "Keras 2's hard_sigmoid": lambda: model_of(layers.Activation(hard_sigmoid), conv()),
    "max(x, 0) and a clip to 6": lambda: model_of(
        lambda x: ops.maximum(x, 0.0), conv(), lambda x: ops.clip(x, 0, 6), conv()
    ),
    "a noise layer of layers": lambda: augmented(Holder(0.3)),
    "a function of known ones": lambda: model_of(conv(activation=known)),
    "a Lambda layer": lambda: model_of(layers.Lambda(lambda x: ops.relu(x) * 2.0)),
    "Dense over time": lambda: sequence(layers.ReLU(), layers.Dense(5, activation="sigmoid")),
    "sum over time": lambda: sequence(lambda x: layers.Add()([x, layers.Dense(4)(x)])),
    "folded over time": lambda: sequence(layers.BatchNormalization(), layers.ReLU()),
    "Dense over images": lambda: model_of(layers.Dense(5)),
    "softmax over anchors": lambda: anchors(layers.Softmax(name="scores")),
    "constants of features": lambda: model_of(
        layers.Flatten(), layers.ReLU(), layers.BatchNormalization(), layers.Dense(4)
    ),
    "two outputs": lambda: several_outputs(),
    "called with training=False": lambda: trained(base(), training=False),
    "moved bytes": lambda: of_bytes(layers.ZeroPadding2D(), layers.Rescaling(1 / 255)),
    "the call of a subclassed model": lambda: called(Subclassed()),
}  # fmt: skip


def called(model):
    """The remedy for a subclassed model."""
    image = keras.Input(SHAPE)
    return ended(image, keras.Model(image, model.call(image))(image))


def augmented(layer):
    image = keras.Input(SHAPE, name="image")
    return ended(image, conv(name="stem", activation="relu")(layer(image)))


def anchors(*ends):
    image = keras.Input(SHAPE, name="image")
    x = layers.Reshape((64, 4), name="anchors")(conv(name="stem")(image))
    for layer in ends:
        x = layer(x)
    return keras.Model(image, x)


def several_outputs():
    image = keras.Input(SHAPE, name="image")
    x = conv(name="stem")(image)
    return keras.Model(image, [layers.ReLU(name="on")(x), conv(2, name="raw")(x)])


@pytest.fixture(scope="module")
def calibrated():
    """calibrated(float model, space, float_layers) -> the wrapped one with bits set, and images."""

    def make(source, space=None, float_layers=()):
        model = kmm.MetaMixModel.from_float(source, space, float_layers)
        shape = source.inputs[0].shape[1:]
        images = np.random.default_rng(0).normal(0, 2, (4, *shape))
        if source.inputs[0].dtype == "uint8":
            images = np.abs(50 * images) % 256
        images = images.astype(source.inputs[0].dtype)
        kmm.calibrate(model, images)
        model.set_bits(kmm.uniform_assignment(model, 4, 4))
        return model, images

    return make


@pytest.mark.parametrize("name", TAKEN)
def test_where_explain_says_that_all_is_well_there_is_an_exact_file(name, calibrated):
    keras.utils.set_random_seed(0)
    source = TAKEN[name]()
    explanation = kmm.explain(source)
    assert explanation.not_exported == {}
    assert {row.outcome for row in explanation.rows} <= {
        "quantized", "integer", "folded", "left out"}  # fmt: skip
    model, images = calibrated(source)
    with quantization_mode(FLOAT):
        for found, expected in zip(
            keras.tree.flatten(model(images, training=False)),
            keras.tree.flatten(source(images, training=False)),
            strict=True,
        ):
            np.testing.assert_array_equal(found, expected)
    flat = mt.convert(model)
    mt.verify(flat, model.bit_assignment)
    if len(source.outputs) == 1:
        assert mt.parity(flat, model, images).differing == 0


# --- what is not --------------------------------------------------------------------------------

RAW = {  # function, name for float_layers, and what the message says
    "max_pool": (lambda x: ops.max_pool(x, 2), "max_pool", "use the layer MaxPooling2D"),
    "average_pool": (lambda x: ops.average_pool(x, 2), "average_pool", "layer AveragePooling2D"),
    "pad": (lambda x: ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), "pad", "layer ZeroPadding2D"),
    "conv": (lambda x: ops.conv(x, np.ones((3, 3, 4, 4), "float32")), "conv", "layer Conv2D"),
    "argmax": (lambda x: ops.argmax(x, -1), "argmax", "leave it to the app"),
    "log_softmax": (ops.log_softmax, "log_softmax", "from_logits=True"),
    "minus": (lambda x: -x, "negative", r"use Rescaling\(-1.0\)"),
    "x ** 2": (lambda x: x**2, "power", r"Multiply\(\)\(\[x, x\]\) is the square"),
    "abs": (abs, "absolute", r"Add\(\)\(\[ReLU\(\)\(x\), ReLU\(\)\(Rescaling\(-1.0\)\(x\)\)"),
    "mean over all": (lambda x: ops.mean(x, keepdims=True), "mean", "along axes behind the batch"),
    "max over images": (lambda x: ops.max(x, 0, True), "max", "along axes behind the batch"),
    "max from": (lambda x: ops.max(x, 1, initial=0.5), "max", "without initial"),
    "exp": (ops.exp, "exp", "no exact integer form; put a ReLU"),
    "x[:, ::-1]": (lambda x: x[:, ::-1], "get_item", "reads backwards; use Concatenate of slices"),
    "x[:, 3:3]": (lambda x: x[:, 3:3], "get_item", "leaves nothing of its input"),
    "take": (lambda x: ops.take(x, [0, 3, 1], -1), "take", "no range, .* Concatenate of slices"),
    "many copies": (lambda x: ops.tile(x, (1, 1, 1, 40)), "tile", "1 to 16 copies.*found 40"),
    "flip": (lambda x: ops.flip(x, 1), "flip", "turn the data, or the weights"),
    "roll": (lambda x: ops.roll(x, 1, 1), "roll", "Concatenate of both slices"),
    "a minimum of a constant": (
        lambda x: ops.minimum(x + 1.0, 2.0), "minimum", r"c - ReLU\(\)\(c - x\) is the minimum"),
    "a plane of constants": (
        lambda x: x + np.ones((8, 8, 4), "float32"), "add",
        r"for each channel, found \(8, 8, 4\); give others to the model as an input"),
    "1 / x": (lambda x: 1.0 / (x + 1.0), "true_divide", "with the tensor as divisor"),
    "None in a shape": (
        lambda x: ops.reshape(x, (ops.shape(x)[0], 256)), "reshape",
        r"expected a shape without None, found \(None, 256\)"),
}  # fmt: skip
NOT_YET, NO_FORM = "not exported yet", "no exact integer form"
REFUSED = {  # model, and what the message says of each, by the name that float_layers takes
    "LeakyReLU": (lambda: model_of(layers.LeakyReLU(0.001, name="act")), {
        "act": r"'act' \(LeakyReLU\): no exact integer form with a slope of 0.001; use one from"}),
    "PReLU": (lambda: model_of(layers.PReLU(name="act")), {
        "act": r"a slope for each pixel; use shared_axes=\[1, 2\]"}),
    "ELU": (lambda: model_of(layers.ELU(0.5, name="act")), {"act": NO_FORM}),
    "ReLU with a threshold": (lambda: model_of(layers.ReLU(4.0, threshold=0.5, name="act")), {
        "act": r"'act' \(ReLU\(max_value=4, threshold=0.5\)\): not exported yet"}),
    "fused mish": (lambda: model_of(conv(activation="mish", name="next")), {
        "next_activation": r"'next' \(activation 'mish'\): no exact integer form; use silu"}),
    "a relu of one's own": (lambda: model_of(conv(activation=relu, name="next")), {
        "next_activation": r"'next' \(activation 'relu' of your own\) computes a clip"}),
    "a hard tanh of one's own": (lambda: model_of(layers.Activation(hard_tanh, name="act")), {
        "act": r"'act' \(activation 'hard_tanh' of your own\) computes a clip"}),
    "a partial relu": (
        lambda: model_of(
            conv(activation=functools.partial(keras.activations.relu, threshold=0.1), name="a")
        ), {"a_activation": "'a' .activation 'partial' of your own. computes a relu with"}),
    "tf.nn.elu": (lambda: model_of(conv(activation=tf.nn.elu, name="next")), {
        "next_activation": r"'next' \(activation 'elu'\): a function of TensorFlow's; not exp"}),
    "a ReLU subclass": (lambda: model_of(Clipped(name="act")), {
        "act": r"'act' \(Clipped\) computes a clip"}),
    "a Conv2D subclass": (lambda: model_of(Standardized(4, 3, name="std")), {
        "std": r"'std' \(Standardized\): a Conv2D with call of its own"}),
    "quantized by Keras": (quantized_by_keras, {
        "logits": r"'logits' \(Dense\): quantized by Keras already \(int8\)"}),
    "LoRA": (with_lora, {"logits": "LoRA"}),
    "softmax inside": (lambda: model_of(layers.Softmax(name="act")), {"act": NO_FORM}),
    "LayerNormalization": (lambda: model_of(layers.LayerNormalization(name="norm")), {
        "norm": "no exact integer form; use BatchNormalization"}),
    "UnitNormalization": (lambda: model_of(layers.UnitNormalization(name="norm")), {
        "norm": "cosine"}),
    "Maximum of two shapes": (lambda: model_of(
        lambda x: layers.Maximum(name="most")([x, conv(1)(x)])), {"most": "tensors of one shape"}),
    "a raw quotient": (lambda: model_of(two(lambda x: x[0] / x[1])), {
        "true_divide": "A quotient behind layer '"}),
    **{
        f"a resize, {name}": (lambda layer=layer: model_of(layer), {"size": "bilinear, or nearest"})
        for name, layer in {
            "bicubic": layers.UpSampling2D(2, interpolation="bicubic", name="size"),
            "nearest by a fraction": layers.Resizing(12, 8, "nearest", name="size"),
            "antialias": layers.Resizing(4, 4, antialias=True, name="size"),
            "cropped": layers.Resizing(4, 8, crop_to_aspect_ratio=True, name="size"),
            "padded": layers.Resizing(4, 8, pad_to_aspect_ratio=True, name="size"),
        }.items()
    },
    "ops.image.resize, bicubic": (
        lambda: model_of(lambda x: ops.image.resize(x, (4, 4), "bicubic")),
        {"resize": "A resize behind layer 'stem'"}),
    "a dilated Conv2DTranspose": (
        lambda: model_of(layers.Conv2DTranspose(4, 2, dilation_rate=2, name="up")),
        {"up": "with a dilation; use UpSampling2D"}),
    "output_padding": (
        lambda: model_of(layers.Conv2DTranspose(4, 3, 2, "same", output_padding=0, name="up")),
        {"up": "output_padding that changes the size"}),
    "a kernel larger and smaller than the stride": (
        lambda: model_of(layers.Conv2DTranspose(4, (2, 5), 3, "same", name="up")),
        {"up": "padding='valid', and Cropping2D"}),
    "Permute": (lambda: model_of(
        layers.Reshape((8, 2, 4, 2, 2, 1)), layers.Permute((2, 1, 3, 4, 5, 6), name="turn"),
        layers.Reshape((8, 8, 4))), {"turn": "up to 6 axes; join axes"}),
    "RandomCrop": (lambda: augmented(layers.RandomCrop(4, 4, name="crop")), {
        "crop": "in training alone; put it into the data pipeline"}),
    "CenterCrop that resizes": (lambda: augmented(layers.CenterCrop(9, 4, name="crop")), {
        "crop": "data pipeline"}),
    "a padded pool": (lambda: model_of(layers.AveragePooling2D(5, 1, "same", name="pool")), {
        "pool": "border"}),
    "a slice": (lambda: model_of(lambda x: x[..., ::-1]), {
        "get_item": "A slice behind layer 'stem' .*reads backwards"}),
    "a function of keras.ops": (lambda: model_of(ops.sin), {
        "sin": "keras.ops.sin behind layer 'stem'"}),
    "inside a composite": (lambda: model_of(Slicing(name="block")), {
        "block": r"Layer 'block' \(Slicing\) computes a slice",
        "leaky": r"'leaky' \(LeakyReLU\) inside 'block' \(Slicing\): no exact integer form"}),
    "inside a model": (lambda: model_of(keras.Sequential(
        [keras.Input(SHAPE), layers.ELU(0.5, name="elu")], name="inner")), {
        "elu": r"'elu' \(ELU\) inside 'inner'"}),
    "a branch on training": (lambda: model_of(Branches(name="block")), {
        "block": "something else in training"}),
    "Monte Carlo dropout": (lambda: model_of(Sampled(name="block")), {
        "block": "calls 'drop' with training=True"}),
    "a norm over blocks": (lambda: model_of(
        layers.Reshape((2, 4, 8, 4)), layers.BatchNormalization(name="norm")), {
        "norm": "over 4 axes"}),
    "a layer that cannot be copied": (lambda: augmented(layers.RandomShear(0.2, name="shear")), {
        "shear": "cannot be copied"}),
    "channels before time": (lambda: sequence(
        layers.MaxPooling1D(data_format="channels_first", name="time")), {
        "time": "exported with data_format='channels_last'"}),
    "LSTM": (lambda: sequence(layers.LSTM(3, name="time")), {"time": NOT_YET}),
    "MultiHeadAttention": (
        lambda: sequence(lambda x: layers.MultiHeadAttention(2, 3, name="attention")(x, x)),
        {"attention": "holds on every CPU"}),
    "Embedding": (lambda: sequence(layers.Dense(1), layers.Flatten(), layers.Embedding(
        5, 3, name="lookup")), {"lookup": NO_FORM}),
    "several": (lambda: model_of(layers.ELU(0.5, name="a"), conv(activation="mish", name="b"),
                                 layers.GroupNormalization(1, name="c"),
                                 lambda x: x[:, ::-1]), {
        "a": "ELU", "b_activation": "mish", "c": "GroupNormalization", "get_item": "A slice"}),
}  # fmt: skip
REASONS = {  # the same, where only what is said is of interest
    **{
        f"{name} behind a fused relu": (
            behind_a_relu(function), {key: rf"behind layer 'next' .*{said}"})
        for name, (function, key, said) in RAW.items()
    },
    "a loss in a block": (of_call(with_loss), {
        "block": r"'block.add_loss\(.*' \(test_refusals.py, line \d+\), which adds a loss; give"}),
    "a metric in a block": (of_call(with_metric), {
        "block": r"opened at 'block.mean.update_state.*which updates a metric"}),
    "noise in evaluation": (of_call(with_noise), {
        "block": "draws random numbers in evaluation too"}),
    "TensorFlow in a block": (of_call(with_tensorflow), {
        "block": r"opened at 'return tf.math.sin\(x\)' .*calls TensorFlow"}),
    "NumPy in a block": (of_call(with_numpy), {"block": "calls NumPy"}),
    "values in a block": (of_call(with_values), {"block": "depends on the values of a tensor"}),
    "layers made in a call": (of_call(with_new_layers), {"block": "makes a Conv2D in its call"}),
    "super().call": (lambda: model_of(Enlarged(8, 8, name="size")), {
        "size": "runs Keras' own call of Resizing; make a Resizing in __init__, and call that"}),
    "a subclassed model inside": (lambda: model_of(Subclassed(name="inner")), {
        "inner": r"put keras.Model\(x, model.call\(x\)\)"}),
    "a Lambda of a lambda": (lambda: model_of(layers.Lambda(lambda x: ops.sin(x), name="f")), {
        "f": r"computes keras.ops.sin: .* in its place. It cannot stay .*lambda.*register_keras"}),
    "a Lambda of TensorFlow": (
        lambda: model_of(layers.Lambda(unregistered_tensorflow, name="f")), {
        "f": r"calls TensorFlow; .* It cannot stay in float .*register_keras_serializable\(\)"}),
    "an unregistered activation": (lambda: model_of(conv(activation=unregistered, name="next")), {
        "next_activation": r"keras.ops.sin: .* It cannot stay in .*register_keras_serializable"}),
    "a cosine of the input": (lambda: augmented(lambda x: ops.cos(x + 1.0)), {
        "cos": r"behind input 'image' .*acts on the model's input alone: put it into the data"}),
    **{
        f"{type(layer).__name__} with training=True": (lambda layer=layer: trained(layer), {
            layer.name: rf"'{layer.name}' .*called with training=True, .* leave the argument out"})
        for layer in (layers.Dropout(0.5, name="drop"), layers.GaussianNoise(0.5, name="noise"),
                      layers.BatchNormalization(name="norm"), base(), block(None))
    },
    "TimeDistributed": (
        lambda: model_of(layers.Reshape((2, 4, 8, 4)), layers.TimeDistributed(conv(), name="time")),
        {"time": "build the model of one step"}),
    "SpectralNormalization": (
        lambda: model_of(layers.SpectralNormalization(conv(), name="norm")), {
        "norm": "build the model with the layer that it wraps"}),
    "RepeatVector": (
        lambda: model_of(layers.Flatten(), layers.RepeatVector(3, name="time")), {
        "time": r"\(RepeatVector\): not exported yet; Concatenate"}),
    **{
        name: (lambda name=name: model_of(layers.Activation(name, name="act")), {"act": said})
        for name, said in {
            "softplus": rf"{NO_FORM}; use ReLU\(\)", "mish": f"{NO_FORM}; use silu",
            "exponential": f"{NO_FORM}; put a ReLU", "log_softmax": "from_logits=True",
            "softsign": f"{NO_FORM}; put a ReLU"}.items()
    },
    "a softmax before a reshape": (
        lambda: behind_logits(layers.Softmax(name="act"), layers.Reshape((1, 3), name="row")),
        {"act": "where it is the last layer, found 'row' behind it; put that before"}),
    "classes in turn at the end": (lambda: behind_logits(lambda x: ops.roll(x, 1, 1)), {
        "roll": "at the end of the model, as here, the app can compute it, too"}),
    "NaN": (with_nan, {"stem": r"'stem' \(Conv2D\): .* found 144 of 144 in kernel that are not"}),
    "an infinite variance": (lambda: with_nan("norm", 3, np.inf), {
        "norm": "found 4 of 4 in moving_variance"}),
    "weights beyond float32's squares": (lambda: with_nan(value=1e30), {"stem": "below 1e"}),
    "bytes into a convolution": (of_bytes, {
        "stem": r"reads the bytes of an input .* put Rescaling\(1 / 255\)"}),
    "moved bytes into a convolution": (lambda: of_bytes(layers.ZeroPadding2D(1)), {
        "stem": "reads the bytes"}),
    "enlarged bytes into a convolution": (
        lambda: of_bytes(layers.UpSampling2D(), layers.Resizing(9, 9)),
        {"stem": "reads the bytes"}),
}  # fmt: skip

FINAL = {
    "quantized by Keras",
    "LoRA",
    "a layer that cannot be copied",
    "a hard tanh of one's own",
    "a partial relu",
    "tf.nn.elu",
    "None in a shape behind a fused relu",
    "a Lambda of a lambda",
    "a Lambda of TensorFlow",
    "an unregistered activation",
    "NaN",
    "an infinite variance",
    "weights beyond float32's squares",
    "bytes into a convolution",
    "moved bytes into a convolution",
    "enlarged bytes into a convolution",
}
# Keras computes something else at each call, or nothing on numbers that are no words.
NOT_COMPARED = {"Monte Carlo dropout", "RandomCrop", "Embedding"}
INTERNALS = re.compile(
    r"KerasTensor|tensorflow\.|Traceback|keras\.src|<function|0x[0-9a-f]{6}", re.I
)


@pytest.fixture
def refused():
    """refused(model, ...) -> the message of from_float."""

    def message(source, *arguments):
        with pytest.raises(ValueError) as error:
            kmm.MetaMixModel.from_float(source, *arguments)
        return str(error.value)

    return message


@pytest.fixture
def agreed(refused):
    """agreed(name, build, expected) -> the model and what explain says of it.

    What explain says, from_float says in one message, and both what is expected.
    """

    def check(name, build, expected):
        keras.utils.clear_session()
        source = build()
        explanation = kmm.explain(source)
        assert set(explanation.refused) == set(explanation.not_exported) == set(expected)
        text = refused(source)
        for layer, pattern in expected.items():
            assert re.search(pattern, explanation.refused[layer]), explanation.refused[layer]
            assert explanation.refused[layer] in text
        assert not INTERNALS.search(text), text
        assert text == refused(source)
        assert len(text.splitlines()) == (1 if len(expected) == 1 else len(expected) + 2)
        assert ("float_layers" in text) == (name not in FINAL)
        return source, explanation

    return check


@pytest.mark.parametrize("name", REASONS)
def test_a_refusal_names_the_obstacle_and_a_remedy(name, agreed):
    agreed(name, *REASONS[name])


@pytest.mark.parametrize("name", REFUSED)
def test_what_explain_refuses_from_float_refuses_in_one_message(name, agreed, calibrated):
    source, explanation = agreed(name, *REFUSED[name])
    expected = explanation.refused
    rows = [row for row in explanation.rows if row.outcome == "refused"]
    assert rows
    for row in rows:
        assert (row.operator, row.macs) == ("", 0)
    if name not in FINAL | NOT_COMPARED:
        model = kmm.MetaMixModel.from_float(source, None, list(expected))
        images = np.random.default_rng(0).normal(size=(2, *source.inputs[0].shape[1:]))
        with quantization_mode(FLOAT):
            found, real = (m(images, training=False) for m in (model, source))
        np.testing.assert_array_equal(found, real)
        kmm.calibrate(model, images)
        model.set_bits(kmm.uniform_assignment(model, 4, 4))
        with pytest.raises(ValueError, match="left in float"):
            mt.convert(model)
        assert kmm.explain(source, None, list(expected)).refused == {}


def test_what_turns_the_input_is_sent_to_the_data_pipeline(refused):
    image = keras.Input((8, 8, 3), name="image")
    text = refused(ended(image, conv(name="stem")(image[..., ::-1] - 0.5)))
    assert re.match(r"A slice behind input 'image' \('get_item\w*'\): not exported; it acts", text)
    assert "put it into the data pipeline, and into the app that runs the file, with" in text
    assert "all of preprocess_input" in text


@pytest.mark.parametrize(
    ("build", "first", "also"),
    [
        (lambda: half(), "- Layer 'half': expected the dtype policy 'float32'", "elu"),
        (
            lambda: numbered(),
            "- Input 'number': expected dtype 'float32', .* found 'int32'",
            "lookup",
        ),
        (lambda: any_size(), r"- Input 'image': expected fixed sizes, .* \(None, None, 3\)", "elu"),
    ],
)
def test_what_is_wrong_with_the_whole_model_hides_nothing_else(build, first, also, refused):
    lines = refused(build()).splitlines()
    assert re.match(first, lines[1])
    assert re.match(f"- Layer '{also}' ", lines[2])
    assert lines[3].startswith(
        f"float_layers=['{also}'] leaves it in float, once the others are chan"
    )
    assert len(lines) == 4


def test_a_subclassed_model_is_given_its_functional_form(refused):
    with pytest.raises(TypeError, match=r"'inner'.* give keras.Model\(x, model.call\(x\)\)"):
        kmm.explain(Subclassed(name="inner"))


def test_training_that_nothing_hears_is_no_obstacle():
    source = trained(keras.Sequential([keras.Input(SHAPE), conv()]))
    assert kmm.explain(source).refused == {}


def test_what_one_block_computes_shares_a_line(refused):
    text = refused(model_of(Composite("of_curves", name="block")))
    assert text.startswith("Layer 'block' (Composite) computes keras.ops.sin and keras.ops.exp: no")
    assert len(text.splitlines()) == 1


def test_layers_of_one_class_share_a_line_in_network_order(refused):
    middle = [
        layers.ELU(0.5, name="a"),
        layers.GroupNormalization(1, name="b"),
        layers.ELU(0.5, name="c"),
    ]
    text = refused(model_of(*middle, Slicing(name="block")))
    assert text.splitlines()[1:3] == [
        "- Layers 'a', 'c' (ELU): no exact integer form with alpha=0.5; use alpha=1, or LeakyReLU.",
        "- Layer 'b' (GroupNormalization): no exact integer form; use BatchNormalization.",
    ]
    assert text.splitlines()[-1].startswith("float_layers=['a', 'b', 'c', 'leaky', 'block'] leaves")
    many = model_of(*(layers.ELU(0.5, name=f"elu{number}") for number in range(9)))
    assert "float_layers=keras_metamix.explain(model).refused leaves them" in refused(many)
    model = kmm.MetaMixModel.from_float(many, float_layers=kmm.explain(many).refused)
    assert len(model.float_layers) == 9


def test_names_that_do_not_help_are_not_offered(refused):
    text = refused(quantized_by_keras())
    assert "before model.quantize()" in text
    assert "float_layers" not in text


# --- remedies -----------------------------------------------------------------------------------


REMEDIES = {
    "LSTM": lambda: sequence(layers.Conv1D(5, 3, padding="causal", dilation_rate=2)),
    "a norm of the features of each step": lambda: sequence(layers.BatchNormalization()),
    "slices": lambda: model_of(lambda x: layers.Concatenate()([conv(2)(x), conv(3)(x)])),
    "a dilated Conv2DTranspose": lambda: model_of(layers.UpSampling2D(), conv(4, dilation_rate=2)),
    "Conv2DTranspose of any kernel": lambda: model_of(
        layers.Conv2DTranspose(4, (2, 5), 3, "valid"), layers.Cropping2D(((0, 0), (1, 1)))
    ),
    "padded average pooling": lambda: model_of(
        layers.ZeroPadding2D(1), layers.AveragePooling2D(3, 1)
    ),
}


def written_otherwise(a, b):
    """What messages advise instead of operations that are refused, and these."""
    relu, minus = layers.ReLU(), layers.Rescaling(-1.0)
    row = layers.Cropping2D(((0, 1), (0, 0))), layers.Cropping2D(((7, 0), (0, 0)))
    return [
        (relu(b - 0.5) + 0.5, ops.maximum(b, 0.5)),
        (0.5 - layers.ReLU()(0.5 - a), ops.minimum(a, 0.5)),
        (layers.Add()([layers.ReLU()(a), layers.ReLU()(minus(a))]), ops.abs(a)),
        (layers.Multiply()([a, a]), a**2),
        (layers.Concatenate(axis=1)([row[1](a), row[0](a)]), ops.roll(a, 1, 1)),
        (a * ops.sigmoid(1.702 * a), ops.gelu(a)),
    ]  # fmt: skip


def test_what_is_written_otherwise_is_the_same_and_exact(calibrated):
    image = keras.Input(SHAPE, name="image")
    pairs = written_otherwise(conv(name="stem")(image), conv(name="other")(image))
    pictures = np.random.default_rng(0).normal(size=(4, *SHAPE)).astype(np.float32)
    found, real = (keras.Model(image, list(side))(pictures) for side in zip(*pairs, strict=True))
    for number, (ours, theirs) in enumerate(zip(found, real, strict=True)):
        close = 1e-6 if number < len(pairs) - 1 else 0.021  # the last: GELU
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=close)
    model, images = calibrated(ended(image, layers.Concatenate()([ours for ours, _ in pairs])))
    assert mt.parity(mt.convert(model), model, images).differing == 0


@pytest.mark.parametrize("name", REMEDIES)
def test_what_a_message_advises_is_exported_exactly(name, calibrated):
    model, images = calibrated(REMEDIES[name]())
    assert mt.parity(mt.convert(model), model, images).differing == 0


def test_weights_saved_with_lora_load_merged_into_the_model_without(tmp_path, calibrated):
    adapted = with_lora()
    adapted.get_layer("logits").lora_kernel_b.assign(np.full((2, 3), 0.1))
    images = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)
    adapted.save_weights(tmp_path / "adapted.weights.h5")
    plain = model_of()
    plain.load_weights(tmp_path / "adapted.weights.h5")
    np.testing.assert_allclose(plain(images), adapted(images), atol=1e-4)
    kmm.MetaMixModel.from_float(plain)


# --- what acts in training alone ----------------------------------------------------------------


@pytest.mark.parametrize("name", IN_TRAINING)
def test_what_acts_in_training_alone_keeps_acting_there(name):
    images = np.random.default_rng(0).normal(size=(8, *SHAPE)).astype(np.float32)
    source = augmented(IN_TRAINING[name])
    model = kmm.MetaMixModel.from_float(source)
    kept = [layer for layer in model.network.layers if type(layer) is type(IN_TRAINING[name])]
    assert len(kept) == 1
    (row,) = [row for row in kmm.explain(source).rows if row.name == kept[0].name]
    assert (row.outcome, row.note) == ("left out", "does nothing on the device")
    with quantization_mode(FLOAT):
        first, second = (np.asarray(model(images, training=True)) for _ in range(2))
        np.testing.assert_array_equal(model(images, training=False), source(images, training=False))
    assert np.any(first != second)


def test_a_drop_path_is_saved_and_exported(calibrated, tmp_path):
    model, images = calibrated(model_of(lambda x: layers.Add()([x, DropPath()(conv()(x))])))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    folded = kmm.fold_batch_norm(loaded)
    assert not any(isinstance(layer, DropPath) for layer in folded.layers)
    assert mt.parity(mt.convert(loaded), loaded, images).differing == 0


def test_activity_regularization_adds_to_the_loss():
    source = model_of(layers.ActivityRegularization(l1=0.1))
    model = kmm.MetaMixModel.from_float(source)
    images = np.ones((2, *SHAPE), np.float32)
    with quantization_mode(FLOAT):
        model(images), source(images)
    assert float(sum(model.losses)) == pytest.approx(float(sum(source.losses)))
    assert float(sum(source.losses)) > 0


def test_a_block_trains_as_it_did(calibrated):
    images = np.random.default_rng(0).normal(size=(8, *SHAPE)).astype(np.float32)
    for default in (None, False, True):
        model = kmm.MetaMixModel.from_float(model_of(block(default)))
        with quantization_mode(FLOAT):
            first, second = (np.asarray(model(images, training=True)) for _ in range(2))
        assert np.any(first != second)
        assert {"Dropout", "DropPath"} <= {type(layer).__name__ for layer in model.network.layers}

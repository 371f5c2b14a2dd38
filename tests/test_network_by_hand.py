"""A network built of quantized layers directly: the same file as `from_float` makes."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_metamix as kmm
import metamix_tflite as mt


def by_hand(bits=4):
    """Streams where no MAC layer reads a tensor directly: what is summed, and the logits."""

    def stream(x, name):
        return kmm.ActivationQuantizer(8, role="stream", sign_from_data=True, name=name)(x)

    def conv(filters, size, name, activation_bits=bits, **options):
        return kmm.QuantizedConv2D(
            filters, size, name=name, padding="same", use_bias=False, norm=True,
            activation_bits=activation_bits, weight_bits=activation_bits, **options,
        )  # fmt: skip

    image = keras.Input((8, 8, 3), name="image")
    x = conv(6, 3, "stem", 8, activation="relu")(image)
    x = stream(x, "stem_relu_stream")
    y = kmm.QuantizedDepthwiseConv2D(
        3, padding="same", use_bias=False, norm=True, activation="relu6",
        activation_bits=bits, weight_bits=bits, name="depthwise",
    )(x)  # fmt: skip
    y = stream(conv(6, 1, "project")(y), "project_bn_stream")
    x = stream(layers.Add(name="sum")([x, y]), "sum_stream")
    x = layers.Flatten(name="flat")(x)
    x = kmm.QuantizedDense(4, activation_bits=8, weight_bits=8, name="logits")(x)
    return keras.Model(image, stream(x, "logits_stream"), name="net")


def in_float():
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(6, 3, padding="same", use_bias=False, name="stem")(image)
    x = layers.ReLU(name="stem_relu")(layers.BatchNormalization(name="stem_bn")(x))
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(x)
    y = layers.ReLU(6.0, name="depthwise_relu")(layers.BatchNormalization(name="depthwise_bn")(y))
    y = layers.Conv2D(6, 1, padding="same", use_bias=False, name="project")(y)
    y = layers.BatchNormalization(name="project_bn")(y)
    x = layers.Flatten(name="flat")(layers.Add(name="sum")([x, y]))
    return keras.Model(image, layers.Dense(4, name="logits")(x), name="net")


def compiled(model):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
    return model


def test_it_gives_the_file_of_the_same_float_model(quarters):
    keras.utils.set_random_seed(0)
    source = in_float()
    compiled(source).fit(*quarters, epochs=2, verbose=0)
    made = kmm.QuantizedModel.from_float(source, 4, 4)
    hand = kmm.QuantizedModel(by_hand(), output_names=["logits"])
    for name in ("stem", "depthwise", "project", "logits"):
        ours, theirs = hand.network.get_layer(name), made.network.get_layer(name)
        ours.kernel.assign(theirs.kernel)
        if ours.norm:
            ours.norm.set_weights(theirs.norm.get_weights())
        else:
            ours.bias.assign(theirs.bias)
    for model in (hand, made):
        kmm.calibrate(model, quarters[0])
    assert hand.bit_assignment == made.bit_assignment
    np.testing.assert_array_equal(hand(quarters[0]), made(quarters[0]))
    assert mt.convert(hand) == mt.convert(made)


def test_it_trains_saves_and_is_exact(quarters, tmp_path):
    keras.utils.set_random_seed(0)
    model = compiled(kmm.QuantizedModel(by_hand()))
    model.fit(*quarters, epochs=8, verbose=0)
    assert model.evaluate(*quarters, verbose=0, return_dict=True)["accuracy"] > 0.8
    flat = mt.convert(model)
    mt.verify(flat, model.bit_assignment)
    report = mt.parity(flat, model, quarters[0])
    assert (report.differing, report.max_lsb) == (0, 0)
    model.save(tmp_path / "hand.keras")
    again = keras.models.load_model(tmp_path / "hand.keras")
    assert mt.convert(again) == flat
    assert again.compiled
    again.fit(*quarters, epochs=1, verbose=0)  # goes on


def test_a_stream_that_is_missing_is_named(quarters):
    image = keras.Input((8, 8, 3))
    x = kmm.QuantizedConv2D(4, 3, activation="relu", name="first")(image)
    y = kmm.QuantizedConv2D(4, 3, padding="same", name="second")(x)
    x = kmm.QuantizedDense(4, name="last")(layers.Flatten()(layers.Add(name="sum")([x, y])))
    model = kmm.QuantizedModel(keras.Model(image, x))
    kmm.calibrate(model, quarters[0])
    with pytest.raises(ValueError, match=r"Layer 'sum' reads .* role='stream'\) before it"):
        mt.convert(model)


def test_an_activation_without_an_integer_form_is_named(quarters):
    image = keras.Input((8, 8, 3))
    x = layers.Flatten()(kmm.QuantizedConv2D(4, 3, activation="gelu", name="first")(image))
    model = kmm.QuantizedModel(keras.Model(image, kmm.QuantizedDense(4, name="last")(x)))
    kmm.calibrate(model, quarters[0])
    with pytest.raises(ValueError, match=r"Layer 'first': expected activation=None, 'relu'"):
        mt.convert(model)

"""1-D layers in the flat model: the 2-D ones that compute the same, to the last bit."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_metamix as kmm
from keras_metamix.graph.expand import expand

STEPS, CHANNELS = 13, 6


def sequential(*made):
    return keras.Sequential([keras.Input((STEPS, CHANNELS), name="signal"), *made])


LAYERS = {
    **{
        f"{padding}, dilation {dilation}, stride {strides}, groups {groups}": layers.Conv1D(
            4, 3, strides, padding, dilation_rate=dilation, groups=groups
        )
        for padding in ("valid", "same", "causal")
        for dilation, strides, groups in ((1, 1, 1), (1, 2, 2), (3, 1, 1), (2, 1, 2))
    },
    "activation": layers.Conv1D(4, 3, activation="tanh", use_bias=False),
    "a layer as activation": layers.Conv1D(4, 3, activation=layers.PReLU(shared_axes=[1])),
    "depthwise": layers.DepthwiseConv1D(3, 2, "same", depth_multiplier=2, activation="relu"),
    "dilated depthwise": layers.DepthwiseConv1D(3, dilation_rate=3),
    "separable": layers.SeparableConv1D(4, 5, 3, "same", depth_multiplier=2, activation="relu"),
    "transposed": layers.Conv1DTranspose(4, 3, 2, "same"),
    "transposed, valid": layers.Conv1DTranspose(4, 2, 3, output_padding=0, activation="relu"),
    "max": layers.MaxPooling1D(3, 2, "same"),
    "average": layers.AveragePooling1D(3, 2, "same"),
    "mean": layers.GlobalAveragePooling1D(),
    "mean, one step": layers.GlobalAveragePooling1D(keepdims=True),
    "largest": layers.GlobalMaxPooling1D(keepdims=True),
    "padding": layers.ZeroPadding1D(2),
    "cropping": layers.Cropping1D((1, 3)),
    "repeated": layers.UpSampling1D(3),
}


@pytest.mark.parametrize("name", LAYERS)
def test_they_compute_the_same_to_the_last_bit(name):
    keras.utils.set_random_seed(0)
    layer = LAYERS[name]
    model = sequential(layer)
    model(np.zeros((1, STEPS, CHANNELS)))  # builds a layer that is an activation, too
    for weight in layer.weights:
        weight.assign(keras.random.normal(weight.shape))
    flat, _ = expand(model)
    assert not any(type(x).__name__.endswith("1D") for x in flat.layers)
    assert flat.output_shape == model.output_shape
    for count in (1, 32):
        x = np.random.default_rng(count).normal(size=(count, STEPS, CHANNELS)).astype(np.float32)
        np.testing.assert_array_equal(flat(x), model(x))


def test_one_reshape_at_either_end():
    conv = layers.Conv1D(6, 3, padding="same", name="conv")
    inputs = keras.Input((STEPS * 6,), name="signal")
    x = layers.Normalization(mean=range(6), variance=[2.0] * 6)(layers.Reshape((STEPS, 6))(inputs))
    x = layers.BatchNormalization(axis=2)(conv(ops.relu(conv(x))))
    x = layers.Concatenate(axis=1)([conv(x), ops.concatenate([x, x], axis=1), 1.0 - x])
    gate = layers.Dense(6, activation="sigmoid")(ops.mean(x, axis=1, keepdims=True))
    x = layers.Dropout(0.5)(x * gate)
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))
    flat, _ = expand(model)
    reshapes = [x.name for x in flat.layers if isinstance(x, (layers.Reshape, layers.Flatten))]
    assert len(reshapes) == 2
    x = np.random.default_rng(0).normal(size=(3, STEPS * 6)).astype(np.float32)
    np.testing.assert_array_equal(flat(x), model(x))


@pytest.mark.parametrize("axis", [-1, 2])
def test_state_and_training_of_layers_go_with_them(axis):
    conv = layers.Conv1D(
        4, 3, name="conv", kernel_regularizer="l2", kernel_constraint=keras.constraints.MaxNorm(1.0)
    )
    norm = layers.BatchNormalization(axis, name="norm", momentum=0.5)
    frozen = layers.SeparableConv1D(4, 3, name="frozen", trainable=False)
    model = sequential(conv, norm, layers.SpatialDropout1D(0.5, seed=3), frozen)
    norm.moving_mean.assign([1.0, 2.0, 3.0, 4.0])
    flat, _ = expand(model)
    assert [v.name for v in flat.trainable_variables] == ["kernel", "bias", "gamma", "beta"]
    np.testing.assert_array_equal(flat.get_layer("norm").moving_mean, norm.moving_mean)
    copy = flat.get_layer("conv")
    assert float(copy.losses[0]) == pytest.approx(float(conv.losses[0]), rel=1e-6)
    np.testing.assert_allclose(
        copy.kernel.constraint(copy.kernel)[0], conv.kernel.constraint(conv.kernel), rtol=1e-6
    )
    x = np.random.default_rng(0).normal(size=(4, STEPS, CHANNELS)).astype(np.float32)
    ours, theirs = flat(x, training=True), model(x, training=True)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)  # the dropout draws alike, too


def test_messages_speak_of_the_layers_that_the_user_has():
    model = sequential(layers.Conv1D(4, 3, name="time"))
    model.get_layer("time").bias.assign([0.0, np.nan, 0.0, 0.0])
    with pytest.raises(ValueError, match=r"Layer 'time' \(Conv1D\): .* found 1 of 4 in bias"):
        kmm.MetaMixModel.from_float(model)


def test_explain_shows_the_layers_that_the_user_has():
    x = inputs = keras.Input((STEPS, CHANNELS))  # without a name
    for layer in (
        layers.Conv1D(4, 3, padding="causal", activation="relu", name="time"),
        layers.SeparableConv1D(4, 3, name="apart"),
        layers.MaxPooling1D(2, name="pool"),
        layers.Dense(3, name="each"),
    ):
        x = layer(x)
    model = keras.Model(inputs, x)
    rows = [(row.name, row.layer_class, row.operator) for row in kmm.explain(model).rows]
    assert rows == [
        (model.layers[0].name, "InputLayer", "RESHAPE"),
        ("time_causal", "Conv1D", "PAD"),
        ("time", "Conv1D", "CONV_2D"),
        ("time_activation", "Activation", ""),
        ("apart_depthwise", "SeparableConv1D", "DEPTHWISE_CONV_2D"),
        ("apart_pointwise", "SeparableConv1D", "FULLY_CONNECTED"),
        ("pool", "MaxPooling1D", "MAX_POOL_2D"),
        ("each", "Dense", "FULLY_CONNECTED"),
        ("each", "Dense", "RESHAPE"),
    ]
    assert "keras_tensor" not in str(kmm.explain(model))


def test_layers_left_in_float_stay_as_they_are():
    source = sequential(
        layers.Conv1D(4, 3, name="first"), layers.Conv1D(4, 3, padding="causal", name="kept"),
        layers.Conv1D(4, 3, name="last"),
    )  # fmt: skip
    model = kmm.MetaMixModel.from_float(source, float_layers=["kept"])
    assert isinstance(model.network.get_layer("kept"), layers.Conv1D)
    x = np.random.default_rng(0).normal(size=(2, STEPS, CHANNELS)).astype(np.float32)
    with kmm.quantizers_off():
        np.testing.assert_array_equal(model(x), source(x))


def test_a_mask_is_refused():
    inputs, mask = keras.Input((STEPS, 3), name="x"), keras.Input((STEPS,), name="mask")
    mean = layers.GlobalAveragePooling1D(name="mean")(layers.Conv1D(3, 1)(inputs), mask=mask)
    model = keras.Model([inputs, mask], layers.Dense(2)(mean))
    with pytest.raises(ValueError, match="'mean' .*without a mask"):
        kmm.MetaMixModel.from_float(model)

"""QuantizedModel: training by `fit`, quantization after training by `calibrate`."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_metamix as kmm
import metamix_tflite as mt


@pytest.fixture
def source():
    """A float network of four classes."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 3))
    for filters in (8, 12):
        x = layers.Conv2D(filters, 3, use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Dense(4, name="head")(layers.Flatten()(x))
    return keras.Model(inputs, x, name="source")


def test_calibrate_alone_gives_an_exact_file(source, quarters):
    model = kmm.QuantizedModel.from_float(source, activation_bits=8, weight_bits=4)
    with pytest.raises(ValueError, match="no step sizes yet"):
        mt.convert(model)
    kmm.calibrate(model, quarters[0][:64])
    flat = mt.convert(model)
    mt.verify(flat, kmm.uniform_assignment(source, 8, 4))
    report = mt.parity(flat, model, quarters[0])
    assert (report.differing, report.max_lsb) == (0, 0)


def test_fit_trains_the_quantized_network(source, quarters):
    model = kmm.QuantizedModel.from_float(source, activation_bits=3, weight_bits=3, edge_bits=3)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
    kmm.calibrate(model, quarters[0][:32], rule="lsq")
    before = model.evaluate(*quarters, verbose=0, return_dict=True)
    model.fit(*quarters, epochs=6, verbose=0)
    after = model.evaluate(*quarters, verbose=0, return_dict=True)
    assert after["accuracy"] > 0.9 > 0.6 > before["accuracy"]
    assert mt.parity(mt.convert(model), model, quarters[0]).differing == 0


def test_a_loaded_model_computes_the_same(source, quarters, tmp_path):
    model = kmm.QuantizedModel.from_float(source, 4, 4)
    kmm.calibrate(model, quarters[0][:64])
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert type(again) is kmm.QuantizedModel
    assert again.calibrated
    assert again.bit_assignment == model.bit_assignment
    np.testing.assert_array_equal(again(quarters[0]), model(quarters[0]))
    assert mt.convert(again) == mt.convert(model)


def test_its_bits_are_fixed(source):
    model = kmm.QuantizedModel.from_float(source, 4, 4)
    remedy = r"no candidate, expected one of \[4\].*MetaMixModel.from_float\(model, SearchSpace\("
    with pytest.raises(ValueError, match=remedy):
        model.set_bits(kmm.uniform_assignment(source, 8, 4))


@pytest.mark.parametrize(
    "bits",
    [
        {"activation_bits": (8, 4)},
        {"weight_bits": [8, 4]},
        {"weight_bits": {"conv2d": 8, "conv2d_1": 4, "head": 8}},
        {"activation_bits": kmm.SearchSpace((8, 4))},
        {"activation_bits": kmm.BitAssignment({"head": 8}, {"head": 8})},
        {"weight_bits": "same"},
    ],
    ids=str,
)
def test_bits_of_each_layer_are_for_another_model(source, bits):
    (name,) = bits
    remedy = rf"{name}: expected one bit-width, .*MetaMixModel.from_float.*SearchSpace.*set_bits"
    with pytest.raises(TypeError, match=remedy):
        kmm.QuantizedModel.from_float(source, **bits)


def test_it_trains_as_metamix_trains_weights(source, quarters):
    """At the same bits and from the same steps one step of both moves the weights alike."""
    plain = kmm.QuantizedModel.from_float(source, 4, 4)
    space = kmm.SearchSpace((4,), 4)
    searched = kmm.MetaMixModel.from_float(source, space)
    for model in (plain, searched):
        kmm.calibrate(model, quarters[0][:64], rule="lsq")
        model.set_bits(kmm.uniform_assignment(source, 4, 4))
        model.compile(keras.optimizers.SGD(0.1), "mse")
        model.train_on_batch(quarters[0][:32], np.eye(4)[quarters[1][:32]])
    for one, other in zip(plain.network.weights, searched.network.weights, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=one.path)

"""8-bit layers read the grid of the tensor before them: no operator only changes a grid."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_metamix as kmm
import metamix_tflite as mt
from keras_metamix.layers.mode import QuantizationMode, quantization_mode
from metamix_tflite.read.files import read_file


def network():
    """Tensors with several readers, tables with grids of their own, a resize, moves."""
    keras.utils.set_random_seed(0)
    image = keras.Input((10, 10, 3), name="image")
    x = layers.Conv2D(6, 3, activation="relu", name="stem")(image)
    gate = layers.Conv2D(6, 1, activation="sigmoid", name="gate")(x)
    x = layers.Multiply(name="product")([x, gate])
    y = layers.Conv2D(6, 3, padding="same", name="one")(x)
    x = layers.Add(name="sum")([x, layers.Conv2D(6, 1, name="two")(layers.LeakyReLU()(y))])
    x = layers.UpSampling2D(interpolation="bilinear", name="larger")(x)
    x = layers.MaxPooling2D(name="pool")(layers.Conv2D(4, 3, activation="tanh", name="fine")(x))
    return keras.Model(image, layers.Dense(3, name="logits")(layers.Flatten(name="flat")(x)))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(32, 10, 10, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def trained(images):
    model = kmm.QuantizedModel.from_float(network(), activation_bits=8, weight_bits=4)
    kmm.calibrate(model, images)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss)
    model.fit(images, np.arange(32) % 3, batch_size=16, epochs=1, verbose=0)
    return model


def grid_changes(flat):
    """Operators that read one tensor and write the same values on another grid."""
    graph = read_file(flat)
    return [
        graph.tensors[o.outputs[0]].name
        for o in graph.operators
        if o.op in ("MUL", "QUANTIZE") and sum(graph.tensors[i].data is None for i in o.inputs) == 1
    ]


def test_no_operator_only_changes_a_grid_after_training(trained, images):
    flat = mt.convert(trained, "ethosu")
    assert grid_changes(flat) == []
    assert mt.parity(mt.convert(trained), trained, images).differing == 0
    # Where layers choose among bit-widths each has steps of its own, and the file such operators.
    searched = kmm.MetaMixModel.from_float(network(), kmm.SearchSpace((8, 4), 4))
    kmm.calibrate(searched, images)
    searched.set_bits(kmm.uniform_assignment(searched.network, 4, 4))
    assert {"gate_input", "two_input"} & {*grid_changes(mt.convert(searched, "ethosu"))}


def test_a_loaded_model_shares_them_too(trained, images, tmp_path):
    trained.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(*(m.predict(images, verbose=0) for m in (trained, loaded)))
    assert mt.convert(loaded) == mt.convert(trained)


def test_what_follows_has_the_step_of_its_leader(trained, images):
    reader = trained.network.get_layer("gate").input_quantizer
    stream = trained.network.get_layer(reader.follows)
    assert not reader.trainable_variables and stream.trainable_variables
    np.testing.assert_array_equal(reader.steps(), stream.steps())
    x = np.abs(images[..., :1]) @ np.ones((1, 6), np.float32)
    step = float(stream.step())
    np.testing.assert_array_equal(reader(x), x)  # what comes from the stream lies on the grid
    with quantization_mode(QuantizationMode(streams=False)):
        expected = np.round(np.clip(x / step, 0, 255)) * step
        np.testing.assert_allclose(reader(x), expected, rtol=1e-6)

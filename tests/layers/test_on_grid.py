"""What the device rounds inside an operator is trained so: network and folded network agree."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_metamix as kmm
from keras_metamix.layers.mode import FLOAT, quantization_mode
from keras_metamix.layers.on_grid import OnGrid, window_counts

SHAPE = (8, 7, 3)


def model_of(function):
    image = keras.Input(SHAPE, name="image")
    x = function(layers.Conv2D(6, 3, name="stem")(image))
    return keras.Model(image, layers.Conv2D(4, 3, name="last")(x), name="whole")


OPERATORS = {
    "padded average": lambda: layers.AveragePooling2D(3, 1, "same", name="on_grid"),
    "PReLU": lambda: layers.PReLU("random_normal", shared_axes=[1, 2], name="on_grid"),
    "LeakyReLU": lambda: layers.LeakyReLU(0.1, name="on_grid"),
}


@pytest.fixture(params=OPERATORS)
def trained(request):
    """(float model, wrapped and calibrated, images) with an operator in the middle."""
    keras.utils.set_random_seed(0)
    source = model_of(OPERATORS[request.param]())
    model = kmm.MetaMixModel.from_float(source, kmm.SearchSpace((8, 4), (8, 4)))
    images = np.random.default_rng(0).normal(0, 2, (16, *SHAPE)).astype(np.float32)
    kmm.calibrate(model, images)
    model.set_bits(kmm.uniform_assignment(model, 4, 4))
    return source, model, images


def test_the_network_computes_the_integers_of_the_folded_one(trained):
    _, model, images = trained
    found, folded = np.asarray(model(images)), np.asarray(kmm.fold_batch_norm(model)(images))
    np.testing.assert_allclose(found, folded, rtol=1e-5, atol=1e-6)


def test_without_quantizers_it_is_the_float_model(trained):
    source, model, images = trained
    with quantization_mode(FLOAT):
        np.testing.assert_array_equal(model(images), source(images))


def test_a_loaded_network_computes_the_same(trained, tmp_path):
    _, model, images = trained
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(images), model(images))


def test_gradients_pass_the_rounding(trained):
    import tensorflow as tf

    _, model, images = trained
    (layer,) = [x for x in model.network.layers if isinstance(x, OnGrid)]
    stem = model.network.get_layer("stem")
    with tf.GradientTape() as tape:
        loss = ops.mean(ops.square(model(images)))
    variables = [stem.kernel, *layer.trainable_variables]
    for gradient in tape.gradient(loss, [v.value for v in variables]):
        assert np.all(np.isfinite(gradient))
        assert np.any(np.asarray(gradient) != 0)


def test_a_step_of_each_layer_is_read_from_its_own_quantizer():
    leaky = layers.LeakyReLU(0.1, name="leaky")
    source = model_of(lambda x: leaky(layers.Conv2D(5, 3, name="middle")(leaky(x))))
    model = kmm.MetaMixModel.from_float(source)
    names = [x.input_quantizer for x in model.network.layers if isinstance(x, OnGrid)]
    assert names == ["stem_stream", "middle_stream"]


def test_the_grid_behind_a_clip_ends_at_its_maximum_or_below():
    source = model_of(layers.ReLU(1.5, name="clip"))
    model = kmm.MetaMixModel.from_float(source, kmm.SearchSpace((8, 4, 2), 8, edge_bits=4))
    quantizer = model.network.get_layer("last").input_quantizer
    images = np.random.default_rng(0).normal(0, 9, (8, *SHAPE)).astype(np.float32)
    for rule in ("lsq", "mse"):
        kmm.calibrate(model, images, rule=rule)
        ends = np.asarray(quantizer.steps()) * [2**b - 1 for b in quantizer.candidates]
        assert np.all(ends <= 1.5 * (1 + 1e-6))
    optimizer = keras.optimizers.SGD(1.0)
    optimizer.build([quantizer.log_step])
    for gradient in (-9.0, 0.5):  # up to the maximum, and down from there
        optimizer.apply([ops.full(quantizer.log_step.shape, gradient)], [quantizer.log_step])
        ends = np.asarray(quantizer.steps()) * [2**b - 1 for b in quantizer.candidates]
        expected = 1.5 * np.exp(min(-gradient, 0))
        np.testing.assert_allclose(ends, expected, rtol=1e-5)


@pytest.mark.parametrize("own", [None, keras.constraints.NonNeg()])
def test_slopes_of_a_prelu_end_at_1(own, tmp_path):
    """Above, `(1 - slope) * relu(x)` would be negative; the user's own constraint still holds."""
    start = keras.initializers.Constant(0.5)
    layer = layers.PReLU(start, alpha_constraint=own, shared_axes=[1, 2], name="on_grid")
    model = kmm.MetaMixModel.from_float(model_of(layer))
    model.save(tmp_path / "model.keras")
    for trained in (model, keras.models.load_model(tmp_path / "model.keras")):
        found = trained.network.get_layer("on_grid")
        assert type(found.alpha_constraint) is type(own)
        for gradient, expected in ((-9.0, 1.0), (0.25, 0.75), (9.0, -8.25 if own is None else 0)):
            optimizer = keras.optimizers.SGD(1.0)
            optimizer.build([found.alpha])
            optimizer.apply([ops.full(found.alpha.shape, gradient)], [found.alpha])
            np.testing.assert_allclose(found.alpha, np.full(found.alpha.shape, expected))


@pytest.mark.parametrize(
    ("size", "strides"), [((2, 3), (1, 2)), ((3, 3), (2, 2)), ((2, 2), (3, 1))]
)
@pytest.mark.parametrize("shape", [(1, 7, 8, 1), (1, 4, 5, 1)])
def test_counts_are_those_of_keras(size, strides, shape):
    # Sums of integers, which are none where a count is not the divisor.
    values = np.random.default_rng(0).integers(-99, 99, shape).astype(np.float32)
    pooled = layers.AveragePooling2D(size, strides, "same")(values)[0, :, :, 0]
    ones = layers.AveragePooling2D(size, strides, "same")(np.ones(shape, np.float32))
    counts = window_counts(shape, size, strides)
    assert counts.shape == pooled.shape
    assert np.all(np.asarray(ones) == 1)
    sums = np.asarray(pooled) * counts
    np.testing.assert_allclose(sums, np.rint(sums), atol=1e-3)
    assert set(counts.reshape(-1)) <= {a * b for a in range(1, 4) for b in range(1, 4)}


def test_a_maximum_is_of_unsigned_values():
    from keras_metamix.layers.activation_quantizer import ActivationQuantizer

    with pytest.raises(ValueError, match="'q'.*maximum is above 0.*found 2.0 and sign='signed'"):
        ActivationQuantizer(8, "signed", maximum=2.0, name="q")

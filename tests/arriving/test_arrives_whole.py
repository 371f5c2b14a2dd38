"""What a float model has, the wrapped one has: see `conftest.py` for the models."""

import keras
import numpy as np
import pytest
from keras import layers, tree

import keras_metamix as kmm


def in_float(model, x):
    with kmm.quantizers_off():
        return model(x)


def assert_equal(first, second):
    tree.assert_same_structure(first, second)
    for one, other in zip(tree.flatten(first), tree.flatten(second), strict=True):
        np.testing.assert_array_equal(one, other)


def values_of(variables):
    """Shape and values, whatever the order; the sets of a batch norm are one."""
    arrays = []
    for variable in variables:
        array = np.asarray(variable)
        if variable.name in ("gamma", "beta") and array.ndim == 2:
            np.testing.assert_array_equal(array, np.broadcast_to(array[:1], array.shape))
            array = array[0]
        arrays.append(array)
    return sorted((a.shape, a.tobytes()) for a in arrays)


def test_without_quantizers_it_is_the_float_model(float_model, model, x):
    expected = float_model(x)
    assert_equal(in_float(model, x), expected)
    kmm.calibrate(model, x)
    assert_equal(in_float(model, x), expected)


def test_names(float_model, model):
    assert model.input_names == [tensor.name for tensor in float_model.inputs]
    if not isinstance(float_model, keras.Sequential):
        assert model.output_names == float_model.output_names
    assert model.network.output_names == model.output_names
    macs = (layers.Conv2D, layers.DepthwiseConv2D, layers.Dense)
    kept = {layer.name for layer in float_model.layers if type(layer) in macs}
    assert kept <= set(model.bit_assignment.weight_bits)


def test_what_trains(float_model, model):
    trained = [v for v in model.trainable_variables if v.name != "log_step"]
    assert values_of(trained) == values_of(float_model.trainable_variables)


def test_losses(name, float_model, model, x):
    float_model(x)
    in_float(model, x)
    expected = np.sum(float_model.losses)
    assert (expected != 0) == name.startswith(("regularized", "activity"))
    assert np.sum(model.losses) == pytest.approx(expected, rel=1e-6)


def test_constraints(float_model, model):
    """What the optimizer applies behind each update, on values far from all."""

    def constrained(variables):
        found = [
            np.asarray(v.constraint(np.full(v.shape, -3.0, "float32")))
            for v in variables
            if v.constraint is not None
        ]
        return sorted((a.ravel()[0], a.shape[-1]) for a in found)

    assert constrained(model.network.variables) == constrained(float_model.variables)


def test_saved_and_loaded(name, float_model, model, x, tmp_path):
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    float_model.save(tmp_path / "float.keras")
    expected = keras.models.load_model(tmp_path / "float.keras")(x)  # Keras makes tuples lists
    assert_equal(in_float(loaded, x), expected)
    assert [tree.flatten(loaded(x))[0].numpy().tobytes()] == [
        tree.flatten(model(x))[0].numpy().tobytes()
    ]
    assert (loaded.input_names, loaded.output_names) == (model.input_names, model.output_names)
    assert values_of(loaded.weights) == values_of(model.weights)
    in_float(model, x), in_float(loaded, x)
    assert np.sum(loaded.losses) == pytest.approx(np.sum(model.losses))
    if name != "frozen bias":  # of a part of a layer Keras saves no trainable
        assert values_of(loaded.trainable_variables) == values_of(model.trainable_variables)


@keras.saving.register_keras_serializable("arriving")
class Lazy(layers.Layer):
    """Its own layer is built where it is first called, and it has two results."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.inner = layers.Dense(4)

    def call(self, x):
        return self.inner(x), 2 * x


def test_layers_of_the_users_own_in_float(inputs_of):
    x = keras.Input((8, 8, 2))
    y = layers.Conv2D(3, 3, activation="relu", name="conv")(x)
    first, second = Lazy(name="own")(layers.GlobalAveragePooling2D()(y))
    float_model = keras.Model(x, [layers.Dense(3)(first), second])
    images = inputs_of(float_model)
    model = kmm.QuantizedModel.from_float(float_model, float_layers=["own"])
    assert_equal(in_float(model, images), float_model(images))
    assert model.network.get_layer("own").inner.built


def test_a_tuple_of_inputs_is_no_pair_of_images_and_labels(inputs_of):
    first, second = keras.Input((8, 8, 2), name="first"), keras.Input((8, 8, 2), name="second")
    y = layers.Add()([layers.Conv2D(3, 3)(first), layers.Conv2D(3, 3)(second)])
    float_model = keras.Model((first, second), layers.Dense(3)(layers.Flatten()(y)))
    model = kmm.QuantizedModel.from_float(float_model)
    model.compile("sgd", "mse", run_eagerly=True)
    model.fit(inputs_of(float_model), np.zeros((4, 3), "float32"), verbose=0)
    assert model.calibrated

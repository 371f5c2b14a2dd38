"""The copy that trains in less time is the same network, and trains to the same weights."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_metamix.graph.fast_float import fast_float
from keras_metamix.layers.batch_norm import FoldableBatchNormalization


def _functional():
    x = inputs = keras.Input((24, 24, 3))  # so large that batch norm may be ours
    x = layers.Conv2D(6, 3, use_bias=False, name="conv")(x)
    x = layers.BatchNormalization(momentum=0.8, epsilon=1e-2, name="norm")(x)
    x = layers.BatchNormalization(axis=1, name="rows")(layers.ReLU()(x))
    x = layers.BatchNormalization(scale=False, name="pooled")(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, layers.Dense(3)(x), name="net")


def _sequential():
    inner = keras.Sequential([layers.Conv2D(6, 3), layers.BatchNormalization()])
    return keras.Sequential([layers.Input((24, 24, 3)), inner, layers.Flatten(), layers.Dense(3)])


@pytest.fixture(params=[_functional, _sequential], ids=["functional", "sequential"])
def model(request):
    keras.utils.set_random_seed(0)
    model = request.param()
    for variable in model.weights:
        variable.assign(np.random.default_rng(0).uniform(0.5, 1, variable.shape))
    return model


@pytest.fixture
def images():
    return np.random.default_rng(1).normal(size=(8, 24, 24, 3)).astype(np.float32)


def test_it_has_the_models_weights_and_outputs(model, images):
    model.layers[1].trainable = False
    fast = fast_float(model)
    for ours, theirs in zip(fast.weights, model.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert [v.trainable for v in fast.weights] == [v.trainable for v in model.weights]
    np.testing.assert_array_equal(fast(images), model(images))
    kinds = {type(part) for part in fast._flatten_layers()}
    assert FoldableBatchNormalization in kinds and layers.BatchNormalization not in kinds


@pytest.mark.usefixtures("library_has_batch_norm")
def test_it_trains_as_the_model_does(model, images):
    fast = fast_float(model)
    labels = np.arange(8) % 3
    for one in (model, fast):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        one.compile(keras.optimizers.SGD(1e-3), loss)
        one.fit(images, labels, batch_size=4, epochs=3, shuffle=False, verbose=0)
    for ours, theirs in zip(fast.weights, model.weights, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5, err_msg=ours.path)
    before = fast.predict(images, verbose=0)
    model.set_weights(fast.get_weights())
    np.testing.assert_allclose(model.predict(images, verbose=0), before, atol=1e-6)


def test_an_adapted_normalization_keeps_what_it_learned(images):
    learned = layers.Normalization()
    learned.adapt(images)
    model = keras.Sequential([layers.Input((24, 24, 3)), learned, layers.Conv2D(4, 3)])
    np.testing.assert_array_equal(fast_float(model)(images), model(images))


def test_a_model_without_a_graph_is_refused():
    class Own(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(TypeError, match="which has no graph to read"):
        fast_float(Own())

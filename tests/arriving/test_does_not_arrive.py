"""What would not arrive is refused by its name, with a remedy that works."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_metamix as kmm


def small(cls, **arguments):
    x = keras.Input((8, 8, 2))
    y = layers.Conv2D(3, 3, activation="relu")(x)
    return cls(x, layers.Dense(3)(layers.GlobalAveragePooling2D()(y)), **arguments)


class OwnLoss(keras.Model):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return 1000.0 + super().compute_loss(x, y, y_pred, sample_weight, training)


class OwnSteps(keras.Model):
    def train_step(self, data):
        return super().train_step(data)

    def predict_step(self, data):
        return 2 * super().predict_step(data)


class OwnFit(OwnLoss):
    def fit(self, *args, **kwargs):
        return super().fit(*args, **kwargs)

    @property
    def metrics(self):
        return []


class OwnCall(keras.Model):
    def call(self, inputs, training=None):
        return 2 * super().call(inputs, training=training)


class Described(keras.Model):
    """Nothing of this is called in training."""

    def summary(self, *args, **kwargs):
        return super().summary(*args, **kwargs)

    def helper(self):
        return 1


class OwnSequential(keras.Sequential):
    def test_step(self, data):
        return super().test_step(data)


def sequential(cls):
    return cls([keras.Input((8, 8, 2)), layers.Conv2D(3, 3), layers.Flatten(), layers.Dense(3)])


REFUSED = {
    "compute_loss": (small, OwnLoss, "has its own compute_loss, which"),
    "steps": (small, OwnSteps, "has its own predict_step, train_step, which"),
    "fit and metrics": (small, OwnFit, "has its own compute_loss, fit, metrics, which"),
    "of a Sequential": (sequential, OwnSequential, "has its own test_step, which"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize(
    "method", [kmm.QuantizedModel, kmm.MetaMixModel, kmm.BitMixerModel], ids=lambda m: m.__name__
)
def test_methods_of_the_users_own_are_refused(case, method):
    build, cls, message = REFUSED[case]
    model = build(cls)
    with pytest.raises(ValueError, match=message) as error:
        method.from_float(model)
    remedy = str(error.value).split("Give ")[1].split(", which")[0]
    method.from_float(eval(remedy, {"keras": keras, "model": model}))


def test_a_method_that_an_object_got_is_refused():
    model = small(keras.Model)
    model.train_step = lambda data: {}
    with pytest.raises(ValueError, match="has its own train_step"):
        kmm.QuantizedModel.from_float(model)


def test_a_loss_in_a_subclass_of_the_quantized_model_is_called():
    """The remedy of the message."""

    class Mine(kmm.MetaMixModel):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            return 1000.0 + super().compute_loss(x, y, y_pred, sample_weight, training)

    float_model = small(OwnLoss)
    model = Mine.from_float(keras.Model(float_model.input, float_model.output))
    x, y = np.ones((4, 8, 8, 2), "float32"), np.zeros((4, 3), "float32")
    for each in (float_model, model):
        each.compile("sgd", "mse", run_eagerly=True)
    with kmm.quantizers_off():
        assert model.evaluate(x, y, verbose=0) == float_model.evaluate(x, y, verbose=0)
    assert model.fit(x, y, verbose=0).history["loss"][0] >= 1000


def test_a_call_of_the_users_own_is_refused():
    with pytest.raises(TypeError, match=r"\(OwnCall\) has a call of its own"):
        kmm.MetaMixModel.from_float(small(OwnCall))


def test_what_only_describes_a_model_is_not():
    kmm.QuantizedModel.from_float(small(Described))


@keras.saving.register_keras_serializable("arriving")
class Forgetful(layers.Layer):
    """Keeps a number outside of its weights and its config."""

    factor = 1.0

    def call(self, x):
        return self.factor * x


def test_state_that_a_layer_does_not_tell_is_noticed():
    x = keras.Input((8, 8, 2))
    forgetful = Forgetful(name="forgetful")
    y = layers.Conv2D(3, 3, activation="relu", name="conv")(forgetful(x))
    model = keras.Model(x, layers.Dense(3)(layers.GlobalAveragePooling2D()(y)), name="mine")
    kmm.QuantizedModel.from_float(model, float_layers=["forgetful"])
    forgetful.factor = 1.5
    with pytest.raises(ValueError, match="'mine': without quantizers .* from layer 'forgetful' on"):
        kmm.QuantizedModel.from_float(model, float_layers=["forgetful"])


def test_a_sparse_input_is_refused():
    x = keras.Input((8,), sparse=True, name="words")
    model = keras.Model(x, layers.Dense(3)(layers.Dense(4)(x)))
    with pytest.raises(ValueError, match="Input 'words': expected a dense one"):
        kmm.QuantizedModel.from_float(model)

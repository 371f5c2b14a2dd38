"""What is taken from the inside of Keras is what it is taken for."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_metamix import keras_internals as internals


@pytest.fixture
def branched():
    image = keras.Input((4,), name="image")
    shared = layers.Dense(4, name="shared")
    total = layers.Add(name="total")([shared(image), shared(shared(image))])
    return keras.Model(image, total, name="branched")


def test_operation_of(branched):
    assert internals.operation_of(branched.output).name == "total"
    assert isinstance(internals.operation_of(branched.input), layers.InputLayer)


def test_calls_of(branched):
    calls = internals.calls_of(branched.get_layer("shared"))
    assert len(calls) == 3
    assert calls[0].input_tensors[0] is branched.input


def test_call_of(branched):
    calls = internals.calls_of(branched.get_layer("shared"))
    for call in calls:
        assert internals.call_of(call.outputs[0]) is call


def test_calls_in_their_order(branched):
    names = [call.operation.name for call in internals.calls_in(branched)]
    assert names == ["shared", "shared", "shared", "total"]


def test_has_graph(branched):
    assert internals.has_graph(branched)
    assert not internals.has_graph(layers.Dense(3))
    assert not internals.has_graph(keras.Sequential([layers.Dense(3)]))


def test_graph_of_sequential():
    open_size = keras.Sequential([layers.Dense(3)])
    assert internals.graph_of_sequential(open_size) is None
    known = keras.Sequential([keras.Input((2,)), layers.Dense(3, name="dense")])
    graph = internals.graph_of_sequential(known)
    assert [call.operation.name for call in internals.calls_in(graph)] == ["dense"]


def test_layers_inside():
    inner = keras.Sequential([keras.Input((2,)), layers.Dense(3, name="dense")], name="inner")
    outer = keras.Sequential([keras.Input((2,)), inner], name="outer")
    names = [layer.name for layer in internals.layers_inside(outer)]
    assert "dense" in names
    assert "inner" in names
    assert "outer" not in names


@pytest.mark.parametrize(
    ("layer", "expected"), [(layers.Dropout(0.1), True), (layers.Flatten(), False)]
)
def test_takes_training(layer, expected):
    assert internals.takes_training(layer) is expected


def test_pass_on_inputs():
    class Asks(keras.Model):
        def call(self, x):
            self.found = x.dtype
            return x

    model = Asks()
    internals.pass_on_inputs(model)
    model(np.zeros((1, 2), np.uint8))
    assert model.found == np.uint8


def test_loss_of_a_model_whose_compute_loss_takes_no_training():
    class Own(keras.Model):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
            return keras.ops.sum(y_pred) * 3.0

    model = Own()
    model.compile("sgd", "mse")
    assert float(internals.loss_of(model, None, None, np.ones((2, 2)), None)) == 12.0


def test_metrics_and_their_loss(branched):
    branched.compile("sgd", "mse", metrics=["mae"])
    assert internals.has_unbuilt_metrics(branched)
    batch = np.zeros((2, 4), np.float32)
    internals.build_from_batch(branched, (batch, batch))
    assert not internals.has_unbuilt_metrics(branched)
    internals.track_mean_loss(branched, 1.0, 1)
    internals.track_mean_loss(branched, 4.0, 2)
    assert float(branched.metrics[0].result()) == 3.0


def test_replace_build(branched):
    built = []

    def wrap(build):
        def noted(**arguments):
            built.append(sorted(arguments))
            build(**arguments)

        return noted

    branched.compile("sgd", "mse")
    internals.replace_build(branched, wrap)
    branched.fit(np.zeros((2, 4)), np.zeros((2, 4)), verbose=0)
    assert built


def test_optimizer(branched):
    optimizer = keras.optimizers.AdamW(use_ema=True)
    kernel, bias = branched.get_layer("shared").weights
    optimizer.exclude_from_weight_decay(var_list=[bias])
    optimizer.build([kernel, bias])
    assert internals.takes_weight_decay(optimizer, kernel)
    assert not internals.takes_weight_decay(optimizer, bias)
    pairs = list(internals.averages_of(optimizer))
    assert [variable.path for variable, _ in pairs] == [kernel.path, bias.path]
    assert all(average.shape == variable.shape for variable, average in pairs)

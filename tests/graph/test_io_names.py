"""Names of inputs and outputs, and of the calls of a layer: each is one thing's alone."""

import keras
import pytest
from keras import layers

from keras_metamix.graph.io_names import named_inputs, named_outputs
from keras_metamix.graph.topology import Topology


def dense(name=None, units=2):
    return layers.Dense(units, name=name)


def outputs(make):
    """A model of what `make` gives for one input."""
    x = keras.Input((4,), name="x")
    return keras.Model(x, make(x))


def shared_head(x):
    head = dense("head")
    return [head(x), head(dense("before", 4)(x)), dense("head_1")(x)]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda x: dense("one")(x), ["one"]),
        (lambda x: [dense("one")(x)], ["one"]),
        (lambda x: [dense("z")(x), dense("a")(x)], ["z", "a"]),
        (lambda x: (dense("z")(x), dense("a")(x)), ["z", "a"]),
        (lambda x: {"cls": dense("z")(x), "box": dense("a")(x)}, ["box", "cls"]),
        (lambda x: {"a/b c": dense("z")(x)}, ["a/b c"]),
        (lambda x: {"deep": {"cls": dense("z")(x)}, "list": [dense("a")(x)]}, ["cls", "a"]),
        (lambda x: [{"cls": dense("z")(x)}, {"cls": dense("a")(x)}], ["cls", "cls_1"]),
        (lambda x: [dense("o")(x)] * 2, ["o", "o_1"]),
        (lambda x: [x, dense("o")(x)], ["x", "o"]),
        (shared_head, ["head", "head_2", "head_1"]),
    ],
)
def test_outputs_have_the_names_that_the_user_gave(make, expected):
    model = outputs(make)
    found = named_outputs(model)
    assert [name for name, _ in found] == expected
    assert [id(tensor) for _, tensor in found] == [id(tensor) for tensor in model.outputs]


def test_inputs_have_the_names_that_the_user_gave():
    left, right = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    total = layers.Add()([left, right])
    for structure in ([right, left], {"left": left, "right": right}):
        model = keras.Model(structure, total)
        assert named_inputs(model) == [(tensor.name, tensor) for tensor in model.inputs]


def test_each_call_of_a_layer_has_a_name_of_its_own():
    x = image = keras.Input((4,), name="dense_1_1")
    first, second = layers.Dense(4, name="dense"), layers.Dense(4, name="dense_1")
    for _ in range(3):
        x = second(first(x))
    topology = Topology(keras.Model(image, x))
    assert [node.call_name for node in topology.nodes] == [
        "dense", "dense_1", "dense_1_2", "dense_1_1_1", "dense_2", "dense_1_2_1",
    ]  # fmt: skip
    assert topology.names.new("dense_2") == "dense_2_1"

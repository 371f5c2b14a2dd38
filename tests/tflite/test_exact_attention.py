"""Files of maxima, of GELU and of products of two activations are exact, and as `explain` says."""

import ctypes
import ctypes.util
import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_metamix as kmm
import metamix_tflite as mt
from keras_metamix.graph.operators.lookup import IntegerTable
from keras_metamix.layers.grid import Grid
from metamix_tflite.encoding import Op

BITS = (8, 4, 3, 2)
SPACES = {0: kmm.SearchSpace((8, 3), BITS), 1: kmm.SearchSpace((4, 2), BITS)}


def conv(filters=6, size=3, name=None, **arguments):
    return layers.Conv2D(filters, size, padding="same", name=name, **arguments)


def model_of(function, shape=(6, 5, 3)):
    """A stem, `function`, and logits."""
    image = keras.Input(shape, name="image")
    x = function(layers.BatchNormalization(name="bn")(conv(name="stem", use_bias=False)(image)))
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    return keras.Model(image, layers.Dense(5, name="logits")(x), name="whole")


# --- maxima and minima -------------------------------------------------------------------------


def maxout(x):
    """Of three tensors, of values >= 0 and any; then a ReLU, and a pool."""
    parts = [conv(name="a", activation="relu")(x), conv(name="b")(x), x]
    x = conv(name="c")(layers.Maximum(name="most")(parts))
    x = ops.relu(ops.maximum(x, conv(name="d")(x)))
    return conv(name="e")(layers.MaxPooling2D(2, name="pool")(x))


def least(x):
    """Of a tensor that others read, of ReLUs, and of a ReLU and a constant."""
    x = ops.minimum(x, conv(name="a")(x))
    x = layers.Minimum(name="least")([ops.relu(x), conv(name="b", activation="relu")(x)])
    return conv(name="c")(ops.minimum(1.5, layers.ReLU(name="relu")(conv(name="d")(x))))


def of_features():
    x = keras.Input((12,), name="features")
    a, b = layers.Dense(8, name="a")(x), layers.Dense(8, activation="silu", name="b")(x)
    x = layers.Maximum(name="most")([a, b, ops.minimum(a, b)])
    return keras.Model(x, layers.Dense(3, name="c")(x), name="whole")


# --- GELU --------------------------------------------------------------------------------------


def gelus(x):
    """Fused, raw, of a sum, of values >= 0."""
    x = conv(name="a", activation="gelu")(x)
    x = ops.gelu(layers.Add(name="sum")([x, conv(name="b")(x)]))
    return conv(name="c")(ops.gelu(layers.ReLU(name="relu")(x), approximate=False))


def gelus_side_by_side(x):
    parts = [layers.Activation("gelu")(conv(name=name)(x)) for name in ("a", "b")]
    return layers.Add(name="sum")(parts)


def gelu_at_the_end():
    x = keras.Input((7,), name="features")
    return keras.Model(x, ops.gelu(layers.Dense(5, name="a")(x)), name="whole")


# Models, and how many partitions XNNPACK runs of their files.
MODELS = {
    "maxout": (lambda: model_of(maxout), 1),
    "least": (lambda: model_of(least), 1),
    "of features": (of_features, 1),
    "gelus": (lambda: model_of(gelus), 4),
    "gelus side by side": (lambda: model_of(gelus_side_by_side), 2),
    "gelu at the end": (gelu_at_the_end, 2),
}


@pytest.mark.parametrize(
    ("name", "seed"), [(name, number % 2) for number, name in enumerate(MODELS)]
)
def test_files_are_exact_and_as_explained(name, seed, quantized):
    build, parts = MODELS[name]
    keras.utils.set_random_seed(seed)
    source = build()
    model, images = quantized(source, seed, images=16, space=SPACES[seed])
    with kmm.quantizers_off():
        np.testing.assert_array_equal(model(images), source(images))
    folded = kmm.fold_batch_norm(model)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        flat = mt.convert(folded)
    graph = mt.verify(flat, model.bit_assignment)
    runner = mt.Runner(flat, batch_size=16)
    (found,) = runner.invoke(images)
    np.testing.assert_array_equal(found, folded(images))
    assert (runner.partitions, runner.delegated) == (parts, parts == 1)
    told = [str(warning.message) for warning in said if "XNNPACK" in str(warning.message)]
    assert [f"between its {parts} partitions" in text for text in told] == [True] * (parts > 1)
    written = [(graph.tensors[o.outputs[0]].name, o.op) for o in graph.operators]
    for row in kmm.explain(source, SPACES[seed]).rows:
        operators = {op for name, op in written if f"{name}/".startswith(f"{row.name}/")}
        assert not operators or operators & {*row.operator.split(" or ")}, row
        if row.operator:
            assert row.xnnpack == (row.operator != "GELU")
            assert (f"runs {parts} partition" in row.note) == (row.operator == "GELU")


@pytest.mark.parametrize("function", ["gelu", "gelu_tanh"])
def test_a_table_of_gelu_is_litert_s(function, run_operator, int8):
    if ctypes.util.find_library("m") is None:
        pytest.skip("no C library of mathematics")
    rng = np.random.default_rng(0)
    codes = np.arange(-128, 128).astype(np.int8)[None]
    options = "GeluOptions", {"approximate": function == "gelu_tanh"}
    for _ in range(40):
        source, target = (float(np.float32(s)) for s in np.exp(rng.uniform(-5, 0, 2)))
        zeros = [int(z) for z in rng.integers(-128, 128, 2)]
        grids = [
            Grid(scale, zero, -128 - zero, 127 - zero, scale)
            for scale, zero in zip((source, target), zeros, strict=True)
        ]
        found, delegated = run_operator(
            Op.GELU,
            [int8((1, 256), source, zeros[0])],
            int8((1, 256), target, zeros[1])[:4],
            options,
            2,
            [codes],
        )
        assert not delegated
        np.testing.assert_array_equal(found[0], IntegerTable(function, *grids).table() + zeros[1])

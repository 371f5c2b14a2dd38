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
from metamix_tflite.file_graph import FileGraph, FileOperator, FileTensor
from metamix_tflite.operators import FAMILY
from metamix_tflite.operators.base import Call

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


def of_parts(x):
    """Of slices of one tensor, which lie on one grid."""
    x = layers.Maximum(name="most")(ops.split(conv(8, name="a")(x), 2, axis=-1))
    x = conv(name="b")(x)
    return conv(name="c")(ops.minimum(x[..., :3], x[..., 3:]))


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


# --- products of two activations ---------------------------------------------------------------


def tokens_of(function, shape=(6, 5)):
    """Features of tokens, `function`, and logits."""
    tokens = keras.Input(shape, name="tokens")
    x = function(layers.Dense(8, name="stem", activation="relu")(tokens))
    return keras.Model(
        tokens, layers.Dense(3, name="logits")(layers.Flatten(name="flat")(x)), name="whole"
    )


def dense(width, name, activation=None):
    return layers.Dense(width, activation, name=name)


def linear_attention(x):
    """Of ReLU features: sums of keys and values, and of what queries read of them."""
    queries, keys = dense(4, "queries", "relu")(x), dense(4, "keys", "relu")(x)
    sums = ops.einsum("btd,bte->bde", keys, dense(6, "values")(x))
    return dense(8, "projected")(ops.matmul(queries, sums))


def squared_relu_attention(x):
    queries, keys, values = (dense(4, name)(x) for name in ("queries", "keys", "values"))
    scores = ops.relu(ops.einsum("bqd,bkd->bqk", queries * 0.5, keys))
    scores = layers.Multiply(name="square")([scores, scores])
    return layers.Add(name="sum")([x, dense(8, "projected")(scores @ values)])


def every_product(x):
    """One tensor twice, factors that are shared, sigmoids, tanhs and clipped, and a swap."""
    queries = dense(4, "queries")(x)
    scores = ops.relu6(layers.Dot((2, 2), name="scores")([queries, queries]))
    mixed = layers.Dot((2, 1), name="mixed")([scores, x])
    gated = ops.matmul(ops.sigmoid(scores), layers.Activation("tanh", name="tanh")(mixed))
    return ops.einsum("bij,bki->bkj", gated, scores @ ops.sigmoid(scores))


def heads():
    """Two heads, without names of their axes; products that are concatenated."""
    tokens = keras.Input((6, 8), name="tokens")
    queries, keys, values = (
        layers.Reshape((2, 3, 8))(dense(8, name, activation)(tokens))
        for name, activation in (("queries", "relu6"), ("keys", None), ("values", "hard_sigmoid"))
    )
    scores = ops.relu(ops.einsum("...qd,...kd->...qk", queries, keys))
    x = layers.Concatenate(name="both")([scores, ops.relu(scores @ values)])
    return keras.Model(tokens, dense(3, "logits")(layers.Flatten(name="flat")(x)), name="whole")


def bilinear_pooling():
    image = keras.Input((5, 4, 3), name="image")
    parts = conv(name="a", activation="relu")(image), conv(5, name="b")(image)
    x, y = (layers.Reshape((20, part.shape[-1]))(part) for part in parts)
    x = layers.Flatten(name="flat")(layers.Dot(1, name="pool")([x, y]))
    return keras.Model(image, dense(3, "logits")(x), name="whole")


def products_of_the_input():
    tokens = keras.Input((6, 8), name="tokens")
    scores = ops.einsum("bqd,bkd->bqk", tokens, tokens)
    return keras.Model(tokens, dense(3, "logits")(scores @ tokens), name="whole")


def relu6_of_a_mean(x):
    """Of what has no fused activation: a ReLU6 takes an operator, and a clipped one 8 bits."""
    x = layers.GlobalAveragePooling2D(keepdims=True, name="first")(x)
    x = conv(name="a")(layers.ReLU(6.0, name="six")(x))
    return conv(name="b")(ops.relu(layers.GlobalAveragePooling2D(keepdims=True, name="second")(x)))


# Models, and how many partitions XNNPACK runs of their files.
MODELS = {
    "maxout": (lambda: model_of(maxout), 1),
    "least": (lambda: model_of(least), 1),
    "of features": (of_features, 1),
    "linear attention": (lambda: tokens_of(linear_attention), 1),
    "squared ReLU attention": (lambda: tokens_of(squared_relu_attention), 1),
    "every product": (lambda: tokens_of(every_product), 1),
    "heads": (heads, 1),
    "bilinear pooling": (bilinear_pooling, 1),
    "products of the input": (products_of_the_input, 1),
    "relu6 of a mean": (lambda: model_of(relu6_of_a_mean), 1),
    "gelus": (lambda: model_of(gelus), 4),
    "gelus side by side": (lambda: model_of(gelus_side_by_side), 2),
    "gelu at the end": (gelu_at_the_end, 2),
    "of parts": (lambda: model_of(of_parts), 1),
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


@pytest.mark.parametrize("transposed", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_a_product_is_computed_as_the_family_says(transposed, run_operator, int8):
    """With all codes in the second factor too, which kernels for weights never meet."""
    rng = np.random.default_rng(0)
    for trial in range(12):
        images, rows, depth, columns = (int(n) for n in rng.integers(1, 20, 4))
        shapes = (1, images, rows, depth), (1, images, depth, columns)
        codes = [rng.integers(-128, 128, shape).astype(np.int8) for shape in shapes]
        if trial % 3 == 0:
            codes = [rng.choice(np.array([-128, 127], np.int8), shape) for shape in shapes]
        zeros = int(rng.choice([-128, 0, 5])), 0, int(rng.choice([-128, 0, 9]))
        scales = np.exp(rng.uniform(-5, 0, 3)).astype(np.float32)
        sums = (codes[0].astype(np.int64) - zeros[0]) @ codes[1].astype(np.int64)
        scales[2] = scales[0] * scales[1] * np.abs(sums).max() / 150 + 1e-9
        codes = [
            np.ascontiguousarray(c.swapaxes(-1, -2)) if turned else c
            for c, turned in zip(codes, transposed, strict=True)
        ]
        tensors = [int8(c.shape, s, z) for c, s, z in zip(codes, scales, zeros, strict=False)]
        options = {"adjX": bool(transposed[0]), "adjY": bool(transposed[1])}
        found, delegated = run_operator(
            Op.BATCH_MATMUL,
            tensors,
            int8(sums.shape, scales[2], zeros[2])[:4],
            ("BatchMatMulOptions", options),
            3,
            codes,
        )
        assert delegated
        read = [
            FileTensor(str(n), shape, "INT8", np.array([s]), np.array([z]), 0, None)
            for n, (shape, s, z) in enumerate(
                zip((*(c.shape for c in codes), sums.shape), scales, zeros, strict=True)
            )
        ]
        operator = FileOperator("BATCH_MATMUL", (0, 1), (2,), "NONE", transposed)
        call = Call(FileGraph(read, [operator], (0, 1), (2,), (), (), {}), operator)
        levels = [c.astype(np.int64) - z for c, z in zip(codes, zeros, strict=False)]
        expected = FAMILY["BATCH_MATMUL"].computed(call, levels) + zeros[2]
        np.testing.assert_array_equal(found, expected)


def test_bops_count_products_of_two_activations(quantized):
    keras.utils.set_random_seed(0)
    source = tokens_of(linear_attention)
    model, _ = quantized(source, 0, images=8, space=SPACES[0])
    products = 64 * (4 * 6 * 6 + 6 * 6 * 4)  # 6 tokens, 4 features, 6 values
    bits = model.bit_assignment
    macs = {cost.name: cost.macs for cost in kmm.layer_costs(source)}
    expected = products + sum(
        n * bits.activation_bits[name] * bits.weight_bits[name] for name, n in macs.items()
    )
    flat = mt.convert(model)
    assert kmm.bops(source, bits) == kmm.bops(model, bits) == expected
    assert mt.verify(flat).metadata["bops"] == expected
    assert kmm.Bops(1e9).priced(model).total(bits) == expected
    assert f"products of two activations: {products:,} BOPs" in kmm.summary(model)
    rows = kmm.explain(source, SPACES[0]).rows
    assert sum(row.macs for row in rows) == sum(macs.values()) + products // 64
    assert sum(row.bops_share for row in rows) == pytest.approx(1)


@pytest.mark.parametrize(
    ("product", "name"),
    [
        (lambda x: ops.einsum("btd,btd->btd", x, x), "einsum"),
        (lambda x: layers.Dot(2, normalize=True, name="dot")([x, x]), "dot"),
        (lambda x: ops.matmul(x, np.ones((8, 4), np.float32)), "matmul"),
    ],
)
def test_other_products_are_refused_with_a_remedy(product, name):
    refused = kmm.explain(tokens_of(product)).refused
    (said,) = [text for key, text in refused.items() if key.startswith(name)]
    assert r"Dot(axes=(2, 1))" in said
    assert "Dense" in said


@pytest.mark.slow
def test_attention_trains_in_all_phases():
    keras.utils.set_random_seed(0)
    source = tokens_of(squared_relu_attention)
    rng = np.random.default_rng(0)
    tokens, labels = rng.normal(size=(32, 6, 5)).astype(np.float32), rng.integers(0, 3, 32)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model = kmm.MetaMixModel.from_float(source, kmm.SearchSpace((8, 4), 4))
    model.compile("adam", loss)
    callback = kmm.MetaMixCallback(kmm.Bops(share=0.5), verbose=0)
    model.fit(tokens, labels, batch_size=16, epochs=3, verbose=0, callbacks=[callback])
    assert model.phase == "weight_training"
    assert mt.parity(mt.convert(model), model, tokens).differing == 0
    mixer = kmm.BitMixerModel.from_float(source, kmm.SearchSpace((8, 4), "same"))
    mixer.compile("adam", loss)
    mixer.fit(tokens, labels, batch_size=16, epochs=1, verbose=0)


def test_a_second_factor_of_another_zero_point_is_named():
    tokens = keras.Input((6, 5), name="tokens")
    x = kmm.QuantizedDense(4, activation="relu", activation_bits=8, weight_bits=8, name="keys")(
        tokens
    )
    x = kmm.ActivationQuantizer(8, "unsigned", role="stream", name="keys_stream")(x)
    x = kmm.ActivationQuantizer(8, role="stream", name="scores")(ops.einsum("bqd,bkd->bqk", x, x))
    x = kmm.QuantizedDense(3, activation_bits=8, weight_bits=8, name="logits")(x)
    x = kmm.ActivationQuantizer(8, role="stream", name="logits_stream")(x)
    model = kmm.QuantizedModel(keras.Model(tokens, x))
    kmm.calibrate(model, np.random.default_rng(0).normal(size=(8, 6, 5)).astype(np.float32))
    with pytest.raises(ValueError, match=r"'einsum.*before its second factor.*zero-point -128"):
        kmm.fold_batch_norm(model)

"""Operators that move values and reduce axes, alone and in networks as their users write them.

Each network computes as its float model while its quantizers are off, and its file at random bits
is exact, within one XNNPACK partition, with the names of the model's outputs.
"""

import itertools

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_metamix as kmm
import metamix_tflite as mt
from metamix_tflite.devices.edgetpu_operators import refusal
from metamix_tflite.encoding import Op, TensorType
from metamix_tflite.file_graph import FileGraph, FileOperator, FileTensor
from metamix_tflite.operators import FAMILY
from metamix_tflite.operators.base import Call
from metamix_tflite.read.files import read_file

SPACE = kmm.SearchSpace((8, 3), (8, 4, 2))


def conv(x, filters, size=3, strides=1, act="relu", **arguments):
    """A convolution without a bias, its batch norm, and an activation."""
    x = layers.Conv2D(filters, size, strides, "same", use_bias=False, **arguments)(x)
    x = layers.BatchNormalization()(x)
    return layers.Activation(act)(x) if act else x


def depthwise(x, strides=1, act=None):
    x = layers.DepthwiseConv2D(3, strides, "same", use_bias=False)(x)
    x = layers.BatchNormalization()(x)
    return layers.Activation(act)(x) if act else x


def classified(inputs, x):
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(5, activation="softmax", name="classes")(x))


# --- networks ------------------------------------------------------------------------------------


def shuffle_by_layers(x, groups):
    height, width, channels = x.shape[1:]
    x = layers.Reshape((height, width, groups, channels // groups))(x)
    return layers.Reshape((height, width, channels))(layers.Permute((1, 2, 4, 3))(x))


def shuffle_by_ops(x, groups=2):
    _, height, width, channels = x.shape
    x = ops.reshape(x, (-1, height, width, groups, channels // groups))
    x = ops.transpose(x, (0, 1, 2, 4, 3))
    return ops.reshape(x, (-1, height, width, channels))


def shufflenet_v1():
    """Zhang et al.: grouped 1x1 convolutions, a shuffle between them, pooled shortcuts."""
    inputs = keras.Input((12, 12, 3), name="image")
    x = layers.MaxPooling2D(3, 2, "same")(conv(inputs, 6))
    for strides in (2, 1):
        y = shuffle_by_layers(conv(x, 6, 1, groups=3), 3)
        y = conv(depthwise(y, strides), 6, 1, act=None, groups=3)
        if strides == 2:
            short = layers.AveragePooling2D(3, 2, "same")(x)
            x = layers.ReLU()(layers.Concatenate()([short, y]))
        else:
            y = layers.Concatenate()([y, conv(y, 6, 1, act=None)])
            x = layers.ReLU()(layers.Add()([x, y]))
    return classified(inputs, x)


def shufflenet_v2():
    """Ma et al.: half of the channels pass, then both halves are shuffled."""
    inputs = keras.Input((12, 12, 3), name="image")
    x = layers.MaxPooling2D(3, 2, "same")(conv(inputs, 8))
    for strides in (2, 1, 1):
        if strides == 2:
            left, right = conv(depthwise(x, 2), 6, 1), x
        else:
            left, right = ops.split(x, 2, axis=-1)
        right = conv(depthwise(conv(right, 6, 1), strides), 6, 1)
        x = shuffle_by_ops(layers.Concatenate()([left, right]))
    return classified(inputs, conv(x, 8, 1))


def yolo_leaky():
    """YOLOv4-tiny: the second half of the channels through two convolutions, SPP, two heads."""
    inputs = keras.Input((16, 16, 3), name="image")
    x = conv(inputs, 8, 3, 2, "leaky_relu")
    route = conv(x, 8, act="leaky_relu")
    y = first = conv(route[..., 4:], 4, act="leaky_relu")
    y = ops.concatenate([conv(y, 4, act="leaky_relu"), first], axis=-1)
    y = conv(y, 8, 1, act="leaky_relu")
    fine = layers.Concatenate()([route, y])
    x = conv(layers.MaxPooling2D()(fine), 8, 1, act="leaky_relu")
    x = layers.Concatenate()([layers.MaxPooling2D(n, 1, "same")(x) for n in (3, 5)] + [x])
    x = conv(x, 6, 1, act="leaky_relu")
    up = layers.UpSampling2D()(conv(x, 4, 1, act="leaky_relu"))
    found = {}
    for name, y in (("large", x), ("small", layers.Concatenate()([up, fine]))):
        y = layers.Conv2D(2 * 7, 1)(y)
        y = layers.Reshape((*y.shape[1:3], 2, 7))(y)
        found[f"{name}_boxes"] = y[..., 2:4]
        found[f"{name}_scores"] = ops.sigmoid(y[..., 4:])
    return keras.Model(inputs, found)


def yolo_silu():
    """YOLOv5: focus of the image, cross-stage parts, SPPF, anchors in one tensor."""
    inputs = keras.Input((16, 16, 3), name="image")
    corners = [inputs[:, a::2, b::2, :] for b in (0, 1) for a in (0, 1)]
    x = conv(layers.Concatenate()(corners), 8, act="silu")
    x = conv(x, 8, 3, 2, "silu")
    left, right = ops.split(conv(x, 8, 1, act="silu"), [4], axis=-1)
    y = conv(conv(right, 4, 1, act="silu"), 4, act="silu")
    x = conv(layers.Concatenate()([left, right, layers.Add()([right, y])]), 8, 1, act="silu")
    parts = [conv(x, 4, 1, act="silu")]
    for _ in range(2):
        parts.append(layers.MaxPooling2D(3, 1, "same")(parts[-1]))
    x = layers.Conv2D(2 * 6, 1)(layers.Concatenate()(parts))
    x = layers.Reshape((-1, 2, 6))(x)
    return keras.Model(inputs, ops.sigmoid(ops.transpose(x, (0, 2, 1, 3))))


def cbam():
    """Woo et al.: gates of channels by a shared MLP of mean and maximum, then gates of pixels."""
    inputs = keras.Input((10, 10, 3), name="image")
    x = conv(inputs, 6, strides=2)
    hidden, out = layers.Dense(3, activation="relu"), layers.Dense(6)
    mean, most = layers.GlobalAveragePooling2D()(x), layers.GlobalMaxPooling2D()(x)
    gate = layers.Add()([out(hidden(mean)), out(hidden(most))])
    x = layers.Multiply()([x, layers.Reshape((1, 1, 6))(layers.Activation("sigmoid")(gate))])
    mean, most = ops.mean(x, axis=-1, keepdims=True), ops.max(x, axis=-1, keepdims=True)
    both = layers.Concatenate()([mean, most])
    x = layers.Multiply()([x, layers.Conv2D(1, 7, padding="same", activation="sigmoid")(both)])
    return classified(inputs, conv(x, 8))


def mobile_face_net():
    """Chen et al.: PReLU, a depthwise convolution over all pixels, an embedding of length 1."""

    def prelu(x):
        return layers.PReLU(keras.initializers.Constant(0.25), shared_axes=[1, 2])(x)

    inputs = keras.Input((12, 12, 3), name="face")
    x = prelu(conv(inputs, 6, strides=2, act=None))
    for strides in (2, 1):
        y = prelu(depthwise(prelu(conv(x, 8, 1, act=None)), strides))
        y = conv(y, 6, 1, act=None)
        x = layers.Add()([x, y]) if strides == 1 else y
    x = layers.DepthwiseConv2D(x.shape[1], use_bias=False)(prelu(conv(x, 8, 1, act=None)))
    x = layers.Conv2D(6, 1, use_bias=False)(layers.BatchNormalization()(x))
    x = layers.BatchNormalization()(layers.Flatten()(x))
    return keras.Model(inputs, layers.UnitNormalization(name="embedding")(x))


def ssd():
    """Liu et al.: classes and boxes of two scales, joined over anchors."""
    x = inputs = keras.Input((16, 16, 3), name="image")
    scales = []
    for filters in (6, 8):
        x = conv(x, filters, strides=2, act="relu6")
        scales.append(x)
    boxes, classes = [], []
    for scale in scales:
        boxes.append(layers.Reshape((-1, 4))(layers.Conv2D(2 * 4, 3, padding="same")(scale)))
        classes.append(layers.Reshape((-1, 3))(layers.Conv2D(2 * 3, 3, padding="same")(scale)))
    joined = layers.Concatenate(axis=1, name="boxes")(boxes)
    scores = layers.Softmax(name="scores")(layers.Concatenate(axis=1)(classes))
    return keras.Model(inputs, {"boxes": joined, "scores": scores})


def fomo():
    """Edge Impulse: centroids, a softmax in each cell of a map of an eighth."""
    inputs = keras.Input((16, 16, 1), name="image")
    x = conv(inputs, 6, strides=2, act="relu6")
    for strides in (2, 1, 2):
        y = depthwise(conv(x, 12, 1, act="relu6"), strides, "relu6")
        y = conv(y, 6, 1, act=None)
        x = layers.Add()([x, y]) if strides == 1 else y
    x = layers.Conv2D(8, 1, activation="relu", name="head")(x)
    return keras.Model(inputs, layers.Softmax(name="cells")(layers.Conv2D(3, 1, name="logits")(x)))


def mixer():
    """Tolstikhin et al. without norms: dense layers over patches, then over channels."""
    inputs = keras.Input((12, 12, 3), name="image")
    x = layers.Reshape((9, 8))(layers.Conv2D(8, 4, strides=4)(inputs))
    for _ in range(2):
        y = layers.Dense(6, activation="silu")(layers.Permute((2, 1))(x))
        x = layers.Add()([x, ops.swapaxes(layers.Dense(9)(y), 1, 2)])
        x = layers.Add()([x, layers.Dense(8)(layers.Dense(12, activation="silu")(x))])
    return keras.Model(inputs, layers.Dense(5, name="logits")(ops.mean(x, axis=1)))


def preprocessed():
    """Keras' own preprocessing: channels the other way round, less a mean."""
    inputs = keras.Input((8, 8, 3), name="image")
    x = keras.applications.vgg16.preprocess_input(inputs)
    return classified(inputs, conv(x, 6))


NETWORKS = [
    shufflenet_v1, shufflenet_v2, yolo_leaky, yolo_silu, cbam, mobile_face_net, ssd, fomo, mixer,
    preprocessed,
]  # fmt: skip


# --- operators -----------------------------------------------------------------------------------


def of_stem(*functions, shape=(9, 8, 3)):
    """A convolution, functions, and another one, or a dense layer where images are no more."""

    def build():
        image = keras.Input(shape, name="image")
        x = layers.Conv2D(6, 3, padding="same", name="stem")(image)
        for function in functions:
            x = function(x)
        last = layers.Conv2D(4, 1) if len(x.shape) == 4 else layers.Dense(4)
        return keras.Model(image, last(x))

    return build


def middle(x):
    return layers.Conv2D(6, 3, padding="same", activation="silu")(x)


def unlike(x):
    """Parts of one tensor with different readers, the last of them alone behind a slice."""
    first, second, third = ops.split(x, 3, axis=-1)
    second = layers.Conv2D(3, 1, activation="relu")(second)
    third = layers.LeakyReLU(0.1)(layers.DepthwiseConv2D(3, padding="same")(third))
    return layers.Concatenate()([ops.relu(first), second, third])


def turned_parts(x):
    """Slices of one tensor, joined again on its own grid, behind a ReLU of their own."""
    return layers.ReLU()(ops.concatenate([x[:, 4:], x[:, :4]], 1))


MODELS = {
    "orders of axes": of_stem(
        layers.Permute((3, 1, 2)), lambda x: ops.swapaxes(x, 1, -1), middle,
        lambda x: ops.moveaxis(ops.reshape(x, (-1, 3, 3, 4, 2, 6)), (1, 2), (-1, -2)),
        lambda x: ops.reshape(ops.transpose(x, (0, 5, 1, 2, 3, 4)), (-1, 9, 8, 6))),
    "parts": of_stem(lambda x: x[:, 1:7, :-2], unlike, lambda x: x[:, :, 2:3, 1:]),
    "places": of_stem(
        lambda x: ops.stack(ops.unstack(x, axis=1)[2:5], axis=-2),
        lambda x: x[:, -1], lambda x: ops.take(x, range(1, 3), axis=1)),
    "one pixel": of_stem(lambda x: x[:, 3, ..., None], lambda x: ops.take(x, 2, 2)),
    "strides of images": of_stem(
        lambda x: x[:, ::2, 1::2], middle, lambda x: x[:, 1::3, 1:3], middle,
        lambda x: ops.concatenate([x[..., ::2], x[:, :, :, 1::2]], -1)),
    "strides of sequences": of_stem(
        layers.Reshape((12, 36)), lambda x: x[:, 1::3], lambda x: ops.take(x, [1, 3, 5], -1)),
    "turned parts": of_stem(turned_parts, lambda x: x[:, 2:-1]),
    "copies": of_stem(
        lambda x: ops.repeat(x, 2, axis=2), middle, lambda x: ops.tile(x, (1, 2, 1, 3))),
    "axes of 1": of_stem(
        lambda x: ops.squeeze(ops.expand_dims(ops.max(x, 1, keepdims=True), -1), 1),
        lambda x: ops.expand_dims(x, 2)),
    "sum and mean": of_stem(
        lambda x: layers.ReLU()(ops.sum(x, 2, keepdims=True)) * ops.mean(x, -1, keepdims=True),
        middle, lambda x: ops.sum(x, (1, 3))),
    "mean of a swish": of_stem(middle, lambda x: ops.mean(x, [1]), lambda x: ops.mean(x, 2)),
    "largest and smallest": of_stem(
        lambda x: ops.max(x, -2, keepdims=True) + ops.amin(x, (1, 2), keepdims=True), middle,
        lambda x: ops.concatenate([ops.min(x, 1), ops.amax(x, 1)], -1)),
    "mean of all": of_stem(layers.Dense(4), lambda x: ops.mean(x, (1, 2, 3), keepdims=True)),
}  # fmt: skip


WITH_OTHERS = (shufflenet_v1, mobile_face_net, ssd, fomo)  # what the quick ones have, too
BUILDS = [
    *(
        pytest.param(build, id=build.__name__, marks=[pytest.mark.long] * (build in WITH_OTHERS))
        for build in NETWORKS
    ),
    *(pytest.param(build, id=name) for name, build in MODELS.items()),
]


@pytest.mark.parametrize("build", BUILDS)
def test_moves_and_reductions_are_exact(build, quantized, differing):
    keras.utils.set_random_seed(1)
    source = build()
    explained = kmm.explain(source)
    assert explained.not_exported == {}
    model, images = quantized(source, 1, images=8, space=SPACE)
    assert model.output_names == source.output_names
    with kmm.quantizers_off():
        pairs = (keras.tree.flatten(m(images, training=False)) for m in (model, source))
        for found, expected in zip(*pairs, strict=True):
            np.testing.assert_array_equal(found, expected)
    folded = kmm.fold_batch_norm(model)
    flat = mt.convert(folded)
    graph = mt.verify(flat, model.bit_assignment)
    assert differing(flat, folded, images) == (0, True)
    written = {operator.op for operator in graph.operators}
    assert {row.operator for row in explained.rows if row.outcome == "integer"} <= written
    expected = source(images[:1])
    if isinstance(expected, dict):
        assert list(mt.Runner(flat).predict(images[:1])) == list(expected)


QUICK = [(shufflenet_v2, "MetaMix"), (cbam, "Bit-Mixer")]
TRAINED = [
    pytest.param(*case, marks=[pytest.mark.long] * (case not in QUICK))
    for case in itertools.product(NETWORKS, ("MetaMix", "Bit-Mixer"))
]


@pytest.mark.slow
@pytest.mark.parametrize(("build", "method"), TRAINED)
def test_networks_train_in_all_phases_and_are_saved(build, method, trains_and_is_saved):
    trains_and_is_saved(build, method, SPACE)


# --- what the files hold -------------------------------------------------------------------------


def operators_of(build, quantized):
    keras.utils.set_random_seed(1)
    model, _ = quantized(build(), 1, images=8, space=SPACE)
    graph = read_file(mt.convert(model))
    return graph, [operator.op for operator in graph.operators]


def test_parts_of_one_tensor_are_joined_without_another_rounding(quantized):
    """Focus: one SPACE_TO_DEPTH for all four slices, no requantization before the convolution."""
    _, found = operators_of(yolo_silu, quantized)
    focus = ["QUANTIZE", "SPACE_TO_DEPTH", *["STRIDED_SLICE"] * 4, "CONCATENATION", "CONV_2D"]
    assert found[: len(focus)] == focus


def test_the_edge_tpu_takes_three_dimensions(quantized):
    graph, _ = operators_of(of_stem(shuffle_by_ops, shape=(4, 4, 3)), quantized)
    (turned,) = (operator for operator in graph.operators if operator.op == "TRANSPOSE")
    assert refusal(graph, turned) == "has more than three dimensions above 1"


AXES = ((1,), (2,), (1, 2), (3,), (1, 3), (2, 3), (1, 2, 3))
CASES = {
    "TRANSPOSE": ((0, 2, 1), (0, 3, 1, 2), (0, 1, 2, 4, 3), (0, 5, 3, 1, 2, 4)),
    **dict.fromkeys(("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN"), AXES),
}


@pytest.mark.parametrize("op", CASES)
def test_litert_computes_what_the_family_says(op, run_operator, int8):
    rng = np.random.default_rng(0)
    options = "TransposeOptions" if op == "TRANSPOSE" else "ReducerOptions"
    for number, constant in enumerate(CASES[op]):
        rank = len(constant) if op == "TRANSPOSE" else max(4 - number % 2, *constant) + 1
        keep = bool(number % 2)
        for _ in range(4):
            codes = rng.integers(-128, 128, (1, *rng.integers(1, 9, rank - 1))).astype(np.int8)
            grid = np.float32(np.exp(rng.uniform(-4, 0))), int(rng.integers(-128, 128))
            result = grid
            if op in ("MEAN", "SUM"):
                ratio = np.exp(rng.uniform(-1, 2)) * (9 if op == "SUM" else 1)
                result = np.float32(grid[0] * ratio), int(rng.integers(-128, 128))
            shape = codes.transpose(constant).shape if op == "TRANSPOSE" else tuple(
                1 if axis in constant else size
                for axis, size in enumerate(codes.shape) if keep or axis not in constant
            )  # fmt: skip
            axes = np.array(constant, np.int32)
            found, delegated = run_operator(
                getattr(Op, op),
                [int8(codes.shape, *grid), (axes.shape, TensorType.INT32, None, 0, axes)],
                int8(shape, *result)[:4],
                (options, {} if op == "TRANSPOSE" else {"keepDims": keep}),
                2,
                [codes],
            )
            tensors = [
                FileTensor(name, shape, "INT8", np.array([s], "f"), np.array([z]), 0, None)
                for name, shape, (s, z) in (("x", codes.shape, grid), ("y", shape, result))
            ]
            operator = FileOperator(op, (0,), (1,), "NONE")
            call = Call(FileGraph(tensors, [operator], (0,), (1,), (), (), {}), operator)
            levels = [codes.astype(np.int64) - grid[1], axes]
            assert delegated
            np.testing.assert_array_equal(found, FAMILY[op].computed(call, levels) + result[1])


# --- what has no form ----------------------------------------------------------------------------

REFUSED = {
    "a slice of images": (lambda x: x[:1, :], r"the axis of the batch, .* as in x\[:, 0\]"),
    "a new first axis": (lambda x: x[None, ...], "the axis of the batch"),
    "images transposed": (lambda x: ops.transpose(x, (1, 0, 2, 3)), "the axis of the batch"),
    "images stacked": (lambda x: ops.stack([x, x]), "the axis of the batch"),
    "images split": (lambda x: ops.split(x, [2])[0], "the axis of the batch"),
    "copies of images": (lambda x: ops.tile(x, (2, 1, 1, 1)), "the axis of the batch"),
    "a stride that leaves a rest": (
        lambda x: layers.Reshape((9, 48))(x)[:, ::2], "stride of 2 divides, found 9; .* Reshape"),
    "places of a tensor": (
        lambda x: ops.take(x, ops.cast(x[:, 0, 0, 0], "int32"), 1), "not known before the model"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_file_can_move_is_refused_with_a_remedy(name):
    function, message = REFUSED[name]
    image = keras.Input((9, 8, 3), name="image")
    source = keras.Model(image, function(layers.Conv2D(6, 3, padding="same", name="stem")(image)))
    with pytest.raises(ValueError, match=rf"behind layer '\w+' .*{message}"):
        kmm.MetaMixModel.from_float(source)

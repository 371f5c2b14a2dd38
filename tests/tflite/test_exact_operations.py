"""Files of small networks, one for each operation that `from_float` takes, are exact."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_metamix as kmm
import metamix_tflite as mt
from keras_metamix.graph.operators.multiply import IntegerMultiply
from keras_metamix.layers.integer import IntegerLayer, Rescale
from keras_metamix.layers.parts import activation_quantizers
from metamix_tflite.read.files import read_file

SHAPE = (9, 8, 3)
BITS = (8, 4, 3, 2)
# Few activation candidates: calibrating each of them is what takes the time.
QUICK = {0: kmm.SearchSpace((8, 3), BITS), 1: kmm.SearchSpace((4, 2), BITS)}
SEEDS = range(2, 6)


def conv(filters=4, size=3, name=None, **arguments):
    return layers.Conv2D(filters, size, padding="same", name=name, **arguments)


def norm(name):
    return layers.BatchNormalization(name=name)


def act(function, name):
    return layers.Activation(function, name=name)


def model_of(function, head="pool", shape=SHAPE):
    """A stem, `function`, and a head."""
    image = keras.Input(shape, name="image")
    x = function(norm("stem_bn")(conv(6, name="stem", use_bias=False)(image)))
    if head == "pool":
        x = layers.GlobalAveragePooling2D(name="mean")(x)
    if head:
        x = layers.Dense(5, name="logits")(x)
    return keras.Model(image, x, name="whole")


# --- activations -------------------------------------------------------------------------------


def hard_swish_before_a_padded_depthwise(x):
    x = act("hard_silu", "swish")(x)
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(x)
    x = act("hard_silu", "swish2")(norm("depthwise_bn")(x))
    return conv(5, 1, name="project")(x)


def silu(x):
    x = conv(6, activation="silu", name="behind_silu")(ops.silu(x))
    return layers.DepthwiseConv2D(3, 2, "same", activation="silu", name="depthwise")(x)


def swish_read_several_times(x):
    x = act("hard_silu", "swish")(x)
    return layers.Add(name="sum")([conv(6, name="branch")(x), conv(6, 1, name="other")(x)])


def tanh(x):
    return conv(5, activation="tanh", name="after")(act("tanh", "tanh")(x))


def hard_sigmoid(x):
    return conv(5, activation="hard_sigmoid", name="after")(act("hard_sigmoid", "hard")(x))


def leaky_relus(x):
    """One layer called twice, of a batch norm and of a sum, then every other spelling."""
    leaky = layers.LeakyReLU(0.1, name="leaky")
    x = leaky(
        layers.Add(name="sum")([leaky(x), conv(6, name="branch", activation="leaky_relu")(x)])
    )
    x = layers.ReLU(negative_slope=0.01, name="relu")(layers.MaxPooling2D(2, name="pool")(x))
    x = keras.activations.relu(conv(6, name="a")(norm("a_bn")(x)), negative_slope=0.5)
    return conv(5, name="after")(ops.leaky_relu(act("hard_silu", "swish")(x), 1.0))


def elu(x):
    x = layers.Add(name="sum")([layers.ELU(name="unit")(x), conv(6, name="a", activation="elu")(x)])
    x = layers.DepthwiseConv2D(3, name="depthwise")(ops.celu(x))
    return conv(5, name="after")(ops.elu(layers.ReLU(name="relu")(x)))


def prelu(x):
    """Of a sum, of values >= 0, with one slope, of slopes up to 1, then a ReLU."""
    near_1, below = (keras.initializers.RandomUniform(*ends) for ends in ((0.8, 1.0), (-0.5, 0.9)))
    x = layers.Add(name="sum")([x, layers.PReLU(below, shared_axes=[1, 2], name="first")(x)])
    x = layers.PReLU(near_1, shared_axes=[1, 2], name="second")(conv(6, name="a")(x))
    x = layers.PReLU(keras.initializers.Constant(0.25), shared_axes=[1, 2, 3], name="one")(
        layers.ReLU(name="relu")(x)
    )
    return layers.ReLU(name="last")(layers.PReLU(shared_axes=[1, 2], name="zeros")(x))


def relus_of_other_maxima(x):
    """Read by one layer, by several, through a pool, of a sum, in a concatenation, scaled."""
    x = layers.MaxPooling2D(2, name="pool")(layers.ReLU(2.5, name="most")(x))
    x = layers.Add(name="sum")([x, conv(6, name="a", activation="relu")(x)])
    x = conv(6, 1, name="b")(ops.clip(x, 0, 1.5))
    x = layers.Concatenate(name="concat")([keras.activations.relu(x, max_value=0.75), x])
    return conv(5, name="after")(layers.ReLU(6.0, name="six")(x) * 0.5)


def relu6_of_a_sum(x):
    return conv(5, name="after")(layers.ReLU(6.0)(layers.Add()([x, conv(6, name="other")(x)])))


def gate(function):
    def apply(x):
        x = layers.ReLU(name="relu")(x)
        y = layers.GlobalAveragePooling2D(keepdims=True, name="squeeze")(x)
        y = layers.Conv2D(3, 1, activation="relu", name="reduce")(y)
        y = function(layers.Conv2D(6, 1, name="expand")(y))
        return conv(5, 1, name="after")(layers.Multiply(name="excite")([x, y]))

    return apply


def relu6_spelling(y):
    return layers.ReLU(6.0, name="six")(y + 3.0) * (1.0 / 6.0)


# --- what joins tensors ------------------------------------------------------------------------


def concat_of_two(x):
    x = layers.Concatenate(name="concat")([conv(3, activation="relu", name="a")(x), x])
    return conv(5, name="after")(x)


def concat_of_seven(x):
    parts = [conv(n + 1, 1, name=f"part{n}", activation="relu")(x) for n in range(5)]
    parts += [x, layers.MaxPooling2D(3, 1, "same", name="pool")(x)]
    return conv(5, name="after")(layers.Concatenate(name="concat")(parts))


def dense_block(x):
    for number in range(3):
        y = layers.ReLU(name=f"relu{number}")(norm(f"bn{number}")(x))
        y = conv(3, name=f"grow{number}", use_bias=False)(y)
        x = layers.Concatenate(name=f"concat{number}")([x, y])
    return layers.ReLU(name="last_relu")(norm("last_bn")(x))


def concat_of_relus_then_moves(x):
    x = layers.Concatenate(name="concat")([ops.relu(x), act("relu6", "six")(x)])
    x = layers.MaxPooling2D(2, name="pool")(layers.ZeroPadding2D(1, name="pad")(x))
    return conv(5, name="after")(x)


def concat_of_rows(x):
    return conv(5, name="after")(layers.Concatenate(axis=1, name="concat")([x, ops.relu(x)]))


def three_way_sum(x):
    parts = [x, conv(6, name="a")(x), conv(6, 1, activation="relu", name="b")(x)]
    return layers.ReLU(name="after")(layers.Add(name="sum")(parts))


def product_of_three(x):
    parts = [x, conv(6, name="a")(x), conv(6, 1, activation="sigmoid", name="b")(x)]
    return conv(5, name="after")(layers.Multiply(name="product")(parts))


def average_of_two(x):
    return conv(5, name="after")(layers.Average(name="average")([x, conv(6, name="a")(x)]))


def of_two(join):
    return lambda x: conv(5, name="after")(join(x, conv(6, name="a")(x)))


def raw_sum_and_product(x):
    y = conv(6, name="a")(x)
    return conv(5, name="after")((x + y) * ops.relu(y))


# --- pooling, moves ----------------------------------------------------------------------------


def average_pool(x):
    x = layers.AveragePooling2D(2, name="linear_pool")(x)
    x = layers.ReLU(name="relu")(conv(6, name="between")(x))
    return conv(5, name="after")(layers.AveragePooling2D(2, 1, name="relu_pool")(x))


def padded_average_pools(x):
    """One layer called twice, into a sum, a concatenation, a convolution and a ReLU."""
    pool = layers.AveragePooling2D(3, 1, "same", name="pool")
    x = layers.Add(name="sum")([pool(pool(x)), layers.AveragePooling2D((2, 3), 1, "same")(x)])
    halved = layers.AveragePooling2D(2, 2, "same", name="halved")(act("silu", "swish")(x))
    other = layers.AveragePooling2D(3, 2, "same", name="other")(conv(5, name="between")(x))
    return conv(5, name="after")(layers.Concatenate(name="c")([halved, ops.relu(other)]))


def average_pool_of_same_padding_that_fits(x):
    x = layers.Cropping2D(((1, 0), (0, 0)), name="even")(x)
    return conv(5, name="after")(layers.AveragePooling2D(2, 2, "same", name="pool")(x))


def cropping(x):
    x = layers.Cropping2D(((1, 2), (0, 3)), name="crop")(layers.ReLU(name="relu")(x))
    return layers.Cropping2D(1, name="crop_again")(conv(5, name="after")(x))


def one_pixel_pool(x):
    pooled = layers.MaxPooling2D(1, 2, name="every_other")(layers.ReLU(name="relu")(x))
    return layers.Add(name="sum")([pooled, conv(6, strides=2, name="strided")(x)])


def unequal_pools(x):
    x = layers.MaxPooling2D((2, 3), (1, 2), name="largest")(layers.ReLU(name="relu")(x))
    x = layers.AveragePooling2D((1, 2), name="columns")(conv(6, name="between")(x))
    return conv(5, name="after")(layers.AveragePooling2D((2, 1), (3, 1), name="rows")(x))


def one_pixel_pools(x):
    x = layers.MaxPooling2D(1, (1, 2), name="every_other_column")(layers.ReLU(name="relu")(x))
    return conv(5, name="after")(layers.AveragePooling2D(1, (2, 1), name="every_other_row")(x))


def global_max(keepdims):
    return lambda x: layers.GlobalMaxPooling2D(keepdims=keepdims, name="largest")(x)


def moves_of_a_swish(x):
    x = layers.ZeroPadding2D(1, name="pad")(act("hard_silu", "swish")(x))
    return conv(5, name="after")(layers.MaxPooling2D(2, name="pool")(x))


# --- sizes -------------------------------------------------------------------------------------


def repeated_pixels(x):
    """Nearest by whole factors: rows and columns repeated, and all but some left out."""
    x = layers.UpSampling2D((2, 3), name="repeat")(layers.ReLU(name="relu")(x))
    x = conv(5, name="between")(layers.UpSampling2D((1, 7), name="columns")(x))
    x = layers.Resizing(6, 28, "nearest", name="fewer")(x)
    return conv(5, name="after")(ops.image.resize(x, (12, 28), "nearest"))


def bilinear(x):
    """Of tensors with and without a ReLU, several times, larger and smaller."""
    y = layers.UpSampling2D(2, interpolation="bilinear", name="twice")(layers.ReLU(name="relu")(x))
    y = layers.Resizing(7, 11, name="smaller")(conv(6, name="between")(y))
    y = layers.Add(name="sum")([layers.Resizing(7, 11, name="branch")(x), y])
    return conv(5, name="after")(ops.image.resize(act("hard_silu", "swish")(y), (9, 4)))


def bilinear_of_a_bilinear(x):
    x = layers.MaxPooling2D(2, 1, name="pool")(layers.Resizing(5, 6, name="first")(x))
    x = layers.Resizing(9, 3, name="second")(x)
    return layers.Concatenate(name="joined")([x, ops.relu(conv(3, name="after")(x))])


def depth_and_space(x):
    x = ops.space_to_depth(layers.Cropping2D(((1, 0), (0, 0)), name="even")(x), 2)
    return conv(5, name="after")(ops.depth_to_space(conv(12, name="between")(x), 2))


def resized_input(layer):
    def build():
        image = keras.Input((6, 8, 3), name="image")
        x = layers.Rescaling(0.1, -1.0, name="scaled")(layer(image))
        x = conv(5, name="stem", activation="relu")(x)
        return keras.Model(image, conv(3, name="last")(x), name="whole")

    return build


# --- constants ---------------------------------------------------------------------------------


def pre_activation(x):
    y = layers.ReLU(name="pre_relu")(norm("pre_bn")(x))
    y = conv(6, name="branch")(y)
    total = layers.Add(name="sum")([x, y])
    return layers.ReLU(name="last_relu")(norm("last_bn")(total))


def norm_of_a_sum(x):
    total = layers.Add(name="sum")([x, conv(6, name="branch")(x)])
    return conv(5, name="after")(norm("sum_bn")(total))


def norm_of_a_pool(x):
    return norm("pool_bn")(layers.GlobalAveragePooling2D(name="mean")(x))


def norm_of_a_swish(x):
    return conv(5, name="after")(norm("swish_bn")(act("hard_silu", "swish")(x)))


def negative_constants(x):
    x = 1.0 - layers.ReLU(name="relu")(x)
    x = conv(6, name="between")(x * -0.75)
    return conv(5, name="after")((x - 0.5) / -2.0)


def constants_between(x):
    x = layers.ReLU(name="relu")(x + 0.25) * 0.5
    return conv(5, name="after")(layers.ReLU(6.0, name="six")(2.0 * conv(6, name="a")(x) - 1.0))


def norm_of_the_input():
    image = keras.Input(SHAPE, name="image")
    x = conv(5, name="stem", activation="relu")(norm("input_bn")(image))
    return keras.Model(image, conv(3, name="last")(x), name="whole")


def preprocessed(scale, offset):
    def build():
        image = keras.Input(SHAPE, name="image")
        x = layers.Rescaling(scale, offset, name="rescaling")(image)
        x = layers.Normalization(mean=[0.1, 0.2, -0.3], variance=[0.5, 1.0, 2.0], name="n")(x)
        x = conv(5, name="stem", activation="relu")(x)
        return keras.Model(image, conv(3, name="last")(x), name="whole")

    return build


# --- convolutions ------------------------------------------------------------------------------


def grouped(x):
    x = conv(6, groups=3, name="grouped", activation="relu")(x)
    x = conv(8, groups=2, strides=2, name="strided", use_bias=False)(x)
    return conv(8, 1, groups=8, name="each")(norm("strided_bn")(x))


def dilated(x):
    x = conv(6, dilation_rate=2, name="dilated", activation="relu6")(x)
    return layers.DepthwiseConv2D(3, dilation_rate=2, padding="same", name="depthwise")(x)


def strided(kind, **arguments):
    """A layer of unequal strides or dilations, or of both."""

    def apply(x):
        x = kind(name="strided", **arguments)(layers.ReLU(name="relu")(x))
        return conv(5, 1, name="after")(x)

    return apply


def depthwise(**arguments):
    return layers.DepthwiseConv2D(3, **arguments)


def convolution(**arguments):
    return layers.Conv2D(4, 3, **arguments)


STRIDED = {
    f"{kind.__name__} {arguments}": strided(kind, **arguments)
    for kind in (depthwise, convolution)
    for arguments in (
        {"strides": (2, 1), "padding": "same"},
        {"strides": (1, 3)},
        {"dilation_rate": (2, 1), "padding": "same"},
        {"dilation_rate": (1, 3)},
    )
} | {
    f"depthwise strides and dilation {padding}": strided(
        depthwise, strides=2, dilation_rate=(2, 1), padding=padding
    )
    for padding in ("same", "valid")
}


TRANSPOSED = {
    f"transposed {arguments}": strided(
        lambda name, arguments=arguments: layers.Conv2DTranspose(
            **{"filters": 5, "activation": "relu"} | arguments, name=name
        )
    )
    for arguments in (
        {"kernel_size": 3, "strides": 2, "padding": "same", "activation": "relu6"},
        {"kernel_size": (3, 4), "strides": (2, 1), "padding": "valid"},
        {"kernel_size": (2, 3), "strides": 3, "padding": "same"},
        {"kernel_size": 3, "strides": 2, "padding": "same", "output_padding": 1},
        {"kernel_size": 2, "strides": 2},
        {"kernel_size": 3, "strides": 3, "padding": "same", "activation": "silu"},
        {"kernel_size": 1},
    )
}


def transposed_blocks(x):
    """Enough channels for INT4: batch norm behind, signed results, a layer called twice."""
    x = layers.MaxPooling2D(2, name="pool")(conv(72, 1, name="many")(x))
    shared = layers.Conv2DTranspose(72, 2, 2, "same", use_bias=False, name="shared")
    x = layers.ReLU(name="relu")(norm("shared_bn")(shared(layers.MaxPooling2D(2)(x))))
    x = shared(layers.MaxPooling2D(4, name="pool_again")(x))
    return layers.Conv2DTranspose(5, 3, 3, activation="relu6", name="up")(x)


def separable(x):
    x = layers.SeparableConv2D(
        6, 3, 2, "same", depth_multiplier=2, activation="hard_silu", name="separable"
    )(x)
    return layers.SeparableConv2D(4, 3, padding="same", use_bias=False, name="again")(x)


def shared(x):
    layer = conv(6, name="shared")
    return layers.Add(name="sum")([layer(layers.ReLU(name="relu")(x)), layer(x)])


def shared_norm(x):
    layer, bn = conv(6, name="shared"), norm("shared_bn")
    return bn(layer(layers.ReLU(name="relu")(bn(layer(x)))))


def nested(x):
    inner = keras.Input(x.shape[1:])
    y = layers.ReLU(name="relu")(norm("stem_bn")(conv(6, name="stem")(inner)))
    block = keras.Model(inner, y, name="block")
    return layers.Add(name="sum")([block(x), block(layers.ReLU(name="relu")(x))])


# --- whole models ------------------------------------------------------------------------------


def ending(function):
    def build():
        x = image = keras.Input((12,), name="features")
        x = layers.Dense(8, activation="relu", name="hidden")(x)
        x = layers.Dense(6, activation="silu", name="swish")(x)
        return keras.Model(image, layers.Dense(3, activation=function, name="last")(x))

    return build


def ended_by(function):
    inner = model_of(layers.ReLU(name="relu"))
    return keras.Model(inner.input, function(inner.output), name="whole")


def quick_gelu(x):
    x = conv(6, name="between")(x * ops.sigmoid(1.702 * x))
    return conv(5, name="after")(x * ops.sigmoid(1.702 * x))


def several_outputs():
    image = keras.Input(SHAPE, name="image")
    x = conv(6, name="stem", activation="relu")(image)
    maps = conv(2, name="maps", activation="sigmoid")(x)
    return keras.Model(image, [layers.Dense(3, name="logits")(
        layers.GlobalAveragePooling2D(name="mean")(x)), maps, x])  # fmt: skip


IN_THE_MIDDLE = [
    hard_swish_before_a_padded_depthwise, silu, swish_read_several_times, tanh, hard_sigmoid,
    leaky_relus, relus_of_other_maxima, elu, prelu, quick_gelu,
    relu6_of_a_sum, concat_of_two, concat_of_seven, dense_block, concat_of_relus_then_moves,
    concat_of_rows, three_way_sum, product_of_three, average_of_two, raw_sum_and_product,
    average_pool, padded_average_pools,
    average_pool_of_same_padding_that_fits, cropping, one_pixel_pool,
    unequal_pools, one_pixel_pools,
    transposed_blocks, repeated_pixels, bilinear, bilinear_of_a_bilinear, depth_and_space,
    moves_of_a_swish, pre_activation, norm_of_a_sum, norm_of_a_swish, negative_constants,
    constants_between, grouped, dilated, separable, shared, shared_norm, nested,
]  # fmt: skip
MODELS = {
    **{f.__name__.replace("_", " "): lambda f=f: model_of(f) for f in IN_THE_MIDDLE},
    **{f"squeeze-and-excite by {name}": lambda f=f: model_of(gate(f)) for name, f in {
        "sigmoid": act("sigmoid", "gate"), "hard-sigmoid": act("hard_sigmoid", "gate"),
        "relu6": relu6_spelling}.items()},
    **{name: lambda f=f: model_of(f) for name, f in (STRIDED | TRANSPOSED).items()},
    "difference": lambda: model_of(of_two(lambda x, y: layers.Subtract()([x, ops.relu(y - x)]))),
    "global max": lambda: model_of(global_max(False), "features"),
    "global max with height and width": lambda: model_of(global_max(True), "features"),
    "norm of a pool": lambda: model_of(norm_of_a_pool, "features"),
    "norm of the input": norm_of_the_input,
    "Rescaling and Normalization": preprocessed(0.5, -0.25),
    "negative Rescaling": preprocessed(-0.7, 0.1),
    "Resizing of the input": resized_input(layers.Resizing(9, 12, name="resizing")),
    "nearest Resizing of the input": resized_input(layers.Resizing(12, 4, "nearest", name="r")),
    **{f"ends in {f}": ending(f) for f in ("sigmoid", "tanh", "hard_sigmoid", "softmax", "silu")},
    "ends in UnitNormalization": lambda: ended_by(layers.UnitNormalization(name="unit")),
    "ends in ops.normalize": lambda: ended_by(ops.normalize),
    "several outputs": several_outputs,
}  # fmt: skip


@pytest.fixture
def check(quantized, differing):
    """check(name, seed, space): the file of one of MODELS at random bits is exact, and as said."""

    def exact(name, seed, space):
        keras.utils.set_random_seed(seed)
        source = MODELS[name]()
        model, images = quantized(source, seed, images=16, space=space)
        folded = kmm.fold_batch_norm(model)
        flat = mt.convert(folded)
        graph = mt.verify(flat, model.bit_assignment)
        assert differing(flat, folded, images) == (0, True), seed
        written = [(graph.tensors[o.outputs[0]].name, o.op) for o in graph.operators]
        met = 0
        for row in kmm.explain(source, space).rows:
            found = {op for name, op in written if f"{name}/".startswith(f"{row.name}/")}
            assert not found or found & {*row.operator.split(" or ")}, row
            met += bool(found)
        assert met > 2

    return exact


@pytest.mark.parametrize(
    ("name", "seed"), [(name, number % 2) for number, name in enumerate(MODELS)]
)
def test_files_are_exact_and_hold_the_assignment(name, seed, check):
    check(name, seed, QUICK[seed])


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in MODELS if name != "tanh"])
def test_files_of_other_seeds_are_exact(name, check):
    for seed in SEEDS:
        check(name, seed, kmm.SearchSpace(BITS, BITS))


@pytest.mark.parametrize("seed", QUICK)
def test_files_of_several_inputs_are_exact(seed):
    keras.utils.set_random_seed(seed)
    left, right = keras.Input((8, 8, 2), name="left"), keras.Input((8, 8, 3), name="right")
    x = layers.ReLU(name="relu")(norm("left_bn")(conv(4, name="on_left")(left)))
    y = conv(4, 1, name="on_right", activation="hard_silu")(right)
    both = layers.Concatenate(name="both")([x, y])
    total = conv(4, name="last")(layers.Add(name="sum")([x, y]))
    source = keras.Model([left, right], [conv(3, name="maps")(both), total], name="several")
    rng = np.random.default_rng(seed)
    images = [rng.normal(0, 2, (16, 8, 8, n)).astype(np.float32) for n in (2, 3)]
    model = kmm.MetaMixModel.from_float(source, kmm.SearchSpace(BITS, BITS))
    kmm.calibrate(model, images, rule="mse")
    model.set_bits(
        kmm.BitAssignment(
            {n.name: int(rng.choice(n.input_quantizer.candidates)) for n in model.mac_layers},
            {n.name: int(rng.choice(n.weight_quantizer.candidates)) for n in model.mac_layers},
        )
    )
    folded = kmm.fold_batch_norm(model)
    flat = mt.convert(folded)
    mt.verify(flat, model.bit_assignment)
    runner = mt.Runner(flat, batch_size=16)
    assert runner.delegated
    order = [detail["name"] for detail in runner.input_details]
    by_name = dict(zip(("left", "right"), images, strict=True))
    arrays = [next(a for n, a in by_name.items() if n in name) for name in order]
    for found, expected in zip(runner.invoke(*arrays), folded(images), strict=True):
        np.testing.assert_array_equal(found, expected)


# --- behind swish ------------------------------------------------------------------------------

SWISHES = {
    "hard-swish": lambda: model_of(hard_swish_before_a_padded_depthwise),
    "silu": lambda: model_of(silu),
    "hard-swish of several readers": lambda: model_of(swish_read_several_times),
    "silu of a separable convolution": lambda: model_of(separable),
}


@pytest.mark.parametrize("bits", [4, 3, 2])
@pytest.mark.parametrize("name", SWISHES)
def test_no_level_falls_below_the_low_end_behind_swish(name, bits, quantized, differing):
    keras.utils.set_random_seed(bits)
    model, _ = quantized(SWISHES[name](), bits, space=kmm.SearchSpace((bits,), 4))
    folded = kmm.fold_batch_norm(model)
    swishes = [x for x in folded.layers if isinstance(x, (IntegerMultiply, Rescale))]
    signs = {q.sign for q in activation_quantizers(model.network)}
    assert "offset" in signs
    # Also those that the device does not clip below, which the fold has proved.
    inner = keras.Model(folded.inputs[0], [layer.output for layer in swishes])
    flat = mt.convert(folded)
    rng = np.random.default_rng(bits)
    for spread in (0.3, 1.5, 8.0):  # also beyond what the steps were calibrated on
        images = rng.normal(0, spread, (64, *SHAPE)).astype(np.float32)
        for layer, levels in zip(swishes, keras.tree.flatten(inner(images)), strict=True):
            levels, grid = np.asarray(levels), layer.output_grid
            assert grid.low <= levels.min(), layer.name
            assert levels.max() <= grid.high, layer.name
        assert differing(flat, folded, images) == (0, True)


@pytest.mark.parametrize("name", ["hard-swish", "silu"])
def test_zero_lies_on_grids_behind_swish(name, quantized):
    # Padding puts code zero_point there, which has to be a level.
    model, _ = quantized(SWISHES[name](), 0, space=QUICK[1])
    for layer in kmm.fold_batch_norm(model).layers:
        if isinstance(layer, IntegerLayer):
            grid = layer.output_grid
            assert grid.low <= 0 <= grid.high
            assert -128 <= grid.zero_point <= 127


@pytest.mark.parametrize("factor", [0.5, 1e-1, 1e-3])
@pytest.mark.parametrize("name", ["hard-swish", "silu", "hard-swish of several readers"])
def test_a_collapsed_step_is_exact_or_refused_by_name(name, factor, quantized, differing):
    model, images = quantized(SWISHES[name](), 4, space=kmm.SearchSpace((4,), 4))
    quantizers = activation_quantizers(model.network)
    offset = [q for q in quantizers if q.sign == "offset" and q.role == "mac"]
    assert offset
    for quantizer in offset:
        quantizer.log_step.assign(quantizer.log_step + np.log(factor))
    names = [quantizer.name for quantizer in quantizers]
    try:
        folded = kmm.fold_batch_norm(model)
        flat = mt.convert(folded)
    except ValueError as error:
        assert any(f"'{n}" in str(error) for n in names), error
        return
    assert differing(flat, folded, images) == (0, True)


def test_a_collapsed_step_is_refused(quantized):
    model, _ = quantized(SWISHES["hard-swish"](), 4, space=kmm.SearchSpace((4,), 4))
    model.network.get_layer("depthwise").input_quantizer.log_step.assign([np.log(1e-4)])
    with pytest.raises(ValueError, match=r"'depthwise_input'"):
        mt.convert(model)


# --- refusals ----------------------------------------------------------------------------------

REFUSED = {
    "LayerNormalization": lambda: layers.LayerNormalization(name="bad"),
    "GroupNormalization": lambda: layers.GroupNormalization(2, name="bad"),
    "LeakyReLU": lambda: layers.LeakyReLU(0.001, name="bad"),
    "mish": lambda: act("mish", "bad"),
    "softmax": lambda: act("softmax", "bad"),
    "padded average pooling": lambda: layers.AveragePooling2D(5, 1, "same", name="bad"),
    "bicubic": lambda: layers.UpSampling2D(2, interpolation="bicubic", name="bad"),
    "nearest by a fraction": lambda: layers.Resizing(12, 12, "nearest", name="bad"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_stays_in_float_trains_and_is_not_exported(name, quantized):
    source = model_of(lambda x: conv(5, name="after")(REFUSED[name]()(x)))
    model, images = quantized(source, space=QUICK[0], float_layers=["bad"])
    assert np.all(np.isfinite(model(images)))
    for function in (kmm.fold_batch_norm, mt.convert):
        with pytest.raises(ValueError, match=r"\['bad'\] were left in float"):
            function(model)


# --- verify ------------------------------------------------------------------------------------


def with_bits(bits, kind, name, value):
    """The assignment with another value for one layer."""
    maps = {"activation": dict(bits.activation_bits), "weight": dict(bits.weight_bits)}
    maps[kind][name] = value
    return kmm.BitAssignment(maps["activation"], maps["weight"])


VERIFIED = [
    "transposed blocks", "bilinear",
    "hard swish before a padded depthwise", "silu", "swish read several times", "separable",
    "squeeze-and-excite by sigmoid", "squeeze-and-excite by relu6", "concat of seven",
    "dense block", "pre activation", "moves of a swish", "shared", "grouped", "several outputs",
]  # fmt: skip


@pytest.mark.parametrize("name", VERIFIED)
def test_verify_names_the_layer_whose_bits_differ(name, quantized):
    model, _ = quantized(MODELS[name](), 5, images=16, space=QUICK[0])
    flat, bits = mt.convert(model), model.bit_assignment
    mt.verify(flat, bits)
    quantizers = {layer.name: layer.input_quantizer for layer in model.mac_layers}
    for layer in bits.weight_bits:
        for kind in ("activation", "weight"):
            found = getattr(bits, f"{kind}_bits")[layer]
            others = {2, found - 1, found + 1} - {found, 1, 9}
            if kind == "activation" and quantizers[layer].sign == "offset":
                others = {n for n in others if n < found}
            for value in others:
                with pytest.raises(mt.VerificationError, match=f"'{layer}': {kind} bits"):
                    mt.verify(flat, with_bits(bits, kind, layer, value))


def test_a_swish_of_4_bits_is_not_taken_for_one_of_3_or_8(quantized):
    model, _ = quantized(SWISHES["hard-swish"](), 4, space=kmm.SearchSpace((4,), 4))
    flat, bits = mt.convert(model), model.bit_assignment
    graph = read_file(flat)
    assert [t.name for t in graph.tensors if t.name == "depthwise"]
    mt.verify(flat, bits)
    for layer in ("depthwise", "project"):
        for value in (2, 3):
            with pytest.raises(mt.VerificationError, match=f"'{layer}': activation bits"):
                mt.verify(flat, with_bits(bits, "activation", layer, value))

"""The integer layers against plain NumPy integers, and the fold against the training network."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_metamix as kmm
from keras_metamix.graph.operators.add import IntegerAdd
from keras_metamix.graph.operators.mean import IntegerMean
from keras_metamix.graph.operators.multiply import IntegerMultiply
from keras_metamix.layers.grid import Grid, clip_level
from keras_metamix.layers.integer import (
    EXACT_FLOAT32,
    Dequantize,
    IntegerLayer,
    IntegerMac,
    QuantizeInput,
    Rescale,
)
from keras_metamix.zoo.small import small_cnn, small_mobilenet, small_resnet

f32 = np.float32
ZOO = {"small_cnn": small_cnn, "small_resnet": small_resnet, "small_mobilenet": small_mobilenet}


def requantized(accumulator, multiplier, low, high):
    """XNNPACK's requantization: one float32 product, rounded half to even."""
    product = np.asarray(accumulator).astype(f32) * np.asarray(multiplier, f32)
    return np.clip(np.rint(product), low, high)


def convolution(levels, kernel, strides, padding, dilation, depthwise):
    """int64 sums of a convolution, by loops over the kernel's places."""
    levels, kernel = levels.astype(np.int64), kernel.astype(np.int64)
    amounts, sizes = [(0, 0)], []
    for axis in range(2):
        reach = (kernel.shape[axis] - 1) * dilation + 1
        length = levels.shape[1 + axis]
        size = -(-length // strides) if padding == "same" else (length - reach) // strides + 1
        total = max((size - 1) * strides + reach - length, 0) if padding == "same" else 0
        amounts.append((total // 2, total - total // 2))
        sizes.append(size)
    levels = np.pad(levels, [*amounts, (0, 0)])
    channels = kernel.shape[2] * kernel.shape[3] if depthwise else kernel.shape[3]
    sums = np.zeros((len(levels), *sizes, channels), np.int64)
    for i in range(kernel.shape[0]):
        for j in range(kernel.shape[1]):
            top, left = i * dilation, j * dilation
            window = levels[
                :,
                top : top + (sizes[0] - 1) * strides + 1 : strides,
                left : left + (sizes[1] - 1) * strides + 1 : strides,
            ]
            if depthwise:
                products = np.einsum("nhwc,cm->nhwcm", window, kernel[i, j])
                sums += products.reshape(sums.shape)
            else:
                sums += np.einsum("nhwc,co->nhwo", window, kernel[i, j])
    return sums


def fixed_point_sum(tensors, scales, output, low, high):
    """XNNPACK's ADD on levels, in Python integers."""
    ratios = [f32(s) / f32(output) for s in scales]
    shift = 20 - (int(np.frexp(max(ratios))[1]) - 1)
    factors = [int(np.rint(float(r) * 2.0**shift)) for r in ratios]
    total = sum(t.astype(np.int64) * f for t, f in zip(tensors, factors, strict=True))
    return np.clip((total + 2 ** (shift - 1)) >> shift, low, high)


def random_grid(rng, signed=None):
    """A grid of a random bit-width."""
    signed = bool(rng.integers(2)) if signed is None else signed
    bits, step = int(rng.choice([2, 3, 4, 8])), float(np.exp(rng.uniform(-4, 0)))
    if not signed:
        return Grid.of(step, 0, 2**bits - 1)
    return (
        Grid.of(step, -128, 127)
        if bits == 8
        else Grid.of(step, 1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1)
    )


def random_levels(rng, grid, shape):
    return rng.integers(grid.low, grid.high + 1, shape).astype(f32)


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


# --- one layer ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("kind", ["conv", "depthwise"])
def test_convolutions_are_integer_arithmetic(kind, padding, dilation):
    rng = np.random.default_rng(0)
    for trial in range(6):
        strides = 1 if dilation > 1 else 1 + trial % 2
        channels, filters = int(rng.integers(1, 6)), int(rng.integers(1, 4))
        weight_bits = int(rng.choice([2, 3, 4, 8]))
        reach = 2 ** (weight_bits - 1) - 1
        kernel = rng.integers(-reach, reach + 1, (3, 2 + trial % 2, channels, filters))
        if kind == "depthwise" and kernel.shape[0] != kernel.shape[1]:
            kernel = np.concatenate([kernel, kernel[:, :1]], axis=1)
        source, target = random_grid(rng), random_grid(rng)
        layer = IntegerMac(
            kind,
            weight_bits,
            kernel.shape,
            source,
            target,
            strides=(strides, strides),
            padding=padding,
            dilation_rate=(dilation, dilation),
        )
        outputs = channels * filters if kind == "depthwise" else filters
        bias = rng.integers(-200, 200, outputs)
        scale = np.exp(rng.uniform(-5, -2, outputs))
        layer.set_integers(kernel, bias, scale)
        levels = random_levels(rng, source, (3, 9, 8, channels))
        sums = convolution(levels, kernel, strides, padding, dilation, kind == "depthwise") + bias
        multiplier = f32(source.scale) * scale.astype(f32) / f32(target.scale)
        expected = requantized(sums, multiplier, target.low, target.high)
        np.testing.assert_array_equal(numpy(layer(levels)), expected)
        assert layer.compute_output_spec(keras.KerasTensor(levels.shape)).shape == expected.shape


@pytest.mark.parametrize("shape", [(4, 20), (2, 5, 20), (2, 3, 4, 20)])
def test_dense_is_integer_arithmetic(shape):
    rng = np.random.default_rng(1)
    source, target = Grid.of(0.05, 0, 255), Grid.of(0.3, -128, 127)
    kernel, bias = rng.integers(-7, 8, (20, 6)), rng.integers(-900, 900, 6)
    scale = np.exp(rng.uniform(-5, -3, 6))
    layer = IntegerMac("dense", 4, kernel.shape, source, target, low=-20, high=90)
    layer.set_integers(kernel, bias, scale)
    levels = random_levels(rng, source, shape)
    sums = np.tensordot(levels.astype(np.int64), kernel, 1) + bias
    multiplier = f32(source.scale) * scale.astype(f32) / f32(target.scale)
    np.testing.assert_array_equal(numpy(layer(levels)), requantized(sums, multiplier, -20, 90))


def test_requantization_rounds_ties_to_even():
    layer = IntegerMac("dense", 2, (1, 1), Grid.of(1.0, -128, 127), Grid.of(1.0, -128, 127))
    layer.set_integers(np.ones((1, 1)), np.zeros(1), np.array([0.5]))
    levels = np.array([-3, -1, 1, 3, 5, 7], f32)[:, None]
    np.testing.assert_array_equal(numpy(layer(levels))[:, 0], [-2, 0, 0, 2, 2, 4])


@pytest.mark.parametrize(
    ("inputs", "bias", "accumulator"),
    [
        (517, 0, "float32"),  # 517 * 127 * 255 = 16,743,045 < 2^24
        (519, 0, "float64"),  # 519 * 127 * 255 = 16,807,815 > 2^24
        (4, 2**24, "float64"),
        (4, -(2**23), "float32"),
    ],
)
def test_the_accumulator_holds_every_possible_sum(inputs, bias, accumulator):
    source, target = Grid.of(0.1, 0, 255), Grid.of(2.0, -128, 127)
    layer = IntegerMac("dense", 8, (inputs, 1), source, target)
    layer.set_integers(np.full((inputs, 1), 127), np.array([bias]), np.array([1e-4]))
    assert layer.accumulator == accumulator
    levels = np.full((2, inputs), 255, f32)
    levels[1, -1] = 254
    sums = levels.astype(np.int64) @ np.full((inputs, 1), 127) + bias
    assert (accumulator == "float64") == (abs(sums).max() >= EXACT_FLOAT32)
    multiplier = f32(0.1) * f32(1e-4) / f32(2.0)
    expected = requantized(sums, multiplier, -128, 127)
    np.testing.assert_array_equal(numpy(layer(levels)), expected)


def test_float64_sums_are_exact_where_float32_would_not_be():
    # Two million products of both signs that cancel to a handful: float32 loses them.
    rng = np.random.default_rng(2)
    kernel = rng.integers(-127, 128, (3, 3, 700, 1))
    source, target = Grid.of(0.1, 0, 255), Grid.of(0.1, -128, 127)
    layer = IntegerMac("conv", 8, kernel.shape, source, target)
    layer.set_integers(kernel, np.array([1]), np.array([1e-5]))
    assert layer.accumulator == "float64"
    levels = random_levels(rng, source, (2, 5, 5, 700))
    sums = convolution(levels, kernel, 1, "valid", 1, False) + 1
    multiplier = f32(0.1) * f32(1e-5) / f32(0.1)
    np.testing.assert_array_equal(numpy(layer(levels)), requantized(sums, multiplier, -128, 127))


@pytest.mark.parametrize("ratio", [None, 1, 2, 4])
def test_add_is_fixed_point(ratio):
    rng = np.random.default_rng(3)
    for _ in range(30):
        first, second, target = (random_grid(rng, signed=True) for _ in range(3))
        if ratio is not None:
            target = Grid.of(ratio * first.scale, -128, 127)
        low = int(rng.choice([target.low, 0]))
        layer = IntegerAdd([first, second], target, low=low)
        pair = [random_levels(rng, g, (1, 20, 20, 2)) for g in (first, second)]
        expected = fixed_point_sum(
            pair, (first.scale, second.scale), target.scale, low, target.high
        )
        np.testing.assert_array_equal(numpy(layer(pair)), expected)


def test_add_of_the_extremes_is_exact():
    # 255 * 2^21 * 2: beyond float32, within float64.
    grid, wide = Grid.of(0.7, 0, 255), Grid.of(0.0113, 0, 255)
    pair = [np.full((1, 1), 255, f32), np.full((1, 1), 253, f32)]
    for scales in ((grid, wide), (wide, grid), (grid, grid)):
        layer = IntegerAdd(scales, Grid.of(1.1, 0, 255))
        expected = fixed_point_sum(pair, [g.scale for g in scales], f32(1.1), 0, 255)
        np.testing.assert_array_equal(numpy(layer(pair)), expected)


def test_multiply_broadcasts_and_requantizes():
    rng = np.random.default_rng(4)
    first, second, target = Grid.of(0.1, -128, 127), Grid.of(0.02, 0, 255), Grid.of(0.07, -128, 127)
    maps = random_levels(rng, first, (2, 5, 6, 3))
    gates = random_levels(rng, second, (2, 1, 1, 3))
    found = numpy(IntegerMultiply([first, second], target)([maps, gates]))
    multiplier = f32(0.1) * f32(0.02) / f32(0.07)
    np.testing.assert_array_equal(found, requantized(maps * gates, multiplier, -128, 127))


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("size", [(2, 2), (2, 3), (7, 7)])
def test_mean_is_one_product(size, keepdims):
    rng = np.random.default_rng(5)
    for output in (0.1, 0.037):
        source, target = Grid.of(0.1, 0, 255), Grid.of(output, 0, 255)
        levels = random_levels(rng, source, (4, *size, 30))
        found = numpy(IntegerMean(source, target, keepdims=keepdims)(levels))
        sums = levels.astype(np.int64).sum((1, 2), keepdims=keepdims)
        multiplier = f32(f32(0.1) / f32(output)) / f32(size[0] * size[1])
        np.testing.assert_array_equal(found, requantized(sums, multiplier, 0, 255))
    assert found.ndim == (4 if keepdims else 2)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_rescale_takes_the_true_steps_not_the_labels(bits):
    rng = np.random.default_rng(6)
    source = Grid.of(0.03, -128, 127)
    high = 2 ** (bits - 1) - 1
    target = Grid.of(0.11, -high, high) if bits < 8 else Grid.of(0.11, -128, 127)
    levels = random_levels(rng, source, (1, 9, 9, 4))
    found = numpy(Rescale(source, target)(levels))
    expected = np.clip(np.rint(levels * (0.03 / 0.11)), target.low, target.high)
    # The ratio passes through two float32 products: a tie may fall to the other side.
    assert np.mean(found != expected) < 0.01
    factor = f32(source.step / source.scale * (target.scale / target.step))
    multiplier = f32(f32(source.scale) * factor) / f32(target.scale)
    np.testing.assert_array_equal(found, requantized(levels, multiplier, target.low, target.high))


def test_input_and_output_layers():
    grid = Grid.of(0.25, -128, 127)
    values = np.array([[-99.0, -0.375, -0.125, 0.125, 0.375, 31.75, 99.0]], f32)
    levels = numpy(QuantizeInput(grid)(values))
    np.testing.assert_array_equal(levels, [[-128, -2, 0, 0, 2, 127, 127]])
    np.testing.assert_array_equal(numpy(Dequantize(grid, "logits")(levels)), levels * f32(0.25))


def test_grids_of_the_encoding():
    # Zero-point 128 - 2^b, and labels 1 / (2^(b-1) - 1).
    unsigned = [Grid.of(0.1, 0, 2**b - 1).zero_point for b in (8, 4, 3, 2)]
    assert unsigned == [-128, 112, 120, 124]
    signed = Grid.of(0.1, -7, 7)
    assert (signed.zero_point, signed.scale) == (0, float(f32(1.0 / 7)))
    assert signed.step == float(f32(0.1))
    assert Grid.of(0.1, -128, 127).zero_point == 0
    # Behind hard-swish: 16 levels from -4.
    assert Grid.of(0.1, -4, 11).zero_point == 116
    assert clip_level(Grid.of(1.5, 0, 15), 6.0) == 4


LAYERS = [
    lambda g: QuantizeInput(g, low=0),
    lambda g: Dequantize(g, "logits"),
    lambda g: IntegerAdd([g, g], g, high=5),
    lambda g: IntegerMultiply([g, g], g),
    lambda g: IntegerMean(g, g, keepdims=True),
    lambda g: Rescale(g, g),
    lambda g: IntegerMac("conv", 3, (3, 3, 2, 4), g, g, padding="same", accumulator="float32"),
]


@pytest.mark.parametrize("make", LAYERS)
def test_configurations_round_trip(make):
    layer = make(Grid.of(0.3, -7, 7))
    config = keras.saving.serialize_keras_object(layer)
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(layer)
    assert again.get_config() == layer.get_config()


# --- whole models ------------------------------------------------------------------------------


def randomise(model, rng):
    """Batch norms with negative scales and one that is exactly 0."""
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            size = layer.gamma.shape[0]
            gamma = rng.uniform(0.5, 1.5, size) * rng.choice([-1.0, 1.0], size, p=[0.3, 0.7])
            gamma[0], gamma[1] = 0.0, -abs(gamma[1])
            layer.gamma.assign(gamma)
            layer.beta.assign(rng.normal(0.1, 0.4, size))
            layer.moving_mean.assign(rng.normal(0, 0.2, size))
            layer.moving_variance.assign(rng.uniform(0.3, 2.0, size))
        elif getattr(layer, "use_bias", False):
            layer.bias.assign(rng.normal(0, 0.2, layer.bias.shape))


@pytest.fixture(scope="module")
def quantized():
    """quantized(float model, seed) -> (model in weight training, images)."""

    def make(model, seed=0, images=64, space=None, bits=True, float_layers=()):
        rng = np.random.default_rng(seed)
        randomise(model, rng)
        # A level and a contrast for each image, so that features differ from image to image.
        shape = model.inputs[0].shape[1:]
        level, contrast = rng.normal(0, 1.5, (2, images, *[1] * len(shape)))
        batch = (level + contrast * rng.normal(0, 1, (images, *shape))).astype(f32)
        if "logits" in [layer.name for layer in model.layers]:  # no class always wins
            bias = model.get_layer("logits").bias
            bias.assign(bias - numpy(model(batch)).reshape(-1, bias.shape[0]).mean(0))
        space = space or kmm.SearchSpace((8, 4, 3), (8, 4, 3))
        result = kmm.MetaMixModel.from_float(model, space, float_layers)
        kmm.calibrate(result, batch, rule="mse")
        chosen = kmm.BitAssignment(
            {n.name: int(rng.choice(n.input_quantizer.candidates)) for n in result.mac_layers},
            {n.name: int(rng.choice(n.weight_quantizer.candidates)) for n in result.mac_layers},
        )
        if bits:
            result.set_bits(chosen)
        return result, batch

    return make


@pytest.fixture(scope="module")
def zoo(quantized):
    """zoo(name) -> (model, images, folded), made once."""
    made = {}

    def get(name):
        if name not in made:
            keras.utils.set_random_seed(0)
            model, images = quantized(ZOO[name]((12, 12, 1), width=4), 1, images=400)
            made[name] = (model, images, kmm.fold_batch_norm(model))
        return made[name]

    return get


def norms_of(model):
    """MAC layer name -> the batch norm that folds into it."""
    return {mac.name: mac.norm for mac in model.mac_layers if mac.norm}


@pytest.mark.parametrize("name", ZOO)
def test_the_fold_agrees_with_training(name, zoo):
    model, images, folded = zoo(name)
    trained, deployed = numpy(model(images, training=False)), numpy(folded(images))
    step = next(x for x in folded.layers if isinstance(x, Dequantize)).input_grid.scale
    assert np.mean(trained.argmax(-1) == deployed.argmax(-1)) >= 0.995
    steps = np.rint(np.abs(trained - deployed) / step)
    assert np.mean(steps == 0) > 0.99
    assert steps.max() <= 2
    assert len(np.unique(trained.argmax(-1))) > 1  # a network that tells images apart


@pytest.mark.parametrize("name", ZOO)
def test_integers_scales_and_biases_are_those_of_training(name, zoo):
    model, _, folded = zoo(name)
    norms = norms_of(model)
    for layer in model.mac_layers:
        integer = folded.get_layer(layer.name)
        quantizer = layer.input_quantizer
        input_step = np.exp(np.float64(numpy(quantizer.log_step)[int(quantizer.choice.bit_index)]))
        step = input_step * numpy(layer.weight_quantizer.step()).reshape(-1).astype(np.float64)
        scale, total = np.ones_like(step), numpy(layer.bias) if layer.use_bias else 0 * step
        if layer.name in norms:
            norm = norms[layer.name]
            gamma, beta, mean, variance = (numpy(v).astype(np.float64) for v in norm.weights)
            scale = gamma / np.sqrt(variance + norm.epsilon)
            total = beta + (total - mean) * scale
            assert (scale < 0).any(), layer.name
            assert (scale == 0).any(), layer.name
        sign = np.where(scale < 0, -1, 1)
        if isinstance(layer, layers.DepthwiseConv2D):
            sign = sign.reshape(layer.kernel.shape[-2:])
        np.testing.assert_array_equal(numpy(integer.kernel), layer.integer_kernel() * sign)
        assert integer.kernel.dtype == "int8"
        reach = 2 ** (layer.weight_quantizer.choice.bits - 1) - 1
        assert np.abs(numpy(integer.kernel).astype(np.int64)).max() <= reach
        # The integer bias is the real one to half a step of the accumulator; where gamma is 0 the
        # step is tiny, so that the bias alone gives the channel's constant.
        folded_step = numpy(integer.weight_scale).astype(np.float64) * integer.input_grid.scale
        labels = integer.output_grid.step / integer.output_grid.scale
        real = numpy(integer.bias) * folded_step * labels
        live = scale != 0
        slack = 0.501 * np.abs(scale * step) + 1e-6 * np.abs(total) + 1e-9
        assert np.all(np.abs(real - total)[live] <= slack[live]), layer.name
        np.testing.assert_allclose(real[~live], total[~live], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(
            (folded_step * labels)[live], np.abs(scale * step)[live], rtol=1e-5
        )


@pytest.mark.parametrize("name", ZOO)
def test_levels_stay_on_their_grids(name, zoo):
    model, images, folded = zoo(name)
    bits = model.bit_assignment.activation_bits
    integers = [x for x in folded.layers if isinstance(x, IntegerLayer)]
    inner = keras.Model(folded.inputs, [x.output for x in integers])
    for layer, levels in zip(integers, inner(images), strict=True):
        levels, grid = numpy(levels), layer.output_grid
        np.testing.assert_array_equal(levels, np.rint(levels))
        assert grid.low <= levels.min() <= levels.max() <= grid.high, layer.name
    for layer in integers:
        if isinstance(layer, IntegerMac):
            grid = layer.input_grid
            assert grid.high - grid.low + 1 in (2 ** bits[layer.name], 2 ** bits[layer.name] - 1)


@pytest.mark.parametrize("name", ZOO)
def test_a_folded_model_is_a_plain_keras_model(name, zoo, tmp_path):
    _, images, folded = zoo(name)
    assert not folded.trainable_weights
    folded.save(tmp_path / "folded.keras")
    again = keras.models.load_model(tmp_path / "folded.keras")
    np.testing.assert_array_equal(numpy(folded(images)), numpy(again(images)))
    accumulators = [
        [x.accumulator for x in m.layers if isinstance(x, IntegerMac)] for m in (folded, again)
    ]
    assert accumulators[0] == accumulators[1]
    if name == "small_cnn":
        predicted = again.predict(images, verbose=0, batch_size=64)
        np.testing.assert_array_equal(numpy(folded(images)), predicted)


def test_folding_leaves_the_model_as_it_is(zoo):
    model, images, folded = zoo("small_resnet")
    before = [np.array(w) for w in model.weights]
    again = kmm.fold_batch_norm(model)
    for old, weight in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, weight)
    np.testing.assert_array_equal(numpy(again(images)), numpy(folded(images)))


def test_a_saved_model_folds_alike(zoo, tmp_path):
    model, images, folded = zoo("small_mobilenet")
    model.save(tmp_path / "model.keras")
    again = kmm.fold_batch_norm(keras.models.load_model(tmp_path / "model.keras"))
    np.testing.assert_array_equal(numpy(again(images)), numpy(folded(images)))


@pytest.mark.parametrize("head", ["layer", "activation", "fused"])
def test_a_softmax_at_the_end_is_left_out(head, quantized):
    image = keras.Input((6, 6, 2), name="image")
    x = layers.Conv2D(4, 3, activation="relu", name="conv")(image)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Dense(3, activation="softmax" if head == "fused" else None, name="logits")(x)
    if head == "layer":
        x = layers.Softmax(name="softmax")(x)
    elif head == "activation":
        x = layers.Activation("softmax", name="softmax")(x)
    model, images = quantized(keras.Model(image, x), 2)
    probabilities = numpy(model(images, training=False))
    logits = numpy(kmm.fold_batch_norm(model)(images))
    np.testing.assert_allclose(probabilities.sum(-1), 1.0, rtol=1e-5)
    step = np.diff(np.unique(logits)).min()
    np.testing.assert_allclose(logits / step, np.rint(logits / step), atol=1e-2)
    assert np.mean(numpy(ops.softmax(logits)).argmax(-1) == probabilities.argmax(-1)) >= 0.99
    np.testing.assert_allclose(numpy(ops.softmax(logits)), probabilities, atol=0.05)


def test_an_unused_bias_and_norm_without_scale_or_center(quantized):
    image = keras.Input((8, 8, 2), name="image")
    x = layers.Conv2D(6, 3, use_bias=True, name="conv")(image)
    x = layers.BatchNormalization(scale=False, center=False, name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    source = keras.Model(image, layers.Conv2D(3, 3, name="last")(x))
    for layer in (source.get_layer("conv"), source.get_layer("last")):
        layer.bias.assign(np.linspace(-0.5, 0.5, layer.bias.shape[0]))
    norm = source.get_layer("norm")
    norm.moving_mean.assign(np.linspace(-0.3, 0.3, 6))
    rng = np.random.default_rng(0)
    images = rng.normal(size=(64, 8, 8, 2)).astype(f32)
    model = kmm.MetaMixModel.from_float(source, kmm.SearchSpace((8,), 8))
    kmm.calibrate(model, images, rule="mse")
    model.set_bits(model.bit_assignment)
    trained = numpy(model(images, training=False))
    deployed = numpy(kmm.fold_batch_norm(model)(images))
    step = np.diff(np.unique(deployed)).min()
    assert np.abs(trained - deployed).max() <= 1.5 * step


# --- refusals ----------------------------------------------------------------------------------


def test_refused_before_weight_training(quantized):
    model, _ = quantized(small_cnn((8, 8, 1), width=4), bits=False)
    with pytest.raises(ValueError, match=r"found 'bit_meta'.*set_bits"):
        kmm.fold_batch_norm(model)
    model.phase = "bit_search"
    with pytest.raises(ValueError, match="found 'bit_search'"):
        kmm.fold_batch_norm(model)


def test_refused_with_float_streams(quantized):
    space = kmm.SearchSpace((8, 4), 4, stream_bits=None)
    model, _ = quantized(small_resnet((8, 8, 1), width=4), space=space)
    with pytest.raises(ValueError, match=r"stream_bits=None.*stream_bits=8"):
        kmm.fold_batch_norm(model)


def test_refused_without_step_sizes():
    source = small_cnn((8, 8, 1), width=4)
    model = kmm.MetaMixModel.from_float(source)
    model.set_bits(kmm.uniform_assignment(source, activation_bits=4, weight_bits=4, edge_bits=8))
    with pytest.raises(ValueError, match=r"no step sizes yet.*calibrate"):
        kmm.fold_batch_norm(model)


def test_refused_for_another_model():
    with pytest.raises(TypeError, match="or BitMixerModel, found Functional"):
        kmm.fold_batch_norm(small_cnn((8, 8, 1), width=4))


@pytest.mark.parametrize(
    "layer",
    [
        layers.LayerNormalization(name="bad"),
        layers.Activation("gelu", name="bad"),
        layers.ReLU(4.0, name="bad"),
        layers.AveragePooling2D(3, 1, "same", name="bad"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_refused_for_what_was_left_in_float(layer, quantized):
    image = keras.Input((6, 6, 4), name="image")
    x = layers.Conv2D(4, 3, name="conv")(image)
    x = layers.GlobalAveragePooling2D()(layer(x))
    source = keras.Model(image, layers.Dense(3, name="logits")(x))
    model, _ = quantized(source, float_layers=["bad"])
    with pytest.raises(ValueError, match=r"\['bad'\] were left in float"):
        kmm.fold_batch_norm(model)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("dilation", [(1, 1), (2, 1), (2, 3)])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (2, 1), (1, 3)])
def test_a_depthwise_layer_of_any_strides_sums_what_its_windows_hold(strides, dilation, padding):
    rng, grid = np.random.default_rng(0), Grid.of(1.0, -128, 127)
    shape = (3, 2, 2, 1)
    geometry = {"strides": strides, "dilation_rate": dilation, "padding": padding}
    layer = IntegerMac("depthwise", 4, shape, grid, grid, **geometry)
    kernel, levels = rng.integers(-7, 8, shape), rng.integers(-128, 128, (2, 11, 10, 2))
    layer.set_integers(kernel, np.zeros(2), np.full(2, 1 / 64))
    for accumulator in ("float32", "float64"):
        layer.accumulator = accumulator
        found = numpy(layer(levels.astype(f32)))
        assert layer(keras.Input(levels.shape[1:])).shape[1:] == found.shape[1:]
        # Each window by itself.
        reach = [(taps - 1) * d + 1 for taps, d in zip(shape[:2], dilation, strict=True)]
        borders, sizes = [(0, 0)], []
        for size, read, stride in zip(levels.shape[1:3], reach, strides, strict=True):
            count = -(-size // stride) if padding == "same" else (size - read) // stride + 1
            border = max((count - 1) * stride + read - size, 0) if padding == "same" else 0
            borders.append((border // 2, border - border // 2))
            sizes.append(count)
        padded = np.pad(levels, [*borders, (0, 0)])
        assert found.shape == (2, *sizes, 2)
        for row, column in np.ndindex(*sizes):
            top, left = row * strides[0], column * strides[1]
            window = padded[:, top : top + reach[0] : dilation[0], left : left + reach[1]]
            window = window[:, :, :: dilation[1]]
            sums = np.sum(window * kernel[..., 0], axis=(1, 2))
            expected = np.clip(np.rint(sums / 64), -128, 127)
            np.testing.assert_array_equal(found[:, row, column], expected)

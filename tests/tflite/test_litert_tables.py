"""What LiteRT with XNNPACK computes for tables, for what moves codes and for constants, to the bit.

See test_litert_arithmetic.py for the other operators; a failure means that the runtime computes in
another way now, and that exported files no longer match training.
"""

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from keras_metamix.graph.operators.leaky_relu import IntegerLeakyReLU
from keras_metamix.graph.operators.lookup import IntegerTable
from keras_metamix.layers.batch_norm import AFFINE_INTEGER
from keras_metamix.layers.grid import Grid
from metamix_tflite.encoding import Fused, Op, TensorType

f32 = np.float32
CODES = np.arange(-128, 128)
TABLES = {"sigmoid": (Op.LOGISTIC, 1 / 256, -128), "tanh": (Op.TANH, 1 / 128, 0)}
LARGEST_CONCATENATION = 5


def int32(values):
    values = np.asarray(values, np.int32)
    return values.shape, TensorType.INT32, None, 0, values


def table_scales(rng):
    """Scales of the inputs: extreme ones, and the usual."""
    return [*np.geomspace(1e-4, 4.0, 41), *np.exp(rng.uniform(np.log(1e-4), np.log(4.0), 170))]


@pytest.mark.parametrize("function", TABLES)
def test_tables_of_all_codes(function, run_operator, int8):
    op, step, zero = TABLES[function]
    rng, shape = np.random.default_rng(0), (1, 16, 16, 1)
    output = Grid(float(step), zero, -128 - zero, 127 - zero, float(step))
    for number, scale in enumerate(f32(s) for s in table_scales(rng)):
        fixed = {0: -128, 1: 0, 2: 127}.get(number % 8)
        zero_point = int(rng.integers(-128, 128)) if fixed is None else fixed
        found, delegated = run_operator(
            op,
            [int8(shape, scale, zero_point)],
            int8(shape, f32(step), zero)[:4],
            version=2,
            arrays=[CODES.reshape(shape).astype(np.int8)],
        )
        grid = Grid(float(scale), zero_point, -128 - zero_point, 127 - zero_point, float(scale))
        layer = IntegerTable(function, grid, output)
        expected = layer.table() + zero
        assert delegated
        np.testing.assert_array_equal(found.reshape(-1), expected, err_msg=f"{scale} {zero_point}")
        levels = (CODES - zero_point).astype(f32)
        np.testing.assert_array_equal(np.asarray(layer(levels)) + zero, expected)


def test_elu_takes_any_output_scale(run_operator, int8):
    rng, shape = np.random.default_rng(0), (1, 16, 16, 1)
    for scale, step in np.exp(rng.uniform(-7, 1, (200, 2))).astype(f32):
        zeros = [int(zero) for zero in rng.integers(-128, 128, 2)]
        found, delegated = run_operator(
            Op.ELU,
            [int8(shape, scale, zeros[0])],
            int8(shape, step, zeros[1])[:4],
            arrays=[CODES.reshape(shape).astype(np.int8)],
        )
        grids = [
            Grid(float(s), zero, -128 - zero, 127 - zero, float(s))
            for s, zero in zip((scale, step), zeros, strict=True)
        ]
        expected = IntegerTable("elu", *grids).table() + zeros[1]
        assert delegated
        np.testing.assert_array_equal(found.reshape(-1), expected, err_msg=f"{scale} {step}")


@pytest.mark.parametrize("units", [1, 3, 26, 51, 77, 128, 255, 256])
def test_leaky_relu_of_one_scale(units, run_operator, int8):
    rng, shape = np.random.default_rng(units), (1, 16, 16, 1)
    for scale in np.exp(rng.uniform(-9, 2, 20)).astype(f32):
        zero = int(rng.integers(-128, 128))
        found, delegated = run_operator(
            Op.LEAKY_RELU,
            [int8(shape, scale, zero)],
            int8(shape, scale, zero)[:4],
            ("LeakyReluOptions", {"alpha": units / 256}),
            2,
            [CODES.reshape(shape).astype(np.int8)],
        )
        levels = CODES - zero
        below = (levels * units + 128) >> 8  # half is added before the shift, which floors
        assert delegated
        found = found.reshape(-1).astype(int) - zero
        np.testing.assert_array_equal(found, np.where(levels < 0, below, levels))
        layer = IntegerLeakyReLU(Grid(float(scale), zero, -128, 127, float(scale)), units)
        np.testing.assert_array_equal(found, layer(levels.astype(f32)))


@pytest.mark.parametrize("slope", [0.0, 0.001])
def test_leaky_relu_of_smaller_slopes_is_not_taken(slope, run_operator, int8):
    _, delegated = run_operator(
        Op.LEAKY_RELU,
        [int8((1, 16, 16, 1), 0.1)],
        int8((1, 16, 16, 1), 0.1)[:4],
        ("LeakyReluOptions", {"alpha": slope}),
        2,
        [CODES.reshape(1, 16, 16, 1).astype(np.int8)],
    )
    assert not delegated


def near_ties(function, count):
    """(scale, zero-point) of inputs some code of which lands next to a tie of the output."""
    rng, found = np.random.default_rng(1), []
    exact = {"sigmoid": lambda x: 256 / (1 + np.exp(-x)), "tanh": lambda x: 128 * np.tanh(x)}
    while len(found) < count:
        scale, zero_point = f32(np.exp(rng.uniform(-7, -2))), int(rng.integers(-128, 128))
        values = exact[function]((CODES - zero_point) * np.float64(scale))
        if np.abs(values - np.floor(values) - 0.5).min() < 3e-6:
            found.append((scale, zero_point))
    return found


@pytest.mark.parametrize("function", TABLES)
def test_tables_next_to_ties(function, run_operator, int8):
    op, step, zero = TABLES[function]
    shape = (1, 16, 16, 1)
    output = Grid(float(step), zero, -128 - zero, 127 - zero, float(step))
    known = {"sigmoid": (0.0017585394671186805, 112), "tanh": (0.007070929277688265, 20)}
    for scale, zero_point in [known[function], *near_ties(function, 60)]:
        found, _ = run_operator(
            op,
            [int8(shape, f32(scale), zero_point)],
            int8(shape, f32(step), zero)[:4],
            version=2,
            arrays=[CODES.reshape(shape).astype(np.int8)],
        )
        grid = Grid(float(scale), zero_point, -128 - zero_point, 127 - zero_point, float(scale))
        expected = IntegerTable(function, grid, output).table() + zero
        np.testing.assert_array_equal(found.reshape(-1), expected, err_msg=f"{scale} {zero_point}")


@pytest.mark.parametrize("function", TABLES)
def test_tables_are_the_function(function):
    # The real function at the code's value, to half a step.
    exact = {"sigmoid": lambda x: 1 / (1 + np.exp(-x)), "tanh": np.tanh}[function]
    _, step, zero = TABLES[function]
    output = Grid(float(step), zero, -128 - zero, 127 - zero, float(step))
    for scale in (0.001, 0.02, 0.1):
        table = IntegerTable(function, Grid.of(scale, -128, 127), output).table() * step
        real = np.clip(exact(CODES * np.float64(f32(scale))), -1, output.high * step)
        assert np.abs(table - real).max() <= 0.5001 * step


@pytest.mark.parametrize("axis", [1, 2, 3])
@pytest.mark.parametrize("count", range(2, LARGEST_CONCATENATION + 1))
def test_concatenation_keeps_the_codes(count, axis, run_operator, int8):
    rng = np.random.default_rng(count)
    for zero_point in (-128, 0, 112):
        arrays = []
        for _ in range(count):
            shape = [1, 4, 5, 3]
            shape[axis] = int(rng.integers(1, 7))
            arrays.append(rng.integers(-128, 128, shape).astype(np.int8))
        expected = np.concatenate(arrays, axis)
        found, delegated = run_operator(
            Op.CONCATENATION,
            [int8(a.shape, f32(0.1), zero_point) for a in arrays],
            int8(expected.shape, f32(0.1), zero_point)[:4],
            ("ConcatenationOptions", {"axis": axis, "fusedActivationFunction": Fused.NONE}),
            2,
            arrays,
        )
        assert delegated
        np.testing.assert_array_equal(found, expected)


def test_concatenation_of_more_runs_outside_xnnpack(run_operator, int8):
    # Why the writer makes a chain of them.
    rng = np.random.default_rng(0)
    arrays = [
        rng.integers(-128, 128, (1, 4, 5, 3)).astype(np.int8)
        for _ in range(LARGEST_CONCATENATION + 1)
    ]
    expected = np.concatenate(arrays, 3)
    found, delegated = run_operator(
        Op.CONCATENATION,
        [int8(a.shape, f32(0.1)) for a in arrays],
        int8(expected.shape, f32(0.1))[:4],
        ("ConcatenationOptions", {"axis": 3, "fusedActivationFunction": Fused.NONE}),
        2,
        arrays,
    )
    assert not delegated
    np.testing.assert_array_equal(found, expected)


def crop_options():
    return ("StridedSliceOptions", {"beginMask": 0b1001, "endMask": 0b1001})


@pytest.mark.parametrize("zero_point", [-128, 0, 120])
@pytest.mark.parametrize("cropping", [((0, 0), (0, 0)), ((1, 2), (0, 3)), ((3, 3), (2, 2))])
def test_strided_slice_crops(cropping, zero_point, run_operator, int8):
    codes = np.random.default_rng(1).integers(-128, 128, (1, 7, 8, 3)).astype(np.int8)
    (top, bottom), (left, right) = cropping
    expected = codes[:, top : 7 - bottom, left : 8 - right]
    height, width = expected.shape[1:3]
    found, delegated = run_operator(
        Op.STRIDED_SLICE,
        [
            int8(codes.shape, f32(0.1), zero_point),
            int32([0, top, left, 0]),
            int32([0, top + height, left + width, 0]),
            int32([1, 1, 1, 1]),
        ],
        int8(expected.shape, f32(0.1), zero_point)[:4],
        crop_options(),
        2,
        [codes],
    )
    assert delegated
    np.testing.assert_array_equal(found, expected)


def convolution(kind, strides, padding, dilation=1, fused="NONE"):
    fields = {
        "padding": getattr(schema.Padding, padding),
        "strideH": strides,
        "strideW": strides,
        "dilationHFactor": dilation,
        "dilationWFactor": dilation,
        "fusedActivationFunction": getattr(Fused, fused),
    }
    return kind, fields | ({"depthMultiplier": 1} if kind == "DepthwiseConv2DOptions" else {})


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize(
    ("groups", "inputs", "filters", "size", "strides", "dilation"),
    [
        (2, 8, 6, 3, 1, 1),
        (4, 8, 4, 3, 2, 1),
        (3, 6, 9, 1, 1, 1),
        (2, 4, 10, 3, 1, 2),
        (8, 8, 8, 3, 1, 1),  # as many groups as channels, one filter for each
        (4, 12, 4, 5, 2, 1),
        (8, 8, 16, 3, 1, 1),
    ],
)
def test_grouped_convolution(
    groups, inputs, filters, size, strides, dilation, padding, run_operator, int8, half_even
):
    rng = np.random.default_rng(filters)
    for zero_in in (-128, 0, 112):
        codes = rng.integers(zero_in, 128, (1, 9, 10, inputs)).astype(np.int8)
        kernel = rng.integers(-127, 128, (size, size, inputs // groups, filters))
        bias = rng.integers(-500, 500, filters)
        # Each group on its own: TensorFlow's integers in float64, exact.
        levels = np.split(codes.astype(np.float64) - zero_in, groups, -1)
        parts = [
            tf.nn.conv2d(x, k.astype(np.float64), strides, padding, dilations=dilation).numpy()
            for x, k in zip(levels, np.split(kernel, groups, -1), strict=True)
        ]
        sums = np.concatenate(parts, -1).astype(np.int64) + bias
        source, scales = f32(0.02), np.exp(rng.uniform(-6, -3, filters)).astype(f32)
        output = f32(np.abs(sums * scales * source).max() / 150)
        weights = kernel.transpose(3, 0, 1, 2)
        found, delegated = run_operator(
            Op.CONV_2D,
            [
                int8(codes.shape, source, zero_in),
                int8(weights.shape, scales, 0, weights),
                ((filters,), TensorType.INT32, source * scales, 0, bias),
            ],
            int8(sums.shape, output)[:4],
            convolution("Conv2DOptions", strides, padding, dilation),
            3,
            [codes],
        )
        assert delegated
        expected = half_even(sums, source * scales / output, 0, -128, 127)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("fused", ["NONE", "RELU", "RELU_N1_TO_1"])
def test_a_depthwise_weight_of_64_scales_and_shifts(fused, run_operator, int8, half_even):
    rng, channels, shape = np.random.default_rng(3), 32, (1, 16, 16, 32)
    codes = np.repeat(CODES.reshape(1, 16, 16, 1), channels, -1).astype(np.int8)
    ties = 0
    for trial in range(30):
        zero_in, zero_out, low, high = int(rng.choice([-128, 0, 112])), 0, -128, 127
        source, output = (f32(v) for v in np.exp(rng.uniform(-4, -1, 2)))
        if fused == "RELU":
            zero_out = low = int(rng.choice([-128, 112, 120]))
        elif fused == "RELU_N1_TO_1":
            output, low, high = f32(1 / 7), -7, 7
        scale = np.exp(rng.uniform(-2, 2, channels))
        if trial % 3 == 0:  # every other code lies on a tie
            source = output = f32(1 / 7) if fused == "RELU_N1_TO_1" else f32(2.0**-5)
            scale[:] = 0.5
        sign = rng.choice([-1, 1], channels)
        scales = (scale / AFFINE_INTEGER).astype(f32)
        bias = rng.integers(-3000, 3000, channels) if trial % 3 else 0 * sign
        weights = (AFFINE_INTEGER * sign).reshape(1, 1, 1, channels)
        found, delegated = run_operator(
            Op.DEPTHWISE_CONV_2D,
            [
                int8(shape, source, zero_in),
                int8(weights.shape, scales, 0, weights, 3),
                ((channels,), TensorType.INT32, source * scales, 0, bias),
            ],
            int8(shape, output, zero_out)[:4],
            convolution("DepthwiseConv2DOptions", 1, "VALID", fused=fused),
            3,
            [codes],
        )
        sums = (codes.astype(np.int64) - zero_in) * weights + bias
        multiplier = source * scales / output
        scaled = sums.astype(f32) * multiplier
        ties += np.sum(np.abs(scaled) % 1 == 0.5)
        assert delegated
        expected = half_even(sums, multiplier, zero_out, low, high)
        np.testing.assert_array_equal(found, expected)
        real = sums * np.float64(source) * scales.astype(np.float64) / np.float64(output)
        clipped = np.clip(real, low - zero_out, high - zero_out)
        assert np.abs(expected - zero_out - clipped).max() <= 0.5001
    assert ties > 1000


@pytest.mark.parametrize(
    ("size", "strides", "padding"),
    [((2, 2), 2, "VALID"), ((3, 3), 1, "VALID"), ((3, 2), 2, "VALID"), ((2, 2), 2, "SAME")],
)
def test_a_depthwise_convolution_with_ones_is_average_pooling(
    size, strides, padding, run_operator, int8, half_even
):
    rng, channels, count = np.random.default_rng(4), 16, size[0] * size[1]
    ties = 0
    for trial in range(20):
        zero_in, zero_out = (int(z) for z in rng.choice([-128, 0, 112], 2))
        source = f32(np.exp(rng.uniform(-4, 0)))
        output = source if trial % 2 else f32(source * np.exp(rng.uniform(-1, 1)))
        codes = rng.integers(-128, 128, (1, 8, 8, channels)).astype(np.int8)
        levels = codes.astype(np.float64) - zero_in
        mean = tf.nn.avg_pool2d(levels, size, strides, padding).numpy()
        sums = np.rint(mean * count).astype(np.int64)
        weights, scales = np.ones((1, *size, channels), int), np.full(channels, f32(1 / count))
        found, delegated = run_operator(
            Op.DEPTHWISE_CONV_2D,
            [
                int8(codes.shape, source, zero_in),
                int8(weights.shape, scales, 0, weights, 3),
                ((channels,), TensorType.INT32, source * scales, 0, np.zeros(channels)),
            ],
            int8(sums.shape, output, zero_out)[:4],
            convolution("DepthwiseConv2DOptions", strides, padding),
            3,
            [codes],
        )
        assert delegated
        multiplier = source * scales / output
        ties += np.sum(np.abs(sums.astype(f32) * multiplier) % 1 == 0.5)
        expected = half_even(sums, multiplier, zero_out, -128, 127)
        np.testing.assert_array_equal(found, expected)
    assert (ties > 0) == (count % 2 == 0)  # thirds and ninths are never halves

"""What LiteRT with XNNPACK computes for each operator that files of ours hold, to the bit.

The formulas are written out in NumPy, here and in the operators' families, and are those of
keras_metamix's integer layers. They were read off XNNPACK's scalar and AVX512 kernels by running
ai-edge-litert 2.3.0: a failure means that the runtime rounds in another way now, and that exported
files no longer match training.
"""

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from keras_metamix.graph.operators.mean import IntegerMean
from keras_metamix.layers.grid import Grid, clip_level
from keras_metamix.ops import resize_levels
from metamix_tflite.encoding import Fused, Op, TensorType
from metamix_tflite.file_graph import FileGraph, FileOperator, FileTensor
from metamix_tflite.operators import FAMILY, LITERT
from metamix_tflite.operators.base import Call, Family

f32 = np.float32
CODES = np.arange(-128, 128)
# All 65,536 pairs of codes.
PAIRS = [
    c.reshape(1, 256, 256, 1).astype(np.int8) for c in np.meshgrid(CODES, CODES, indexing="ij")
]


def computed(op, inputs, output, activation="NONE", constant=None):
    """The codes that a family says an operator computes.

    `inputs` are (codes, scale, zero-point), `output` is (shape, scale, zero-point); `constant` are
    the integers that it reads behind them.
    """

    def tensor(name, shape, scale, zero_point):
        scales, zeros = np.array([scale], f32), np.array([zero_point])
        return FileTensor(name, shape, "INT8", scales, zeros, 0, None)

    read = [tensor(f"i{n}", codes.shape, s, z) for n, (codes, s, z) in enumerate(inputs)]
    indices = tuple(range(len(read)))
    operator = FileOperator(op, indices, (len(read),), activation)
    graph = FileGraph([*read, tensor("o", *output)], [operator], indices, (len(read),), (), (), {})
    levels = [codes.astype(np.int64) - zero_point for codes, _, zero_point in inputs]
    levels += [] if constant is None else [np.array(constant)]
    return FAMILY[op].computed(Call(graph, operator), levels) + output[2]


OF_TWO_TENSORS = [
    name
    for name, operator in LITERT.items()
    if operator.inputs == (2,) and type(FAMILY[name]).computed is not Family.computed
    if operator.fused is not None
]


@pytest.mark.parametrize("fused", ["NONE", "RELU", "RELU6", "RELU_N1_TO_1"])
@pytest.mark.parametrize("op", OF_TWO_TENSORS)
def test_all_pairs_of_codes_are_computed_as_the_family_says(op, fused, run_operator, int8):
    rng = np.random.default_rng(0)
    options = LITERT[op].fused.__name__, {"fusedActivationFunction": getattr(Fused, fused)}
    for trial in range(20):
        first, second, output = (f32(v) for v in np.exp(rng.uniform(-4, 0, 3)))
        if op == "MUL":
            output = f32(first * second * np.exp(rng.uniform(0, 5)))
        elif trial % 4 == 0:
            output = f32(first * (2, 4)[trial // 4 % 2])
        zero_points = [int(z) for z in rng.integers(-128, 127, 3)]
        inputs = list(zip(PAIRS, (first, second), zero_points[:2], strict=True))
        found, delegated = run_operator(
            getattr(Op, op),
            [int8(codes.shape, scale, zero_point) for codes, scale, zero_point in inputs],
            int8(PAIRS[0].shape, output, zero_points[2])[:4],
            options,
            2,
            PAIRS,
        )
        expected = computed(op, inputs, (PAIRS[0].shape, output, zero_points[2]), fused)
        assert delegated
        assert np.sum(found != expected) == 0, (trial, first, second, output, zero_points)


@pytest.mark.parametrize("ratio", [1, 2, 4])
def test_add_rounds_ties_up_where_the_fixed_point_is_exact(ratio, run_operator, int8):
    # Inputs of one scale, an output scale of 1, 2 or 4 times it: every factor is a power of two,
    # so half + shift is floor(x + 1/2), which half-to-even is not.
    shape = (1, 256, 256, 1)
    found, _ = run_operator(
        Op.ADD,
        [int8(shape, f32(0.25)), int8(shape, f32(0.25))],
        int8(shape, f32(0.25 * ratio))[:4],
        ("AddOptions", {"fusedActivationFunction": Fused.NONE}),
        2,
        PAIRS,
    )
    real = (PAIRS[0].astype(np.float64) + PAIRS[1]) / ratio
    np.testing.assert_array_equal(found, np.clip(np.floor(real + 0.5), -128, 127))
    ties = np.sum(found != np.clip(np.rint(real), -128, 127))
    assert (ties > 0) == (ratio > 1)


@pytest.mark.parametrize("fused", ["RELU", "RELU_N1_TO_1"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_product_with_one_rescales(fused, bits, run_operator, int8, half_even):
    rng = np.random.default_rng(bits)
    codes = CODES.reshape(1, 16, 16, 1).astype(np.int8)
    for _ in range(60):
        source = f32(np.exp(rng.uniform(-4, 0)))
        step = f32(source * np.exp(rng.uniform(-2, 4)))
        if fused == "RELU":
            zero_in, label, zero_out = -128, step, 128 - 2**bits
            low, high = zero_out, 127
        else:
            high = 2 ** (bits - 1) - 1
            zero_in, label, zero_out, low = 0, f32(1.0 / high), 0, -high
        factor = f32(np.float64(label) / np.float64(step))
        found, delegated = run_operator(
            Op.MUL,
            [
                int8(codes.shape, source, zero_in),
                int8((1,), factor, 0, np.ones(1, np.int8)),
            ],
            int8(codes.shape, label, zero_out)[:4],
            ("MulOptions", {"fusedActivationFunction": getattr(Fused, fused)}),
            2,
            [codes],
        )
        multiplier = f32(f32(source * factor) / label)
        expected = half_even(codes.astype(np.int64) - zero_in, multiplier, zero_out, low, high)
        assert delegated
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("bits", [4, 8])
def test_relu6_clips_at_the_rounded_code(bits, run_operator, int8):
    # Where 6 lies between two levels the last code is rint(float32(6) / scale + zero-point), the
    # sum in float32: a quotient just below a half may be rounded up (45.499996 - 128 = -82.5).
    codes = CODES.reshape(1, 16, 16, 1).astype(np.int8)
    zero = 128 - 2**bits
    for level in np.arange(2.0, 2**bits - 1, 0.5 if bits == 4 else 3.5):
        near = f32(6.0 / level)
        for scale in (np.nextafter(near, f32(0)), near, np.nextafter(near, f32(9))):
            found, _ = run_operator(
                Op.MUL,
                [int8(codes.shape, scale, -128), int8((1,), f32(1), 0, np.ones(1, np.int8))],
                int8(codes.shape, scale, zero)[:4],
                ("MulOptions", {"fusedActivationFunction": Fused.RELU6}),
                2,
                [codes],
            )
            last = min(int(np.rint(f32(6.0) / scale + f32(zero))), 127)
            level_of_six = clip_level(Grid.of(float(scale), 0, 2**bits - 1), 6.0)
            assert min(level_of_six, 2**bits - 1) == last - zero, scale
            np.testing.assert_array_equal(
                found, np.clip(codes.astype(int) + 128 + zero, zero, last)
            )


def mean_codes(sums, count, scales, zero_points):
    """XNNPACK's mean of `count` codes: both zero-points meet the product as one float32 term."""
    multiplier = f32(scales[0] / scales[1]) * f32(f32(1) / f32(count))
    offset = f32(zero_points[1]) - f32(zero_points[0] * count) * multiplier
    return np.clip(np.rint(sums.astype(f32) * multiplier + offset), -128, 127).astype(np.int64)


def run_mean(run_operator, int8, codes, scales, zero_points, keep=False):
    """LiteRT's codes for (1, height, width, channels) of them."""
    axes = ((2,), TensorType.INT32, None, 0, np.array([1, 2]))
    channels = codes.shape[-1]
    found, delegated = run_operator(
        Op.MEAN,
        [int8(codes.shape, scales[0], zero_points[0]), axes],
        int8((1, 1, 1, channels) if keep else (1, channels), scales[1], zero_points[1])[:4],
        ("ReducerOptions", {"keepDims": keep}),
        2,
        [codes],
    )
    assert delegated
    return found.reshape(channels)


@pytest.mark.parametrize("size", [(2, 2), (2, 3), (1, 7), (7, 7), (14, 14)])
@pytest.mark.parametrize("equal_scales", [True, False])
def test_mean_rounds_half_to_even(size, equal_scales, run_operator, int8):
    count = size[0] * size[1]
    rng = np.random.default_rng(count)
    ties = 0
    for trial in range(12):
        source = f32(np.exp(rng.uniform(-4, 0)))
        output = source if equal_scales else f32(source * np.exp(rng.uniform(-2, 1)))
        zero_points = int(rng.choice([-128, 0, 120])), int(rng.choice([-128, 0]))
        codes = rng.integers(-128, 128, (1, *size, 64)).astype(np.int8)
        found = run_mean(run_operator, int8, codes, (source, output), zero_points, bool(trial % 2))
        sums = codes.astype(np.int64).sum((0, 1, 2))
        ties += np.sum(np.abs(sums / count % 1.0) == 0.5)
        np.testing.assert_array_equal(found, mean_codes(sums, count, (source, output), zero_points))
        said = computed(
            "MEAN",
            [(codes, source, zero_points[0])],
            ((1, 64), output, zero_points[1]),
            constant=[1, 2],
        )
        np.testing.assert_array_equal(found, said[0])
    if size in ((2, 2), (2, 3), (14, 14)):
        assert ties > 0  # the case that tells half-to-even from half-away


def near_ties(count, half_even):
    """Sums, scales and zero-points where a zero-point in float32 rounds to another code.

    Where one of the two terms makes the product a tie that it is not: 1 sum in 2 million.
    """
    rng = np.random.default_rng(count)
    sums = np.arange(-128 * count, 127 * count + 1)
    for _ in range(400):
        source = f32(np.exp(rng.uniform(-4, 0)))
        scales = source, f32(source * np.exp(rng.uniform(-2, 1)))
        zero_points = int(rng.choice([-128, 112])), int(rng.choice([-128, 0]))
        multiplier = f32(scales[0] / scales[1]) / f32(count)
        levels = sums - zero_points[0] * count
        plain = half_even(levels, multiplier, zero_points[1], -128, 127)
        found = sums[plain != mean_codes(sums, count, scales, zero_points)]
        if found.size:
            yield found, scales, zero_points


@pytest.mark.parametrize("count", [36, 49, 64])
def test_mean_adds_zero_points_in_float32(count, run_operator, int8, half_even):
    cases = list(near_ties(count, half_even))
    assert cases
    for sums, scales, zero_points in cases:
        low, above = np.divmod(sums, count)
        codes = low + (np.arange(count)[:, None] < above)  # columns of these sums
        found = run_mean(
            run_operator,
            int8,
            codes.reshape(1, 1, count, sums.size).astype(np.int8),
            scales,
            zero_points,
        )
        np.testing.assert_array_equal(found, mean_codes(sums, count, scales, zero_points))


@pytest.mark.parametrize("count", [36, 49, 64])
def test_integer_mean_is_that_of_xnnpack(count, half_even):
    for sums, scales, zero_points in near_ties(count, half_even):
        grids = [
            Grid(float(scale), zero, -128 - zero, 127 - zero, float(scale))
            for scale, zero in zip(scales, zero_points, strict=True)
        ]
        low, above = np.divmod(sums, count)
        codes = low + (np.arange(count)[:, None] < above)
        levels = (codes - zero_points[0]).reshape(1, 1, count, sums.size).astype(f32)
        found = np.asarray(IntegerMean(*grids)(levels)).reshape(-1) + zero_points[1]
        np.testing.assert_array_equal(found, mean_codes(sums, count, scales, zero_points))


def test_quantize_multiplies_by_the_reciprocal(run_operator, int8):
    rng = np.random.default_rng(2)
    values = (rng.normal(size=(1, 64, 64, 4)) * 3).astype(f32)
    for scale in (0.5, 1.0, *np.exp(rng.uniform(-5, 0, 30))):
        scale = f32(scale)
        values[0, 0] = f32(np.linspace(-130, 130, 256).reshape(64, 4) // 1 + 0.5) * scale
        found, delegated = run_operator(
            Op.QUANTIZE,
            [(values.shape, TensorType.FLOAT32, None, 0, None)],
            int8(values.shape, scale)[:4],
            arrays=[values],
        )
        expected = np.clip(np.rint(values * f32(f32(1) / scale)), -128, 127)
        assert delegated
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("zero_point", [-128, 0, 112])
def test_dequantize_multiplies_by_the_scale(zero_point, run_operator, int8):
    codes = CODES.reshape(1, 256).astype(np.int8)
    scale = f32(0.037)
    found, _ = run_operator(
        Op.DEQUANTIZE,
        [int8(codes.shape, scale, zero_point)],
        (codes.shape, TensorType.FLOAT32, None, 0),
        version=2,
        arrays=[codes],
    )
    np.testing.assert_array_equal(found, (codes.astype(f32) - f32(zero_point)) * scale)


@pytest.mark.parametrize("zero_point", [-128, 0, 120])
def test_moves_keep_the_codes(zero_point, run_operator, int8):
    codes = np.random.default_rng(3).integers(-128, 128, (1, 5, 5, 3)).astype(np.int8)
    paddings = ((4, 2), TensorType.INT32, None, 0, np.array([[0, 0], [1, 2], [0, 1], [0, 0]]))
    padded, _ = run_operator(
        Op.PAD,
        [int8(codes.shape, f32(0.1), zero_point), paddings],
        int8((1, 8, 6, 3), f32(0.1), zero_point)[:4],
        ("PadOptions", {}),
        2,
        [codes],
    )
    expected = np.pad(
        codes, [(0, 0), (1, 2), (0, 1), (0, 0)], constant_values=zero_point
    )  # level 0, whatever the zero-point
    np.testing.assert_array_equal(padded, expected)
    pooled, _ = run_operator(
        Op.MAX_POOL_2D,
        [int8(codes.shape, f32(0.1), zero_point)],
        int8((1, 2, 2, 3), f32(0.1), zero_point)[:4],
        (
            "Pool2DOptions",
            {
                "padding": schema.Padding.VALID,
                "filterHeight": 2,
                "filterWidth": 2,
                "strideH": 2,
                "strideW": 2,
            },
        ),
        2,
        [codes],
    )
    np.testing.assert_array_equal(
        pooled, codes[:, :4, :4].reshape(1, 2, 2, 2, 2, 3).max(axis=(2, 4))
    )


@pytest.mark.parametrize(
    ("size", "result"), [((5, 7), (10, 14)), ((1, 3), (4, 9)), ((6, 9), (11, 4)), ((8, 8), (1, 3))]
)
@pytest.mark.parametrize("zero_point", [-128, 0, 112])
def test_bilinear_weighs_in_steps_of_11_bits(size, result, zero_point, run_operator, int8):
    codes = np.random.default_rng(4).integers(-128, 128, (1, *size, 5)).astype(np.int8)
    options = "ResizeBilinearOptions", {"alignCorners": False, "halfPixelCenters": True}
    found, delegated = run_operator(
        Op.RESIZE_BILINEAR,
        [
            int8(codes.shape, f32(0.1), zero_point),
            ((2,), TensorType.INT32, None, 0, np.array(result)),
        ],
        int8((1, *result, 5), f32(0.1), zero_point)[:4],
        options,
        3,
        [codes],
    )
    levels = resize_levels((codes - f32(zero_point)).astype(f32), result)
    assert delegated
    np.testing.assert_array_equal(found, np.asarray(levels) + zero_point)
    real = keras.ops.image.resize(codes.astype(f32), result, "bilinear")
    assert np.max(np.abs(found - np.asarray(real))) <= 0.5 + 2**-4  # the weights' rounding


@pytest.mark.parametrize(("operator", "block"), [("DepthToSpace", 2), ("SpaceToDepth", 3)])
def test_blocks_of_pixels_keep_the_codes(operator, block, run_operator, int8):
    codes = np.random.default_rng(5).integers(-128, 128, (1, 6, 3, 8)).astype(np.int8)
    name = {"DepthToSpace": "depth_to_space", "SpaceToDepth": "space_to_depth"}[operator]
    expected = np.asarray(getattr(keras.ops, name)(codes, block))
    found, delegated = run_operator(
        getattr(Op, name.upper()),
        [int8(codes.shape, f32(0.1), 3)],
        int8(expected.shape, f32(0.1), 3)[:4],
        (f"{operator}Options", {"blockSize": block}),
        arrays=[codes],
    )
    assert delegated
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("size", "stride"), [(2, 2), (3, 2), (4, 2), (3, 1)])
@pytest.mark.parametrize("fused", ["NONE", "RELU", "RELU_N1_TO_1"])
def test_transposed_convolution(size, stride, padding, fused, run_operator, int8, half_even):
    rng = np.random.default_rng(size)
    codes = rng.integers(-128, 128, (1, 4, 5, 6)).astype(np.int8)
    kernel = rng.integers(-127, 128, (3, size, size, 6)).astype(np.int8)
    full = np.zeros((1, 3 * stride + size, 4 * stride + size, 3), np.int64)  # of 4 x 5 pixels
    for row in range(size):
        for column in range(size):
            rows = slice(row, row + 3 * stride + 1, stride)
            columns = slice(column, column + 4 * stride + 1, stride)
            full[:, rows, columns] += (codes.astype(np.int64) - 7) @ kernel[:, row, column].T
    cut = (size - stride) // 2 if padding == "same" else 0
    shape = (4 * stride, 5 * stride) if padding == "same" else full.shape[1:3]
    sums = full[:, cut : cut + shape[0], cut : cut + shape[1]]
    scales, bias = f32(np.exp(rng.uniform(-6, -2, 3))), rng.integers(-2000, 2000, 3)
    label = f32(1 / 7) if fused == "RELU_N1_TO_1" else f32(np.max(np.abs(sums)) * 1e-4)
    zero_point = 0 if fused == "RELU_N1_TO_1" else -30
    found, delegated = run_operator(
        Op.TRANSPOSE_CONV,
        [
            ((4,), TensorType.INT32, None, 0, np.array([1, *shape, 3])),
            int8(kernel.shape, scales, 0, kernel),
            int8(codes.shape, f32(0.05), 7), ((3,), TensorType.INT32, f32(0.05) * scales, 0, bias),
        ],
        int8(sums.shape, label, zero_point)[:4],
        ("TransposeConvOptions", {
            "padding": getattr(schema.Padding, padding.upper()), "strideH": stride,
            "strideW": stride, "fusedActivationFunction": getattr(Fused, fused)}),
        3 if fused == "NONE" else 4,
        [codes],
    )  # fmt: skip
    low, high = {"NONE": (-128, 127), "RELU": (-30, 127), "RELU_N1_TO_1": (-7, 7)}[fused]
    assert delegated
    multiplier = f32(f32(0.05) * scales) / label
    np.testing.assert_array_equal(found, half_even(sums + bias, multiplier, zero_point, low, high))

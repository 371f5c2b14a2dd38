"""What LiteRT with XNNPACK computes for each operator that files of ours hold, to the bit.

The formulas are written out here in NumPy and are those of keras_metamix/layers/integer.py. They
were read off XNNPACK's scalar and AVX512 kernels by running ai-edge-litert 2.3.0: a failure means
that the runtime rounds in another way now, and that exported files no longer match training.
"""

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from keras_metamix.layers.grid import Grid, relu6_level
from metamix_tflite.flatbuffer import Fused, Op, TensorType

f32 = np.float32
CODES = np.arange(-128, 128)
# All 65,536 pairs of codes.
PAIRS = [
    c.reshape(1, 256, 256, 1).astype(np.int8) for c in np.meshgrid(CODES, CODES, indexing="ij")
]


def half_even(accumulator, multiplier, zero_point, low, high):
    """float32 requantization: clip(round(acc * multiplier) + zero_point, low, high)."""
    multiplier = np.asarray(multiplier, f32)
    rounded = np.rint(accumulator.astype(f32) * multiplier).astype(np.int64)
    return np.clip(rounded + zero_point, low, high)


def fixed_point_sum(a, b, scales, zero_points, low):
    """XNNPACK's vadd: ratios as integers of 21 bits, half added before the shift right."""
    ratios = [f32(scales[0]) / f32(scales[2]), f32(scales[1]) / f32(scales[2])]
    shift = 20 - (int(np.frexp(max(ratios))[1]) - 1)
    first, second = (int(np.rint(np.ldexp(np.float64(r), shift))) for r in ratios)
    total = (a.astype(np.int64) - zero_points[0]) * first
    total += (b.astype(np.int64) - zero_points[1]) * second
    shifted = (total + (1 << (shift - 1))) >> shift
    return np.clip(shifted + zero_points[2], low, 127)


def test_add_is_fixed_point_for_all_pairs_of_codes(run_operator, int8):
    rng = np.random.default_rng(0)
    shape = (1, 256, 256, 1)
    for trial in range(60):
        first, second, output = (f32(v) for v in np.exp(rng.uniform(-4, 0, 3)))
        if trial % 4 == 0:
            output = f32(first * (2, 4)[trial // 4 % 2])
        zero_points = [int(z) for z in rng.integers(-128, 127, 3)]
        fused = int(rng.choice([Fused.NONE, Fused.RELU]))
        found, delegated = run_operator(
            Op.ADD,
            [int8(shape, first, zero_points[0]), int8(shape, second, zero_points[1])],
            int8(shape, output, zero_points[2])[:4],
            ("AddOptions", {"fusedActivationFunction": fused}),
            2,
            PAIRS,
        )
        low = zero_points[2] if fused == Fused.RELU else -128
        expected = fixed_point_sum(*PAIRS, (first, second, output), zero_points, low)
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
def test_product_with_one_rescales(fused, bits, run_operator, int8):
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


def test_product_of_two_tensors(run_operator, int8):
    rng = np.random.default_rng(1)
    shape = (1, 256, 256, 1)
    for _ in range(20):
        first, second = (f32(v) for v in np.exp(rng.uniform(-4, 0, 2)))
        output = f32(first * second * np.exp(rng.uniform(0, 5)))
        zero_points = [int(z) for z in rng.choice([-128, 0, 112], 3)]
        found, _ = run_operator(
            Op.MUL,
            [int8(shape, first, zero_points[0]), int8(shape, second, zero_points[1])],
            int8(shape, output, zero_points[2])[:4],
            ("MulOptions", {"fusedActivationFunction": Fused.NONE}),
            2,
            PAIRS,
        )
        product = (PAIRS[0].astype(np.int64) - zero_points[0]) * (
            PAIRS[1].astype(np.int64) - zero_points[1]
        )
        multiplier = f32(f32(first * second) / output)
        np.testing.assert_array_equal(
            found, half_even(product, multiplier, zero_points[2], -128, 127)
        )


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
            level_of_six = relu6_level(Grid.of(float(scale), 0, 2**bits - 1))
            assert min(level_of_six, 2**bits - 1) == last - zero, scale
            np.testing.assert_array_equal(
                found, np.clip(codes.astype(int) + 128 + zero, zero, last)
            )


@pytest.mark.parametrize("count", [(2, 2), (2, 3), (1, 7), (7, 7), (14, 14)])
@pytest.mark.parametrize("equal_scales", [True, False])
def test_mean_rounds_half_to_even(count, equal_scales, run_operator, int8):
    rng = np.random.default_rng(count[0] * count[1])
    axes = ((2,), TensorType.INT32, None, 0, np.array([1, 2]))
    ties = 0
    for trial in range(12):
        source = f32(np.exp(rng.uniform(-4, 0)))
        output = source if equal_scales else f32(source * np.exp(rng.uniform(-2, 1)))
        zero_in, zero_out = int(rng.choice([-128, 0, 120])), int(rng.choice([-128, 0]))
        keep = bool(trial % 2)
        levels = rng.integers(-128, 128, (1, *count, 64)).astype(np.int8)
        found, delegated = run_operator(
            Op.MEAN,
            [int8(levels.shape, source, zero_in), axes],
            int8((1, 1, 1, 64) if keep else (1, 64), output, zero_out)[:4],
            ("ReducerOptions", {"keepDims": keep}),
            2,
            [levels],
        )
        sums = (levels.astype(np.int64) - zero_in).sum((1, 2))
        ties += np.sum(np.abs(sums / (count[0] * count[1]) % 1.0) == 0.5)
        multiplier = f32(f32(source / output) / f32(count[0] * count[1]))
        expected = half_even(sums, multiplier, zero_out, -128, 127)
        assert delegated
        np.testing.assert_array_equal(found.reshape(1, 64), expected)
    if count in ((2, 2), (2, 3), (14, 14)):
        assert ties > 0  # the case that tells half-to-even from half-away


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


# --- multiply-accumulate -----------------------------------------------------------------------


def same_pad(levels, size, strides):
    """Zeros around (height, width) as SAME has it."""
    amounts = [(0, 0)]
    for length in levels.shape[1:3]:
        total = max((-(-length // strides) - 1) * strides + size - length, 0)
        amounts.append((total // 2, total - total // 2))
    return np.pad(levels, [*amounts, (0, 0)])


def patches(levels, size, strides):
    """int64 patches, shape (1, height, width, size, size, channels)."""
    padded = same_pad(levels, size, strides)
    view = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))
    return view[:, ::strides, ::strides].transpose(0, 1, 2, 4, 5, 3)


def mac_case(kind, weight_bits, rng):
    """Random levels, integers and grids of one layer."""
    inputs, outputs = (int(n) for n in rng.integers(1, 40, 2))
    size = 1 if kind == "FULLY_CONNECTED" else 3
    strides = 1 if kind == "FULLY_CONNECTED" else int(rng.integers(1, 3))
    if kind == "FULLY_CONNECTED" and weight_bits <= 4:
        inputs *= 2  # two weights share a byte
    reach = 2 ** (weight_bits - 1) - 1
    shape = (size, size, inputs, 1 if kind == "DEPTHWISE_CONV_2D" else outputs)
    kernel = rng.integers(-reach, reach + 1, shape)
    zero_point = int(rng.choice([-128, 112, 120, 124, 0, 3]))
    codes = rng.integers(zero_point, 128, (1, 7, 8, inputs)).astype(np.int8)
    windows = patches(codes.astype(np.int64) - zero_point, size, strides)
    if kind == "DEPTHWISE_CONV_2D":
        sums = np.einsum("nhwijc,ijc->nhwc", windows, kernel[..., 0])
    else:
        sums = np.einsum("nhwijc,ijco->nhwo", windows, kernel)
    return codes, zero_point, kernel, strides, sums


def mac_fields(kind, kernel, scales, weight_type, strides, fused):
    """Weight tensor, options and version."""
    if kind == "FULLY_CONNECTED":
        weights = kernel[0, 0].T
        tensor = (weights.shape, weight_type, scales, 0, weights, 0)
        return tensor, ("FullyConnectedOptions", fused | {"keepNumDims": True}), 12
    stride = {"padding": schema.Padding.SAME, "strideH": strides, "strideW": strides}
    dilation = {"dilationHFactor": 1, "dilationWFactor": 1}
    weights = kernel.transpose(3, 0, 1, 2)
    tensor = (weights.shape, weight_type, scales, 0, weights, 0)
    if kind == "CONV_2D":
        return tensor, ("Conv2DOptions", fused | stride | dilation), 3
    tensor = (*tensor[:5], 3)
    depth = {"depthMultiplier": 1}
    return tensor, ("DepthwiseConv2DOptions", fused | stride | dilation | depth), 3


@pytest.mark.parametrize("fused", ["NONE", "RELU", "RELU_N1_TO_1"])
@pytest.mark.parametrize(
    ("kind", "weight_bits"),
    [("CONV_2D", 8), ("DEPTHWISE_CONV_2D", 8), ("FULLY_CONNECTED", 8), ("FULLY_CONNECTED", 4)],
)
def test_mac_is_a_float32_product_rounded_half_to_even(
    kind, weight_bits, fused, run_operator, int8
):
    rng = np.random.default_rng(5)
    weight_type = TensorType.INT4 if weight_bits <= 4 else TensorType.INT8
    for _ in range(20):
        codes, zero_in, kernel, strides, sums = mac_case(kind, weight_bits, rng)
        channels = sums.shape[-1]
        bias = rng.integers(-500, 500, channels)
        sums = sums + bias
        source = f32(np.exp(rng.uniform(-4, -1)))
        scales = np.exp(rng.uniform(-6, -2, channels)).astype(f32)
        largest = np.abs(sums * scales * source).max()
        bits = int(rng.integers(2, 9))
        output = f32(largest / rng.uniform(30, 300))
        zero_out, low, high = 0, -128, 127
        if fused == "RELU":
            zero_out = low = 128 - 2**bits
        elif fused == "RELU_N1_TO_1":
            high = 2 ** (bits - 1) - 1
            low, output = -high, f32(1.0 / high)
            scales = (scales * output * high / largest).astype(f32)
        weights, options, version = mac_fields(
            kind,
            kernel,
            scales,
            weight_type,
            strides,
            {"fusedActivationFunction": getattr(Fused, fused)},
        )
        found, delegated = run_operator(
            getattr(Op, kind),
            [
                int8(codes.shape, source, zero_in),
                weights,
                ((channels,), TensorType.INT32, source * scales, 0, bias),
            ],
            int8(sums.shape, output, zero_out)[:4],
            options,
            version,
            [codes],
        )
        multiplier = (source * scales) / output
        assert delegated
        np.testing.assert_array_equal(found, half_even(sums, multiplier, zero_out, low, high))


@pytest.mark.parametrize("kind", ["CONV_2D", "DEPTHWISE_CONV_2D"])
def test_int4_convolutions_run_outside_xnnpack(kind, run_operator, int8):
    # Why "fast" holds them in INT8: version 6 is the first with INT4 and XNNPACK leaves it.
    rng = np.random.default_rng(6)
    codes, zero_in, kernel, strides, sums = mac_case(kind, 4, rng)
    source, scales = f32(0.05), np.full(sums.shape[-1], 0.02, f32)
    output = f32(np.abs(sums * source * scales).max() / 120)
    weights, options, _ = mac_fields(
        kind, kernel, scales, TensorType.INT4, strides, {"fusedActivationFunction": Fused.NONE}
    )
    bias = ((sums.shape[-1],), TensorType.INT32, source * scales, 0, np.zeros(sums.shape[-1]))
    found, delegated = run_operator(
        getattr(Op, kind),
        [int8(codes.shape, source, zero_in), weights, bias],
        int8(sums.shape, output)[:4],
        options,
        6,
        [codes],
    )
    expected = half_even(sums, source * scales / output, 0, -128, 127)
    assert not delegated
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_accumulators_beyond_float32_are_rounded_to_float32_once(run_operator, int8):
    # int32 sums above 2^24 lose their low bits in the conversion, and only there.
    rng = np.random.default_rng(7)
    inputs, outputs = 4096, 16
    kernel = rng.integers(100, 128, (outputs, inputs))
    codes = rng.integers(100, 128, (1, inputs)).astype(np.int8)
    sums = (codes.astype(np.int64) + 128) @ kernel.T
    assert sums.min() > 2**24
    source, scales = f32(0.01), np.full(outputs, 0.01, f32)
    output = f32(sums.max() * 1e-4 / 120)
    found, delegated = run_operator(
        Op.FULLY_CONNECTED,
        [
            int8(codes.shape, source, -128),
            int8(kernel.shape, scales, 0, kernel),
            ((outputs,), TensorType.INT32, source * scales, 0, np.zeros(outputs)),
        ],
        int8((1, outputs), output)[:4],
        ("FullyConnectedOptions", {"fusedActivationFunction": Fused.NONE, "keepNumDims": True}),
        12,
        [codes],
    )
    assert delegated
    np.testing.assert_array_equal(found, half_even(sums, source * scales / output, 0, -128, 127))

"""What LiteRT with XNNPACK computes for layers of weights, to the bit.

The formula is written out here in NumPy and is that of `IntegerMac` in
keras_metamix/layers/integer.py (see test_litert_arithmetic.py for the other operators).
"""

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from metamix_tflite.encoding import Fused, Op, TensorType

f32 = np.float32


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
        inputs *= 8 // weight_bits  # those that share a byte
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
    [("CONV_2D", 8), ("DEPTHWISE_CONV_2D", 8), *(("FULLY_CONNECTED", bits) for bits in (8, 4, 2))],
)
def test_mac_is_a_float32_product_rounded_half_to_even(
    kind, weight_bits, fused, run_operator, int8, half_even
):
    rng = np.random.default_rng(5)
    weight_type = getattr(TensorType, f"INT{weight_bits}")
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
def test_int4_convolutions_run_outside_xnnpack(kind, run_operator, int8, half_even):
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


def test_accumulators_beyond_float32_are_rounded_to_float32_once(run_operator, int8, half_even):
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

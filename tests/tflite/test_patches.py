"""Convolutions as products of patches: INT4 for kernels of any size, exact, in one partition."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_metamix as kmm
import metamix_tflite as mt
from metamix_tflite.run.runner import Runner
from metamix_tflite.targets import MacForm, target_of
from metamix_tflite.write.operator_files import operator_files

# Kernel, strides, dilation, padding, input (height, width, channels); 8,192 weights or more.
GEOMETRIES = [
    (3, 1, 1, "same", (9, 7, 32)),
    (3, 1, 1, "valid", (9, 7, 32)),
    (3, 2, 1, "same", (9, 8, 32)),  # an odd height: borders on both sides
    (3, 2, 1, "same", (8, 9, 32)),
    (3, 2, 1, "valid", (11, 10, 32)),  # a column that nothing reads
    (3, 3, 1, "same", (10, 8, 32)),
    (2, 2, 1, "same", (7, 6, 64)),
    (5, 1, 1, "same", (8, 8, 16)),
    (7, 2, 1, "same", (11, 12, 6)),  # more columns than XNNPACK joins at once
    (1, 2, 1, "valid", (7, 8, 256)),  # a pointwise one with a stride: no joining
    (1, 3, 1, "same", (7, 8, 256)),
    ((1, 3), 1, 1, "same", (6, 7, 96)),
    ((3, 1), (2, 1), 1, "valid", (7, 7, 96)),
    (3, 1, 2, "same", (9, 9, 32)),
    (3, 1, (2, 3), "valid", (9, 11, 32)),
]


def network(kernel, strides, dilation, padding, shape, filters=32):
    """The convolution between two edges, and all of its outputs."""
    x = image = keras.Input(shape, name="image")
    x = layers.ReLU(name="relu1")(layers.Conv2D(shape[-1], 1, name="first")(x))
    x = layers.Conv2D(
        filters, kernel, strides, padding, dilation_rate=dilation, name="conv", use_bias=True
    )(x)
    x = layers.ReLU(6.0, name="relu2")(x)
    return keras.Model(image, layers.Conv2D(8, 1, name="last")(x), name="patches")


def calibrated(model, activation_bits=4, weight_bits=4, seed=0):
    keras.utils.set_random_seed(seed)
    space = kmm.SearchSpace((8, 4, 3), (8, 4, 3))
    quantized = kmm.MetaMixModel.from_float(model, space)
    images = np.random.default_rng(seed).normal(size=(6, *model.input_shape[1:]))
    kmm.calibrate(quantized, images.astype(np.float32))
    quantized.set_bits(kmm.uniform_assignment(model, activation_bits, weight_bits))
    return quantized, images


def operators(graph):
    return [operator.op for operator in graph.operators]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_every_geometry_is_exact(geometry):
    model = network(*geometry)
    quantized, images = calibrated(model, activation_bits=4, weight_bits=3)
    flat = mt.convert(quantized)
    graph = mt.verify(flat, quantized.bit_assignment)
    assert graph.metadata["layers"]["conv"]["container"] == "INT4"
    assert operators(graph).count("CONV_2D") == 2  # the edges, of 8 bits
    report = mt.parity(flat, quantized, images)
    assert (report.differing, report.delegated) == (0, True)
    assert report.outputs == len(images) * np.prod(model.output_shape[1:])


def test_the_matrix_is_the_kernel():
    """Row by row of the kernel, then column by column, then channel by channel."""
    model = network(*GEOMETRIES[0])
    quantized, _ = calibrated(model)
    graph = mt.verify(mt.convert(quantized), quantized.bit_assignment)
    (weights,) = (t for t in graph.tensors if t.name == "conv/weights")
    layer = next(x for x in kmm.fold_batch_norm(quantized).layers if x.name == "conv")
    kernel = np.asarray(layer.kernel)
    assert weights.type == "INT4" and weights.shape == (32, 9 * 32)
    for row, column, channel, output in ((0, 0, 0, 0), (0, 2, 5, 7), (2, 1, 31, 31), (1, 1, 1, 1)):
        place = (row * 3 + column) * 32 + channel
        assert weights.data[output, place] == kernel[row, column, channel, output]


@pytest.mark.parametrize(
    ("container", "shape", "bits", "expected"),
    [
        ("fast", (3, 3, 32, 32), 4, True),
        ("fast", (3, 3, 32, 32), 2, True),
        ("fast", (3, 3, 32, 32), 5, False),
        ("fast", (3, 3, 16, 32), 4, False),  # saves less than its operators take
        ("fast", (3, 3, 20, 32), 2, True),  # INT2 saves more
        ("int4", (3, 3, 20, 32), 2, False),
        ("fast", (1, 1, 96, 96), 4, True),
        ("fast", (3, 3, 31, 32), 4, False),  # an odd number of weights to an output
        ("smallest", (3, 3, 32, 32), 4, False),
        ("int8", (3, 3, 32, 32), 4, False),
        ("int4_conv", (3, 3, 32, 32), 4, False),
    ],
)
def test_which_convolutions_take_patches(container, shape, bits, expected):
    form = target_of("cpu", container).mac_form("conv", shape, (2, 2), shape[2], bits)
    assert form.patches is expected
    assert (form.operator == "FULLY_CONNECTED") == expected


@pytest.mark.parametrize("weight_bits", [8, 4])
def test_the_file_is_smaller_where_it_takes_patches(weight_bits):
    quantized, images = calibrated(network(*GEOMETRIES[0], filters=64), 8, weight_bits)
    fast, plain = (mt.convert(quantized, weight_container=kind) for kind in ("fast", "int8"))
    packed = "STRIDED_SLICE" in operators(mt.verify(fast, quantized.bit_assignment))
    assert packed == (weight_bits == 4)
    if packed:
        assert len(plain) - len(fast) > 0.3 * 9 * 32 * 64  # of half a byte for each weight
    outputs = [
        Runner(flat, batch_size=6).predict(images.astype(np.float32)) for flat in (fast, plain)
    ]
    np.testing.assert_array_equal(*outputs)  # the same integers by other operators


def test_groups_stay_convolutions():
    x = image = keras.Input((8, 8, 64), name="image")
    x = layers.Conv2D(64, 1, name="first")(x)
    x = layers.Conv2D(64, 3, groups=2, name="conv")(layers.ReLU(name="relu")(x))
    model = keras.Model(image, layers.Conv2D(8, 1, name="last")(x), name="grouped")
    quantized, images = calibrated(model)
    flat = mt.convert(quantized)
    graph = mt.verify(flat, quantized.bit_assignment)
    assert graph.metadata["layers"]["conv"]["container"] == "INT8"
    assert mt.parity(flat, quantized, images).differing == 0


@pytest.mark.parametrize("geometry", [GEOMETRIES[0], GEOMETRIES[2], GEOMETRIES[9]], ids=str)
def test_explain_says_so(geometry):
    model = network(*geometry)
    space = kmm.SearchSpace((4,), 4)
    row = next(row for row in kmm.explain(model, space).rows if row.name == "conv")
    assert (row.operator, row.container, row.xnnpack) == ("FULLY_CONNECTED", "INT4", True)


def test_patches_are_timed_with_their_product():
    quantized, _ = calibrated(network(*GEOMETRIES[2]))
    files = operator_files(mt.convert(quantized, golden=0))
    assert [file.layer for file in files if file.layer] == ["first", "conv", "last"]
    (conv,) = (file for file in files if file.layer == "conv")
    kinds = [kernel.split()[0] for kernel in conv.kernel.split("; ")]
    row = ["RESHAPE", *["STRIDED_SLICE"] * 3, "CONCATENATION"]
    assert kinds == ["PAD", *row, *row, "FULLY_CONNECTED"]
    assert not any("STRIDED_SLICE" in file.kernel for file in files if file is not conv)
    runner = Runner(conv.flat)
    assert [d["shape"].tolist() for d in runner.input_details] == [[1, 9, 8, 32]]
    (output,) = runner.invoke(np.zeros((1, 9, 8, 32), np.int8))
    assert output.shape == (1, 5, 4, 32) and runner.delegated


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_a_transposed_kernel_of_its_stride_is_a_product_where_that_is_faster(bits):
    def form(container, strides=(2, 2)):
        target = target_of("cpu", container)
        return target.mac_form("transpose", (2, 2, 8, 16), strides, 16, bits)

    assert form("fast") == MacForm("FULLY_CONNECTED", f"INT{bits}", blocks=True)
    transposed = MacForm("TRANSPOSE_CONV", "INT8")
    assert form("smallest") == form("int8") == form("fast", (1, 1)) == transposed

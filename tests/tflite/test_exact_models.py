"""The file of a whole network computes what the folded model computes, to the bit."""

import keras
import numpy as np
import pytest
from keras import layers

import keras_metamix as kmm
import metamix_tflite as mt
from keras_metamix.zoo.small import small_cnn, small_mobilenet, small_resnet
from metamix_tflite.read.files import read_file

ZOO = {"small_cnn": small_cnn, "small_resnet": small_resnet, "small_mobilenet": small_mobilenet}


def zoo_model(name):
    keras.utils.set_random_seed(0)
    return ZOO[name]((12, 12, 1), width=8)


def mlp():
    return keras.Sequential(
        [
            keras.Input((12,), name="features"),
            layers.Dense(16, activation="relu", name="hidden1"),
            layers.Dropout(0.5, name="dropout"),
            layers.Dense(9, activation="relu", name="hidden2"),
            layers.Dense(5, activation="softmax", name="classes"),
        ],
        name="mlp",
    )


def sequential_cnn():
    return keras.Sequential(
        [
            keras.Input((9, 9, 2), name="image"),
            layers.Conv2D(6, 3, activation="relu", name="conv1"),
            layers.MaxPooling2D(name="pool"),
            layers.SpatialDropout2D(0.2, name="spatial"),
            layers.Conv2D(8, 1, activation="relu6", name="conv2"),
            layers.Flatten(name="flatten"),
            layers.Dropout(0.3, name="dropout"),
            layers.Dense(10, activation="relu", name="dense1"),
            layers.Dense(4, name="dense2"),
            layers.Softmax(name="softmax"),
        ],
        name="sequential_cnn",
    )


def padded():
    x = image = keras.Input((10, 10, 2), name="image")
    x = layers.ZeroPadding2D(((0, 1), (0, 1)), name="pad1")(x)
    x = layers.Conv2D(6, 3, 2, use_bias=False, name="conv1")(x)
    x = layers.BatchNormalization(name="conv1_bn")(x)
    x = layers.ReLU(name="conv1_relu")(x)
    x = layers.ZeroPadding2D(((0, 1), (1, 0)), name="pad2")(x)
    x = layers.DepthwiseConv2D(3, 2, use_bias=False, name="depthwise")(x)
    x = layers.BatchNormalization(name="depthwise_bn")(x)
    x = layers.ZeroPadding2D(1, name="pad3")(x)  # of a signed tensor
    x = layers.Conv2D(8, 3, activation="relu", name="conv2")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, layers.Dense(5, name="logits")(x), name="padded")


def dilated():
    x = image = keras.Input((11, 11, 2), name="image")
    x = layers.Conv2D(6, 3, padding="same", activation="relu", name="conv1")(x)
    x = layers.Conv2D(6, 3, dilation_rate=2, padding="same", name="conv2")(x)
    x = layers.BatchNormalization(name="bn2")(x)
    x = layers.ReLU(6.0, name="relu2")(x)
    x = layers.Conv2D(7, 3, dilation_rate=3, padding="valid", activation="relu", name="conv3")(x)
    x = layers.DepthwiseConv2D(3, dilation_rate=2, padding="same", name="depthwise")(x)
    return keras.Model(image, layers.Conv2D(3, 1, name="last")(x), name="dilated")


def odd_channels():
    x = image = keras.Input((7, 5, 3), name="image")
    x = layers.Conv2D(5, 3, padding="same", activation="relu", name="conv1")(x)
    x = layers.Conv2D(7, 1, activation="relu", name="odd")(x)
    x = layers.Conv2D(4, 1, strides=2, activation="relu", name="strided")(x)
    x = layers.Conv2D(9, 1, activation="relu", name="even")(x)
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same", name="multiplied")(x)
    return keras.Model(image, layers.Conv2D(3, 1, name="last")(x), name="odd_channels")


def dense_on_maps():
    x = image = keras.Input((6, 6, 4), name="image")
    x = layers.Dense(6, activation="relu", name="each_pixel1")(x)
    x = layers.Dense(5, activation="relu", name="each_pixel2")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.Reshape((3, 60), name="reshape")(x)
    x = layers.Dense(4, activation="relu", name="rows")(x)
    x = layers.Flatten(name="flatten2")(x)
    return keras.Model(image, layers.Dense(3, name="logits")(x), name="dense_on_maps")


def rescaled_twice():
    """One sum read by layers of several bit-widths, by a product and by an output."""
    image = keras.Input((6, 6, 3), name="image")
    x = layers.Conv2D(6, 3, padding="same", name="stem")(image)
    left = layers.Conv2D(6, 1, activation="relu", name="left")(x)
    right = layers.DepthwiseConv2D(3, padding="same", name="right")(x)
    total = layers.Add(name="total")([left, right])
    gate = layers.GlobalAveragePooling2D(keepdims=True, name="squeeze")(total)
    gate = layers.Conv2D(6, 1, activation="relu", name="excite")(gate)
    gated = layers.Multiply(name="gated")([total, gate])
    logits = layers.Conv2D(4, 3, name="logits")(gated)
    return keras.Model(image, logits, name="rescaled_twice")


MODELS = [
    mlp,
    sequential_cnn,
    padded,
    dilated,
    odd_channels,
    dense_on_maps,
    rescaled_twice,
]


def weights_of(graph, name):
    """A layer's weight tensor."""
    (tensor,) = [t for t in graph.tensors if t.name == f"{name}/weights"]
    return tensor


@pytest.mark.parametrize(
    ("name", "seed"),
    [("small_cnn", 0), ("small_resnet", 0), ("small_resnet", 1), ("small_mobilenet", 0)],
)
def test_zoo_models_are_exact(name, seed, quantized, differing):
    model, images = quantized(zoo_model(name), seed)
    flat = mt.convert(model)
    mt.verify(flat, model.bit_assignment)
    assert differing(flat, kmm.fold_batch_norm(model), images) == (0, True)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("build", MODELS, ids=lambda build: build.__name__)
def test_other_models_are_exact(build, seed, quantized, differing):
    keras.utils.set_random_seed(seed)
    model, images = quantized(build(), seed)
    flat = mt.convert(model)
    mt.verify(flat, model.bit_assignment)
    assert differing(flat, kmm.fold_batch_norm(model), images) == (0, True)


@pytest.mark.parametrize("io", ["float32", "int8"])
@pytest.mark.parametrize("build", [mlp, sequential_cnn, dense_on_maps], ids=lambda b: b.__name__)
def test_int8_files_are_exact(build, io, quantized, differing):
    keras.utils.set_random_seed(3)
    model, images = quantized(build(), 3)
    flat = mt.convert(model, weight_container="int8", io=io)
    graph = mt.verify(flat, model.bit_assignment)
    assert graph.metadata["weight_container"] == "int8"
    assert "FULLY_CONNECTED" not in {operator.op for operator in graph.operators}
    assert {t.type for t in graph.tensors} <= {"INT8", "INT32", io.upper()}
    if io == "float32":
        assert differing(flat, kmm.fold_batch_norm(model), images) == (0, True)
        points = {"one": model.bit_assignment}
        mt.verify(mt.convert(model, "arm", operating_points=points), points)


@pytest.mark.parametrize("container", ["fast", "smallest", "int8"])
@pytest.mark.parametrize("build", [odd_channels, padded, sequential_cnn], ids=lambda b: b.__name__)
def test_containers_and_integers_of_the_file(build, container, quantized):
    keras.utils.set_random_seed(1)
    space = kmm.SearchSpace((4, 3), (8, 4, 3, 2))
    model, _ = quantized(build(), 1, space=space)
    layers_of = {layer.name: layer for layer in model.mac_layers}
    norms = {mac.name: mac.norm for mac in model.mac_layers if mac.norm}
    for weight_bits in (8, 4, 3, 2) if container != "smallest" else (4, 2):
        model.set_bits(
            kmm.BitAssignment(
                model.bit_assignment.activation_bits,
                {
                    name: weight_bits if layer.weight_quantizer.choice.searched else 8
                    for name, layer in layers_of.items()
                },
            )
        )
        graph = read_file(mt.convert(model, weight_container=container))
        for name, layer in layers_of.items():
            tensor = weights_of(graph, name)
            kernel = layer.integer_kernel()
            small = layer.weight_quantizer.choice.bits <= 4 and container != "int8"
            is_dense = kernel.ndim == 2
            pointwise = is_dense or (
                kernel.shape[:2] == (1, 1)
                and tuple(layer.strides) == (1, 1)
                and not isinstance(layer, layers.DepthwiseConv2D)
            )
            expected = "INT4" if small and (container == "smallest" or pointwise) else "INT8"
            inputs = kernel.shape[-2]
            if small and pointwise and weight_bits == 2 and not inputs % 4 * (container == "fast"):
                expected = "INT2"
            elif container == "fast" and inputs % 2:
                expected = "INT8"
            assert tensor.type == expected, name
            # The trained integers, number for number; a channel whose batch norm has a negative
            # gamma is negated as a whole.
            sign = np.ones(1, np.int8)
            if name in norms and norms[name].scale:
                sign = np.where(np.asarray(norms[name].gamma) < 0, -1, 1)
                assert (sign < 0).any(), name
            if isinstance(layer, layers.DepthwiseConv2D):
                expected = kernel.reshape(1, *kernel.shape[:2], -1) * sign
            else:
                flat_kernel = (kernel * sign).reshape(-1, kernel.shape[-1]).T
                expected = flat_kernel.reshape(tensor.shape)
            np.testing.assert_array_equal(tensor.data, expected, err_msg=name)


@pytest.mark.parametrize("name", ["small_resnet", "small_mobilenet"])
def test_int8_inputs_and_outputs(name, quantized):
    model, images = quantized(zoo_model(name), 5)
    floats, integers = mt.convert(model), mt.convert(model, io="int8")
    mt.verify(integers, model.bit_assignment)
    runner = mt.Runner(integers, batch_size=len(images))
    (detail,) = runner.input_details
    assert detail["dtype"] == np.int8
    scale, zero_point = detail["quantization"]
    reciprocal = np.float32(1) / np.float32(scale)
    codes = np.clip(np.rint(images * reciprocal) + zero_point, -128, 127).astype(np.int8)
    (found,) = runner.invoke(codes)
    assert found.dtype == np.int8
    assert runner.delegated
    graph = read_file(integers)
    output = graph.tensors[graph.outputs[0]]
    real = (found.astype(np.float32) - np.float32(output.zero_points[0])) * output.scales[0]
    np.testing.assert_array_equal(real, mt.Runner(floats).predict(images))
    with pytest.raises(ValueError, match="io='float32'"):
        mt.parity(integers, model, images)


@pytest.mark.parametrize("name", ["small_cnn", "small_mobilenet"])
def test_smallest_holds_every_low_bit_weight_in_int4(name, quantized):
    keras.utils.set_random_seed(2)
    space = kmm.SearchSpace((8,), (4, 3, 2), edge_bits=8)
    model, images = quantized(zoo_model(name), 2, images=64, space=space)
    fast, smallest = mt.convert(model), mt.convert(model, weight_container="smallest")
    mt.verify(smallest, model.bit_assignment)
    assert len(smallest) < len(fast)
    graph = read_file(smallest)
    for layer, bits in model.bit_assignment.weight_bits.items():
        (operator,) = [o for o in graph.operators if graph.tensors[o.outputs[0]].name == layer]
        least = "INT2" if bits == 2 and operator.op == "FULLY_CONNECTED" else "INT4"
        assert weights_of(graph, layer).type == (least if bits <= 4 else "INT8")
    runner = mt.Runner(smallest, batch_size=64)
    assert not runner.delegated  # LiteRT has INT4 convolutions outside XNNPACK only
    found, exact = runner.predict(images), mt.Runner(fast).predict(images)
    # Its own kernels differ by a step now and then, which a random network amplifies.
    assert np.mean(found.argmax(-1) == exact.argmax(-1)) >= 0.85


def test_a_pool_of_one_pixel_is_exact(quantized, differing):
    # The shortcut of ResNet-v2. XNNPACK has no 1x1 pool: a depthwise convolution stands for it.
    x = image = keras.Input((7, 7, 2), name="image")
    x = layers.Conv2D(4, 3, activation="relu", name="conv")(x)
    x = layers.MaxPooling2D(1, 2, name="every_other")(x)
    source = keras.Model(image, layers.Conv2D(3, 1, name="last")(x), name="one_pixel")
    model, images = quantized(source, 0)
    assert differing(mt.convert(model), kmm.fold_batch_norm(model), images) == (0, True)


def test_a_dead_branch_is_exact_or_refused(quantized, differing):
    # A ReLU that never opens: its tensor is all zeros, and no step size follows from the data.
    x = image = keras.Input((6, 6, 2), name="image")
    stem = layers.Conv2D(4, 3, padding="same", activation="relu", name="stem")(x)
    dead = layers.Conv2D(4, 3, padding="same", activation="relu", name="dead")(stem)
    x = layers.Add(name="total")([stem, dead])
    x = layers.Conv2D(4, 3, activation="relu", name="after")(x)
    source = keras.Model(image, layers.Conv2D(3, 1, name="last")(x), name="dead_branch")
    kernel = source.get_layer("dead").kernel
    kernel.assign(-10 * np.abs(kernel) - 1)
    try:
        model, images = quantized(source, 0)
        flat = mt.convert(model)
    except ValueError as error:
        assert any(f"'{name}" in str(error) for name in ("dead", "total"))
        return
    assert differing(flat, kmm.fold_batch_norm(model), images) == (0, True)

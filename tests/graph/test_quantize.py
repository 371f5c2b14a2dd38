"""The rewrite: the float model with quantizers off, quantizers where the device has them."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_metamix.assignment import SearchSpace
from keras_metamix.graph.quantize import quantize
from keras_metamix.graph.topology import Topology
from keras_metamix.layers.activation_quantizer import ActivationQuantizer
from keras_metamix.layers.batch_norm import FoldableBatchNormalization
from keras_metamix.layers.mac import QuantizedMac
from keras_metamix.layers.mode import FLOAT, QuantizationMode, quantization_mode
from keras_metamix.layers.parts import batch_norms
from keras_metamix.metamix.model import MetaMixModel
from keras_metamix.zoo import small_cnn, small_mobilenet, small_resnet

SMALL = {"input_shape": (12, 12, 1), "width": 4, "classes": 5}


def _sequential():
    return keras.Sequential(
        [
            keras.Input((10, 10, 2)),
            layers.Conv2D(4, 3, activation="relu", name="a"),
            layers.MaxPooling2D(name="pool"),
            layers.DepthwiseConv2D(3, padding="same", activation="relu6", name="b"),
            layers.Flatten(name="flat"),
            layers.Dense(6, activation="hard_silu", name="c"),
            layers.Dropout(0.5, name="drop"),
            layers.Dense(3, activation="softmax", name="d"),
        ],
        name="sequential",
    )


def _branches(structure):
    def build():
        left, right = keras.Input((8, 8, 2), name="left"), keras.Input((4, 4, 3), name="right")
        x = layers.Conv2D(4, 3, 2, "same", name="on_left")(left)
        x = layers.BatchNormalization(name="on_left_bn")(x)
        y = layers.Conv2D(4, 1, name="on_right", activation="relu")(right)
        x = layers.GlobalAveragePooling2D(name="mean")(layers.Add(name="sum")([x, y]))
        outputs = layers.Dense(3, name="out")(x), layers.Dense(2, name="other")(x)
        inputs = {"left": left, "right": right} if structure is dict else [left, right]
        return keras.Model(inputs, outputs, name="branches")

    return build


def _shared():
    image = keras.Input((8, 8, 3), name="image")
    conv = layers.Conv2D(3, 3, padding="same", activation="relu", name="twice")
    x = conv(layers.Conv2D(3, 1, name="first")(image))
    x = layers.Add(name="sum")([conv(x), x])
    x = layers.Dense(4, name="out")(layers.Flatten(name="flat")(x))
    return keras.Model(image, x, name="shared")


def _hard_swish():
    image = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, 2, "same", use_bias=False, name="stem")(image)
    x = layers.BatchNormalization(name="stem_bn")(x)
    x = layers.Activation("hard_silu", name="stem_swish")(x)
    y = layers.Conv2D(4, 1, name="expand")(x)
    y = keras.ops.hard_silu(y)
    y = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(y)
    gate = layers.GlobalAveragePooling2D(keepdims=True, name="squeeze")(y)
    gate = layers.Conv2D(4, 1, activation="relu", name="excite")(gate)
    y = keras.ops.multiply(y, gate)
    y = layers.Conv2D(4, 1, name="project")(y)
    x = keras.ops.add(x, y)
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    return keras.Model(image, layers.Dense(3, name="out")(x), name="swish")


MODELS = {
    "small_cnn": lambda: small_cnn(**SMALL),
    "small_resnet": lambda: small_resnet(**SMALL),
    "small_mobilenet": lambda: small_mobilenet(**SMALL),
    "sequential": _sequential,
    "two inputs": _branches(list),
    "named inputs": _branches(dict),
    "shared layer": _shared,
    "hard-swish": _hard_swish,
}


@pytest.fixture(scope="module")
def randomized():
    """Every weight random, so that no bias, mean or variance is neutral."""

    def fill(model):
        generator = np.random.default_rng(0)
        for variable in model.weights:
            positive = variable.name in ("moving_variance", "gamma")
            low, high = (0.5, 2.0) if positive else (-0.6, 0.6)
            variable.assign(generator.uniform(low, high, variable.shape))
        return model

    return fill


@pytest.fixture(scope="module", params=MODELS)
def model(request, randomized):
    """Every kind of model; tests leave it as it is."""
    return randomized(MODELS[request.param]())


@pytest.fixture(scope="module")
def wrapped(model):
    """Its MetaMixModel with the default search space; tests leave that as it is too."""
    return MetaMixModel.from_float(model, SearchSpace())


@pytest.fixture(scope="module")
def network(wrapped):
    return wrapped.network


@pytest.fixture
def images():
    def make(model, count=3):
        generator = np.random.default_rng(1)
        sequential = isinstance(model, keras.Sequential)  # which has no `input` until it is called
        structure = model.inputs[0] if sequential else model.input
        return keras.tree.map_structure(
            lambda t: generator.normal(size=(count, *t.shape[1:])).astype(np.float32), structure
        )

    return make


@pytest.fixture
def same():
    def check(found, expected):
        keras.tree.assert_same_structure(found, expected)
        for a, b in zip(keras.tree.flatten(found), keras.tree.flatten(expected), strict=True):
            assert np.max(np.abs(np.asarray(a) - np.asarray(b))) == 0.0

    return check


@pytest.fixture
def streams():
    def names(network):
        return [
            layer.name
            for layer in network.layers
            if isinstance(layer, ActivationQuantizer) and layer.role == "stream"
        ]

    return names


def test_off_differs_by_exactly_0(model, wrapped, images, same):
    x = images(model)
    with quantization_mode(FLOAT):
        same(wrapped.network(x), model(x))
        same(wrapped(x), model(x))


SPACES = {
    "no streams": SearchSpace(stream_bits=None),
    "4-bit ends, pairs": SearchSpace(weight_bits=(8, 4), edge_bits=4),
    "same": SearchSpace((4, 2), "same"),
}


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("name", ["small_cnn", "two inputs", "shared layer", "hard-swish"])
def test_off_differs_by_exactly_0_whatever_the_search_space(name, space, randomized, images, same):
    model = randomized(MODELS[name]())
    wrapped, x = MetaMixModel.from_float(model, space), images(model)
    with quantization_mode(FLOAT):
        same(wrapped(x), model(x))


@pytest.mark.parametrize("name", ["small_cnn", "small_mobilenet", "hard-swish"])
def test_off_trains_as_the_float_model_does(name, randomized, images):
    model = randomized(MODELS[name]())
    network, x = quantize(model, SearchSpace())[0], images(model)
    with quantization_mode(FLOAT):
        found, expected = network(x, training=True), model(x, training=True)
    for a, b in zip(keras.tree.flatten(found), keras.tree.flatten(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    for norm in batch_norms(network):
        for a, b in zip(norm.weights, model.get_layer(norm.name).weights, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_quantizing_changes_the_outputs(model, network, images):
    """So that a rewrite without quantizers would fail."""
    x = images(model)
    with quantization_mode(QuantizationMode()):
        found = keras.tree.flatten(network(x))
    for a, b in zip(found, keras.tree.flatten(model(x)), strict=True):
        assert np.max(np.abs(np.asarray(a) - np.asarray(b))) > 1e-3


def test_the_float_model_is_left_as_it_was(model, images, same):
    x = images(model)
    before, outputs = [np.array(w) for w in model.weights], model(x)
    nodes = {layer.name: len(layer._inbound_nodes) for layer in model.layers}
    network = quantize(model, SearchSpace())[0]
    for variable in network.weights:
        if variable.dtype == "float32":
            variable.assign(np.full(variable.shape, 0.5))
    for variable, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(variable, value, err_msg=variable.path)
    assert {layer.name: len(layer._inbound_nodes) for layer in model.layers} == nodes
    for layer in model.layers:
        if nodes[layer.name] == 1:
            assert layer.output is not None  # Keras raises where a layer has several
    same(model(x), outputs)
    assert {id(layer) for layer in model.layers}.isdisjoint(id(layer) for layer in network.layers)


def test_a_model_is_rewritten_twice_the_same(model, images, same):
    first, second = (quantize(model, SearchSpace())[0] for _ in range(2))
    assert [layer.name for layer in first.layers] == [layer.name for layer in second.layers]
    with quantization_mode(FLOAT):
        same(first(images(model)), second(images(model)))


def test_every_mac_layer_owns_an_input_quantizer_of_its_name(network):
    macs = [layer for layer in network.layers if isinstance(layer, QuantizedMac)]
    assert macs
    for mac in macs:
        found = mac.input_quantizer
        assert (found.name, found.role, found.built) == (f"{mac.name}_input", "mac", True)
        assert found.path == f"{mac.name}/{found.name}"


def test_sums_and_products_and_outputs_are_of_quantized_tensors(network):
    """Decision 5: what no MAC layer reads directly has a stream quantizer."""
    topology = Topology(network)
    for node in topology.nodes:
        if isinstance(node.operation, layers.Add) or type(node.operation).__name__ == "Multiply":
            for tensor in node.inputs:
                assert isinstance(topology.producer(tensor).operation, ActivationQuantizer)
    for tensor in topology.outputs:
        last = topology.producer(tensor).operation
        softmax = isinstance(last, layers.Activation)
        assert softmax or (isinstance(last, ActivationQuantizer) and last.role == "stream")


@pytest.mark.parametrize(
    ("name", "edges"),
    [
        ("small_resnet", {"stem", "logits"}),
        ("sequential", {"a", "d"}),
        ("shared layer", {"first", "out"}),
        ("hard-swish", {"stem", "out"}),
    ],
)
def test_candidates_are_the_search_space_s(name, edges):
    macs = [
        layer
        for layer in quantize(MODELS[name](), SearchSpace((8, 4, 3), (8, 5)))[0].layers
        if isinstance(layer, QuantizedMac)
    ]
    for layer in macs:
        expected = ((8,), (8,)) if layer.name in edges else ((8, 4, 3), (8, 5))
        found = layer.input_quantizer.candidates, layer.weight_quantizer.candidates
        assert found == expected, layer.name


def test_names_and_streams_of_a_plain_network():
    network = quantize(small_cnn(**SMALL), SearchSpace())[0]
    assert [layer.name for layer in network.layers] == [
        "image", "conv1", "conv1_relu", "pool1", "conv2", "conv2_relu", "pool2",
        "conv3", "conv3_relu_stream", "features", "logits", "logits_stream",
    ]  # fmt: skip
    stream = network.get_layer("conv3_relu_stream")
    assert (stream.sign, stream.activation, stream.candidates) == ("unsigned", "relu", (8,))
    assert network.get_layer("conv1").input_quantizer.sign == "signed"
    assert network.get_layer("conv2").input_quantizer.sign == "unsigned"
    assert network.get_layer("logits").input_quantizer.sign == "unsigned"
    assert network.get_layer("logits_stream").sign == "signed"


def test_streams_of_a_residual_network(streams):
    """The sums, what is summed, what has several readers, what is pooled, the logits."""
    network = quantize(small_resnet(**SMALL), SearchSpace())[0]
    assert set(streams(network)) == {
        "stem_relu_stream",
        "block1_conv2_bn_stream", "block1_relu_stream",
        "block2_conv2_bn_stream", "block2_downsample_bn_stream", "block2_relu_stream",
        "block3_conv2_bn_stream", "block3_downsample_bn_stream", "block3_relu_stream",
        "logits_stream",
    }  # fmt: skip
    signs = {name: network.get_layer(name).sign for name in streams(network)}
    assert {n for n, s in signs.items() if s == "unsigned"} == {
        "stem_relu_stream", "block1_relu_stream", "block2_relu_stream", "block3_relu_stream",
    }  # fmt: skip


def test_streams_of_linear_bottlenecks(streams):
    network = quantize(small_mobilenet(**SMALL), SearchSpace())[0]
    assert set(streams(network)) == {
        "stem_relu_stream",
        "block1_project_bn_stream", "block1_add_stream",
        "block2_project_bn_stream", "block2_add_stream",
        "block3_project_bn_stream",
        "block4_project_bn_stream", "block4_add_stream",
        "block5_project_bn_stream",
        "block6_project_bn_stream", "block6_add_stream",
        "head_relu_stream", "logits_stream",
    }  # fmt: skip
    for block in range(1, 7):
        assert network.get_layer(f"block{block}_expand").input_quantizer.sign == (
            "unsigned" if block == 1 else "signed"
        )
        quantizer = network.get_layer(f"block{block}_project").input_quantizer
        assert (quantizer.sign, quantizer.activation) == ("unsigned", "relu6")


@pytest.mark.parametrize("name", ["small_resnet", "two inputs", "shared layer"])
def test_without_stream_bits_nothing_but_mac_inputs_is_quantized(name, streams):
    network = quantize(MODELS[name](), SearchSpace(stream_bits=None))[0]
    assert streams(network) == []
    assert not any(isinstance(x, ActivationQuantizer) for x in network.layers)


def test_hard_swish_is_read_through_an_offset_grid():
    network = quantize(_hard_swish(), SearchSpace())[0]
    assert network.get_layer("expand").input_quantizer.sign == "offset"
    assert network.get_layer("depthwise").input_quantizer.sign == "offset"
    assert network.get_layer("excite").input_quantizer.sign == "signed"
    assert network.get_layer("out").input_quantizer.sign == "signed"


def test_mac_layers_own_the_batch_norms_that_fold_into_them():
    network = quantize(small_mobilenet(**SMALL), SearchSpace())[0]
    macs = [x for x in network.layers if isinstance(x, QuantizedMac)]
    owners = {mac.name: mac.norm.name for mac in macs if mac.norm}
    assert len(owners) == 20
    assert owners == {name: f"{name}_bn" for name in owners}
    assert network.get_layer("logits").norm is None
    assert not any(isinstance(x, FoldableBatchNormalization) for x in network.layers)


def test_a_compiled_and_trained_model_is_taken(images, same):
    model = small_cnn(**SMALL)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = images(model, 8)
    model.fit(x, np.arange(8) % 5, verbose=0)
    wrapped = MetaMixModel.from_float(model, SearchSpace())
    with quantization_mode(FLOAT):
        same(wrapped(x), model(x))
    assert wrapped.name == "small_cnn_metamix"
    model.fit(x, np.arange(8) % 5, verbose=0)  # and goes on training


def test_a_part_of_a_model_is_taken(images, same):
    whole = small_cnn(**SMALL)
    part = keras.Model(whole.input, whole.get_layer("pool2").output)
    network = quantize(part, SearchSpace())[0]
    with quantization_mode(FLOAT):
        same(network(images(part)), part(images(part)))
    assert "conv3" not in {layer.name for layer in network.layers}


# --- what is refused --------------------------------------------------------------------------


def _with(*middle, before=None):
    image = keras.Input((8, 8, 4), name="image")
    x = (before or layers.Conv2D(4, 3, name="conv"))(image)
    for layer in middle:
        x = layer(x)
    x = layers.Dense(2, name="out")(layers.Flatten(name="flat")(x))
    return keras.Model(image, x, name="refused")


class _OwnConv(layers.Conv2D):
    def call(self, inputs):
        return 2 * super().call(inputs)


REFUSED = {
    "transposed": (lambda: _with(layers.Conv2DTranspose(2, 2, dilation_rate=2, name="bad")),
                   r"'bad' \(Conv2DTranspose\): no exact integer form with a dilation"),
    "a user's own": (lambda: _with(_OwnConv(2, 2, name="bad")),
                     r"'bad' \(_OwnConv\): a Conv2D with call of its own"),
    "channels first": (
        lambda: _with(layers.Conv2D(2, 1, data_format="channels_first", name="bad")),
        r"'bad' \(Conv2D\).*expected data_format='channels_last', found 'channels_first'"),
    "norm on another axis": (
        lambda: _with(layers.BatchNormalization(axis=1, name="bad")),
        r"'bad' \(BatchNormalization\): expected the channel axis -1, found 1"),
    "nothing to quantize": (
        lambda: keras.Sequential([keras.Input((4, 4, 1)), layers.ReLU()], name="plain"),
        "'plain' has no MAC layer"),
    "no input shape": (
        lambda: keras.Sequential([layers.Dense(3)], name="shapeless"),
        "'shapeless' has no input shape"),
}  # fmt: skip


@pytest.mark.parametrize(("build", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_wrapped_is_refused_by_name(build, message):
    with pytest.raises(ValueError, match=message):
        MetaMixModel.from_float(build(), SearchSpace())


class _Subclassed(keras.Model):
    def call(self, inputs):
        return inputs


@pytest.mark.parametrize("model", [_Subclassed(name="bad"), "bad", None], ids=str)
def test_what_has_no_graph_is_a_type_error(model):
    with pytest.raises(TypeError, match="Expected a functional or Sequential Keras model, found"):
        MetaMixModel.from_float(model, SearchSpace())

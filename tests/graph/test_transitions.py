"""Which two layers key a batch norm, on graphs small enough to write the answer down."""

import keras
import pytest
from keras import layers

from keras_metamix.assignment import SearchSpace
from keras_metamix.graph.layer_costs import mac_nodes
from keras_metamix.graph.quantize import connect, quantize
from keras_metamix.graph.topology import Topology
from keras_metamix.graph.transitions import TRANSITION_RULES, transitions
from keras_metamix.layers.parts import batch_norms
from keras_metamix.layers.transitional_batch_norm import TransitionalBatchNormalization


def norm(x, name):
    return layers.BatchNormalization(name=f"{name}_bn")(x)


def conv(x, name, filters=4, strides=1, relu=True, size=3):
    x = norm(layers.Conv2D(filters, size, strides, "same", use_bias=False, name=name)(x), name)
    return layers.ReLU(name=f"{name}_relu")(x) if relu else x


def depthwise(x, name, strides=1):
    x = layers.DepthwiseConv2D(3, strides, "same", use_bias=False, name=name)(x)
    return layers.ReLU(6.0, name=f"{name}_relu")(norm(x, name))


def classifier(image, x):
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    return keras.Model(image, layers.Dense(3, name="logits")(x))


def photo():
    return keras.Input((8, 8, 3), name="image")


def chain():
    """A batch norm before any layer, the first layer, a middle one, and one behind the last."""
    image = photo()
    x = conv(norm(image, "image"), "first")
    x = layers.MaxPooling2D(name="max_pool")(x)
    x = conv(x, "middle")
    x = layers.Dense(3, name="last")(layers.Flatten(name="flat")(x))
    return keras.Model(image, norm(x, "last"))


def plain_block(main_first=True):
    image = photo()
    x = conv(image, "stem")
    y = conv(conv(x, "conv1"), "conv2", relu=False)
    x = layers.Add(name="sum")([y, x] if main_first else [x, y])
    return classifier(image, conv(layers.ReLU(name="sum_relu")(x), "next"))


def plain_block_turned():
    return plain_block(main_first=False)


def downsampling_block(main_first=True):
    image = photo()
    x = conv(image, "stem")
    y = conv(conv(x, "conv1", 6, 2), "conv2", 6, relu=False)
    x = conv(x, "downsample", 6, 2, relu=False, size=1)
    x = layers.Add(name="sum")([y, x] if main_first else [x, y])
    return classifier(image, conv(layers.ReLU(name="sum_relu")(x), "next"))


def downsampling_block_turned():
    return downsampling_block(main_first=False)


def inverted_residuals():
    image = photo()
    x = conv(image, "stem")
    for block in ("a", "b"):
        y = depthwise(conv(x, f"{block}_expand", 8, size=1), f"{block}_depthwise")
        y = conv(y, f"{block}_project", relu=False, size=1)
        x = layers.Add(name=f"{block}_sum")([x, y])
    return classifier(image, x)


def dense_block():
    """DenseNet's: batch norm before each convolution, on all features so far."""
    image = photo()
    x = layers.Conv2D(4, 3, padding="same", use_bias=False, name="stem")(image)
    for name in ("one", "two"):
        y = layers.ReLU(name=f"{name}_relu")(norm(x, name))
        y = layers.Conv2D(2, 3, padding="same", use_bias=False, name=name)(y)
        x = layers.Concatenate(name=f"{name}_concat")([x, y])
    return classifier(image, norm(x, "end"))


def squeeze_and_excitation():
    image = photo()
    x = depthwise(conv(image, "stem"), "depthwise")
    gate = layers.GlobalAveragePooling2D(keepdims=True, name="squeeze")(x)
    gate = layers.Conv2D(2, 1, activation="relu", name="reduce")(gate)
    gate = layers.Conv2D(4, 1, activation="hard_sigmoid", name="excite")(gate)
    x = layers.Multiply(name="scale")([gate, x])
    return classifier(image, conv(x, "project", relu=False, size=1))


def pre_activation():
    """ResNet-v2's block: the batch norm is before its convolution, the sum is not normalized."""
    image = photo()
    x = layers.Conv2D(4, 3, padding="same", name="stem")(image)
    for block in ("a", "b"):
        y = layers.ReLU(name=f"{block}_relu")(norm(x, block))
        y = conv(y, f"{block}_conv1")
        y = layers.Conv2D(4, 3, padding="same", name=f"{block}_conv2")(y)
        x = layers.Add(name=f"{block}_sum")([x, y])
    return classifier(image, layers.ReLU(name="end_relu")(norm(x, "end")))


# Graph: {batch norm: (what feeds its own layer, its own layer, the next layer behind it)}
EXPECTED = {
    chain: {
        "image_bn": (None, None, "first"),
        "first_bn": (None, "first", "middle"),
        "middle_bn": ("first", "middle", "last"),
        "last_bn": ("middle", "last", None),
    },
    plain_block: {
        "stem_bn": (None, "stem", "conv1"),
        "conv1_bn": ("stem", "conv1", "conv2"),
        "conv2_bn": ("conv1", "conv2", "next"),
        "next_bn": ("conv2", "next", "logits"),
    },
    downsampling_block: {
        "stem_bn": (None, "stem", "conv1"),
        "conv1_bn": ("stem", "conv1", "conv2"),
        "conv2_bn": ("conv1", "conv2", "next"),
        "downsample_bn": ("stem", "downsample", "next"),
        "next_bn": ("conv2", "next", "logits"),
    },
    inverted_residuals: {
        "stem_bn": (None, "stem", "a_expand"),
        "a_expand_bn": ("stem", "a_expand", "a_depthwise"),
        "a_depthwise_bn": ("a_expand", "a_depthwise", "a_project"),
        "a_project_bn": ("a_depthwise", "a_project", "b_expand"),
        "b_expand_bn": ("a_project", "b_expand", "b_depthwise"),
        "b_depthwise_bn": ("b_expand", "b_depthwise", "b_project"),
        "b_project_bn": ("b_depthwise", "b_project", "logits"),
    },
    dense_block: {
        "one_bn": (None, "stem", "one"),
        "two_bn": ("stem", "one", "two"),
        "end_bn": ("one", "two", "logits"),
    },
    squeeze_and_excitation: {
        "stem_bn": (None, "stem", "depthwise"),
        "depthwise_bn": ("stem", "depthwise", "reduce"),
        "project_bn": ("depthwise", "project", "logits"),
    },
    pre_activation: {
        "a_bn": (None, "stem", "a_conv1"),
        "a_conv1_bn": ("stem", "a_conv1", "a_conv2"),
        "b_bn": ("a_conv1", "a_conv2", "b_conv1"),
        "b_conv1_bn": ("a_conv2", "b_conv1", "b_conv2"),
        "end_bn": ("b_conv1", "b_conv2", "logits"),
    },
}
EXPECTED[plain_block_turned] = EXPECTED[plain_block]
EXPECTED[downsampling_block_turned] = EXPECTED[downsampling_block]


def pair(rule, feeding, own, following):
    """The layers that key a batch norm, of the three around it."""
    if own is None:
        return (None, None)
    return {
        "feeding": (feeding, own),
        "following": (own, following),
        "switchable": (None, own),
        "shared": (None, None),
    }[rule]


SPACE = SearchSpace((4, 3, 2), "same")


@pytest.fixture(params=TRANSITION_RULES)
def rule(request):
    return request.param


@pytest.fixture
def keys():
    """{batch norm: names of the two layers} of a model."""

    def find(model, rule, left_out=()):
        topology = Topology(model)
        macs = [name for name in mac_nodes(topology) if name not in left_out]
        found = transitions(topology, macs, rule)
        return {name: tuple(n and n.name for n in ends) for name, ends in found.items()}

    return find


@pytest.mark.parametrize("build", EXPECTED, ids=lambda build: build.__name__)
def test_every_batch_norm_has_the_pair_that_the_graph_says(build, keys):
    model = build()
    for rule in TRANSITION_RULES:
        expected = {name: pair(rule, *around) for name, around in EXPECTED[build].items()}
        assert keys(model, rule) == expected


@pytest.mark.parametrize("build", [downsampling_block, dense_block], ids=lambda b: b.__name__)
def test_batch_norms_are_built_and_connected_by_their_pairs(build, rule):
    """The ends of a network have one bit-width, the layers between them three."""
    model = build()
    network, _ = quantize(model, SPACE, rule=rule)
    connect(network)
    norms = {norm.name: norm for norm in batch_norms(network)}
    macs = list(mac_nodes(Topology(model)))
    count = {name: 1 if name in (macs[0], macs[-1]) else 3 for name in macs} | {None: 1}
    for name, around in EXPECTED[build].items():
        layer, ends = norms[name], pair(rule, *around)
        assert type(layer) is TransitionalBatchNormalization
        assert layer.sets == tuple(count[end] for end in ends), name
        assert layer.own == (0 if rule == "following" else 1)
        assert layer.transition == ends
        for choice, end in zip(layer.choices, ends, strict=True):
            expected = end and network.get_layer(end).input_quantizer.choice
            assert choice is expected, name
        assert layer.gamma.shape == (
            layer.sets[0] * layer.sets[1],
            model.get_layer(name).gamma.shape[0],
        )


def test_a_layer_without_bit_widths_is_walked_past(keys):
    """One that is left in float, say."""
    model = plain_block()
    found = keys(model, "feeding", left_out=["conv2"])
    assert found["conv2_bn"] == ("stem", "conv1")  # the last quantized layer before it
    assert found["next_bn"] == ("conv1", "next")
    assert keys(model, "following", left_out=["conv2"])["conv1_bn"] == ("conv1", "next")


def test_a_shared_batch_norm_goes_by_its_first_call(keys):
    image = photo()
    shared = layers.BatchNormalization(name="shared_bn")
    x = shared(layers.Conv2D(4, 3, padding="same", name="one")(image))
    x = shared(layers.Conv2D(4, 3, padding="same", name="two")(x))
    model = classifier(image, x)
    assert keys(model, "feeding") == {"shared_bn": (None, "one")}
    assert keys(model, "following") == {"shared_bn": ("one", "two")}


def test_without_a_reading_batch_norms_have_one_set():
    network, _ = quantize(plain_block(), SPACE)
    assert not any(isinstance(x, TransitionalBatchNormalization) for x in batch_norms(network))

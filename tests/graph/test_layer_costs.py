"""MACs, BOPs, average bits and bytes against numbers worked out by hand, and the paper's."""

import keras
import pytest
from keras import layers

from keras_metamix.assignment import BitAssignment, SearchSpace
from keras_metamix.cost import average_bits, weight_bytes
from keras_metamix.graph.layer_costs import bops, layer_costs, uniform_assignment
from keras_metamix.graph.quantize import quantize
from keras_metamix.metamix.model import MetaMixModel
from keras_metamix.zoo import small_cnn

# layer, input shape, MACs, kernel elements, output channels, input elements
SINGLE = {
    "conv": (lambda: layers.Conv2D(5, 3, padding="same"), (6, 8, 2),
             6 * 8 * 5 * (3 * 3 * 2), 90, 5, 96),
    "valid": (lambda: layers.Conv2D(5, 3), (6, 8, 2), 4 * 6 * 5 * 18, 90, 5, 96),
    "strided": (lambda: layers.Conv2D(4, (3, 1), 2, "same"), (7, 7, 2),
                4 * 4 * 4 * (3 * 2), 24, 4, 98),
    "dilated": (lambda: layers.Conv2D(4, 3, dilation_rate=2), (7, 7, 1), 3 * 3 * 4 * 9, 36, 4, 49),
    "grouped": (lambda: layers.Conv2D(6, 3, groups=3, padding="same"), (4, 4, 6),
                4 * 4 * 6 * (3 * 3 * 2), 108, 6, 96),
    "depthwise": (lambda: layers.DepthwiseConv2D(3, padding="same"), (5, 5, 4),
                  5 * 5 * 4 * 9, 36, 4, 100),
    "multiplied depthwise": (lambda: layers.DepthwiseConv2D(3, depth_multiplier=2), (5, 5, 4),
                             3 * 3 * 8 * 9, 72, 8, 100),
    "dense": (lambda: layers.Dense(7), (11,), 77, 77, 7, 11),
    "dense over space": (lambda: layers.Dense(7), (3, 2, 11), 3 * 2 * 77, 77, 7, 66),
}  # fmt: skip


@pytest.mark.parametrize(
    ("layer", "shape", "macs", "weights", "channels", "elements"), SINGLE.values(), ids=SINGLE
)
def test_a_layer_s_cost_is_the_hand_computed_one(layer, shape, macs, weights, channels, elements):
    built = layer()
    [cost] = layer_costs(keras.Sequential([keras.Input(shape), built]))
    assert (cost.macs, cost.weights, cost.output_channels, cost.input_elements) == (
        macs,
        weights,
        channels,
        elements,
    )
    assert cost.kind == type(built).__name__
    assert cost.edge


CONV1, CONV2, CONV3, LOGITS = 12 * 12 * 4 * 9, 6 * 6 * 8 * 36, 3 * 3 * 16 * 72, 16 * 10


@pytest.fixture
def model():
    return small_cnn(width=4, input_shape=(12, 12, 1))


@pytest.fixture
def bits():
    return BitAssignment(
        {"conv1": 8, "conv2": 3, "conv3": 5, "logits": 8},
        {"conv1": 8, "conv2": 4, "conv3": 2, "logits": 8},
    )


def test_network_order_and_edges(model):
    costs = layer_costs(model)
    assert [(c.name, c.macs, c.edge) for c in costs] == [
        ("conv1", CONV1, True),
        ("conv2", CONV2, False),
        ("conv3", CONV3, False),
        ("logits", LOGITS, True),
    ]


def test_bops_are_eq_6_for_the_float_model_its_network_and_its_wrapper(model, bits):
    expected = 64 * CONV1 + 12 * CONV2 + 10 * CONV3 + 64 * LOGITS
    assert isinstance(bops(model, bits), int)
    assert bops(model, bits) == expected
    assert bops(quantize(model, SearchSpace())[0], bits) == expected
    assert bops(MetaMixModel.from_float(model, SearchSpace()), bits) == expected
    assert layer_costs(quantize(model, SearchSpace())[0]) == layer_costs(model)


def test_average_bits_are_weighted_by_elements(model, bits):
    activation, weight = average_bits(layer_costs(model), bits)
    inputs2, inputs3 = 6 * 6 * 4, 3 * 3 * 8
    assert activation == pytest.approx((3 * inputs2 + 5 * inputs3) / (inputs2 + inputs3))
    kernel2, kernel3 = 36 * 8, 72 * 16
    assert weight == pytest.approx((4 * kernel2 + 2 * kernel3) / (kernel2 + kernel3))


def test_average_bits_of_ends_alone():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="only")])
    assert average_bits(layer_costs(model), BitAssignment({"only": 8}, {"only": 6})) == (8, 6)


def test_weight_bytes_count_scales_and_biases(model, bits):
    kernel_bits = 8 * 36 + 4 * 36 * 8 + 2 * 72 * 16 + 8 * 160
    channels = 4 + 8 + 16 + 10
    assert weight_bytes(layer_costs(model), bits) == kernel_bits / 8 + 8 * channels


def test_uniform_assignment(model):
    assert uniform_assignment(model, 4, 3) == BitAssignment(
        {"conv1": 8, "conv2": 4, "conv3": 4, "logits": 8},
        {"conv1": 8, "conv2": 3, "conv3": 3, "logits": 8},
    )
    assert uniform_assignment(model, 4, 4, edge_bits=5).activation_bits["conv1"] == 5


def two_heads(swapped):
    """Quantizers between its layers give them another order than the float model's."""
    picture, camera = keras.Input((8, 8, 3)), keras.Input((8, 8, 3), dtype="uint8")
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, name="left")(picture))
    y = layers.Conv2D(4, 3, activation="relu", name="right")(layers.Rescaling(1 / 255)(camera))
    y = layers.GlobalAveragePooling2D()(y)
    both = layers.Concatenate()([x, y][:: -1 if swapped else 1])
    heads = (
        layers.Dense(3, activation="relu", name="first")(both),
        layers.Dense(2, name="second")(x),
    )
    return keras.Model([picture, camera], heads[:: -1 if swapped else 1])


def four_heads(swapped):
    left, right = keras.Input((6,)), keras.Input((6,))
    x = layers.Dense(4, activation="relu", name="left")(left)
    y = layers.Dense(4, name="right")(layers.Dense(4, activation="sigmoid", name="before")(right))
    total, shared = layers.Add()([layers.Dense(4, name="wide")(x), y]), layers.Dense(2, name="both")
    heads = [layers.Dense(2, name="sum")(total), shared(left), shared(right)]
    heads.append(layers.Dense(2, activation="sigmoid", name="scores")(x))
    return keras.Model([left, right], heads[:: -1 if swapped else 1])


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("build", [two_heads, four_heads])
def test_a_wrapped_model_has_the_first_and_last_layer_of_its_float_model(build, swapped, tmp_path):
    source = build(swapped)
    wrapped = MetaMixModel.from_float(source, SearchSpace((4, 3), 4))
    wrapped.save(tmp_path / "wrapped.keras")
    expected = uniform_assignment(source, 4, 4)
    assert [*expected.activation_bits.values()].count(8) == 2
    for model in (wrapped, wrapped.network, keras.models.load_model(tmp_path / "wrapped.keras")):
        assert uniform_assignment(model, 4, 4) == expected
        assert {c.name: c for c in layer_costs(model)} == {c.name: c for c in layer_costs(source)}
    wrapped.set_bits(uniform_assignment(wrapped, 3, 4))
    order = [*expected.activation_bits]
    assert {order[0], order[-1]} == {n for n, b in expected.activation_bits.items() if b == 8}
    assert [c.name for c in layer_costs(wrapped)] != order  # else this shows nothing


def test_a_layer_in_float_is_neither_the_first_nor_the_last(model):
    wrapped = MetaMixModel.from_float(model, float_layers=["conv1", "logits"])
    assert [c.name for c in layer_costs(wrapped) if c.edge] == ["conv2", "conv3"]
    wrapped.set_bits(uniform_assignment(wrapped, 4, 4))


@pytest.mark.parametrize("arguments", [(1, 4), (4, 9), (4, 4, 16), (4.0, 4), (True, 4)], ids=str)
def test_uniform_assignment_refuses_bits_outside_2_to_8(model, arguments):
    with pytest.raises(ValueError, match="2 to 8"):
        uniform_assignment(model, *arguments)


def test_a_shared_layer_counts_for_each_call():
    image = keras.Input((4, 4, 3))
    conv = layers.Conv2D(3, 1, name="twice")
    model = keras.Model(image, layers.Dense(2, name="out")(conv(conv(image))))
    costs = {c.name: c for c in layer_costs(model)}
    assert costs["twice"].macs == 2 * 16 * 9
    assert costs["twice"].input_elements == 2 * 48
    assert costs["twice"].weights == 9


def test_unknown_sizes_are_refused_by_name():
    model = keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(2, 3, name="open")])
    with pytest.raises(ValueError, match=r"'open'.*every size but the batch.*None"):
        layer_costs(model)


def test_a_model_without_mac_layers_is_refused_by_name():
    model = keras.Sequential([keras.Input((4,)), layers.ReLU()], name="empty")
    with pytest.raises(ValueError, match="'empty' has no Conv2D"):
        layer_costs(model)


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_bits_of_another_model_are_refused_by_name(model, bits, change):
    names = dict(bits.activation_bits)
    if change == "missing":
        del names["conv2"]
    else:
        names["conv9"] = 4
    with pytest.raises(ValueError, match="conv2" if change == "missing" else "conv9"):
        bops(model, BitAssignment(names, dict.fromkeys(names, 4)))


@pytest.mark.parametrize(
    ("application", "macs", "gigabops"),
    [("MobileNetV2", 300.774, 5.394), ("MobileNetV3Large", 216.590, 3.787)],
)
def test_published_costs_are_reproduced(application, macs, gigabops):
    """The BOPs column of MetaMix's tables (Eq. 6 at A4/W4, the ends at 8/8), 224x224."""
    model = getattr(keras.applications, application)(weights=None, input_shape=(224, 224, 3))
    found = sum(c.macs for c in layer_costs(model))
    assert found / 1e6 == pytest.approx(macs, abs=5e-4)
    assert bops(model, uniform_assignment(model, 4, 4)) / 1e9 == pytest.approx(gigabops, abs=5e-4)


@pytest.mark.parametrize(("padding", "size"), [("same", 3), ("valid", 3), ("valid", 2)])
def test_each_input_of_a_transposed_convolution_meets_the_whole_kernel(padding, size):
    image = keras.Input((5, 4, 3))
    outputs = keras.layers.Conv2DTranspose(7, size, 2, padding, name="up")(image)
    (cost,) = layer_costs(keras.Model(image, outputs))
    assert (cost.kind, cost.output_channels) == ("Conv2DTranspose", 7)
    assert cost.macs == 5 * 4 * 3 * size * size * 7
    assert cost.operations == (
        f"Conv2DTranspose 5x4x3, kernel {size}x{size}x7x3, strides 2x2, {padding}",
    )

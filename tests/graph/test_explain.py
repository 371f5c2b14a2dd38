"""`explain` says what `from_float`, `fold_batch_norm` and `convert` then do."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_metamix as kmm
import metamix_tflite as mt
from keras_metamix.zoo.small import small_mobilenet, small_resnet

SHAPE = (8, 8, 4)
OUTCOMES = {"quantized", "integer", "folded", "left out", "float", "refused"}
NO_OPERATOR = {"folded", "left out", "float", "refused"}
# Of LiteRT's GPU delegate and of the Edge TPU compiler, as published.
NOT_GPU = {"MEAN", "TANH", "LEAKY_RELU", "ELU"}
NOT_EDGE_TPU = {"LEAKY_RELU", "ELU"}


def conv(filters=4, size=3, name=None, **arguments):
    return layers.Conv2D(filters, size, padding="same", name=name, **arguments)


def model_of(*middle):
    """A stem, layers, and logits."""
    image = keras.Input(SHAPE, name="image")
    x = conv(name="stem")(image)
    for layer in middle:
        x = layer(x)
    x = layers.Dense(3, name="logits")(layers.Flatten(name="flat")(x))
    return keras.Model(image, x, name="whole")


def everything():
    """Squeeze-and-excite, hard-swish, concatenation, pools, a batch norm before its layer."""
    image = keras.Input(SHAPE, name="image")
    x = conv(8, name="stem", use_bias=False)(image)
    x = layers.BatchNormalization(name="stem_bn")(x)
    x = layers.Activation("hard_silu", name="stem_swish")(x)
    y = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    y = layers.ReLU(name="depthwise_relu")(y)
    gate = layers.GlobalAveragePooling2D(keepdims=True, name="squeeze")(y)
    gate = layers.Conv2D(4, 1, activation="relu", name="reduce")(gate)
    gate = layers.Conv2D(8, 1, name="expand")(gate)
    gate = layers.Activation("sigmoid", name="gate")(gate)
    y = layers.Multiply(name="excite")([y, gate])
    y = layers.Conv2D(6, 1, name="project")(y)
    y = layers.Concatenate(name="concat")([y, x])
    y = layers.AveragePooling2D(2, name="pool")(y)
    y = layers.BatchNormalization(name="pre_bn")(y)
    y = layers.ReLU(name="pre_relu")(y)
    y = conv(5, name="wide")(y)
    y = layers.Conv2D(4, 1, name="odd")(y)
    y = layers.Activation("tanh", name="tanh")(y)
    y = layers.ELU(name="elu")(layers.LeakyReLU(0.1, name="leaky")(y))
    y = layers.MaxPooling2D(2, 1, name="max")(y)
    y = layers.Cropping2D(((0, 1), (1, 0)), name="crop")(y)
    y = layers.ZeroPadding2D(1, name="pad")(y)
    y = layers.Conv2D(4, 1, 2, groups=2, name="grouped")(y)
    y = layers.Dropout(0.2, name="drop")(layers.Flatten(name="flat")(y))
    y = layers.Dense(3, activation="softmax", name="logits")(y)
    return keras.Model(image, y, name="everything")


EVERYTHING = {  # (outcome, operator)
    "stem": ("quantized", "CONV_2D"),
    "stem_bn": ("folded", ""),
    "stem_swish_gate": ("integer", "DEPTHWISE_CONV_2D"),
    "stem_swish": ("integer", "MUL"),
    "depthwise": ("quantized", "DEPTHWISE_CONV_2D"),
    "depthwise_relu": ("folded", ""),
    "squeeze": ("integer", "MEAN"),
    "reduce": ("quantized", "FULLY_CONNECTED"),
    "reduce_activation": ("folded", ""),
    "expand": ("quantized", "FULLY_CONNECTED"),
    "gate": ("integer", "LOGISTIC"),
    "excite": ("integer", "MUL"),
    "project": ("quantized", "FULLY_CONNECTED"),
    "concat": ("integer", "CONCATENATION"),
    "pool": ("integer", "DEPTHWISE_CONV_2D"),
    "pre_bn": ("integer", "DEPTHWISE_CONV_2D"),
    "pre_relu": ("folded", ""),
    "wide": ("quantized", "CONV_2D"),
    "odd": ("quantized", "CONV_2D"),  # of 5 channels: two weights share a byte
    "tanh": ("integer", "TANH"),
    "leaky": ("integer", "LEAKY_RELU"),
    "elu": ("integer", "ELU"),
    "max": ("integer", "MAX_POOL_2D"),
    "crop": ("integer", "STRIDED_SLICE"),
    "pad": ("integer", "PAD"),
    "grouped": ("quantized", "CONV_2D"),
    "flat": ("integer", "RESHAPE"),
    "drop": ("left out", ""),
    "logits": ("quantized", "FULLY_CONNECTED"),
    "logits_activation": ("left out", ""),
}


@pytest.fixture(scope="module")
def rows():
    """rows(model, ...) -> the rows of `explain` by name."""

    def by_name(model, *args, **kwargs):
        return {row.name: row for row in kmm.explain(model, *args, **kwargs).rows}

    return by_name


# --- rows --------------------------------------------------------------------------------------


def test_outcome_and_operator_of_each_layer(rows):
    found = rows(everything())
    assert {n: (r.outcome, r.operator) for n, r in found.items()} == EVERYTHING
    assert next(iter(found)) == "stem"
    assert list(found)[-2:] == ["logits", "logits_activation"]


def test_what_folds_names_what_it_folds_into(rows):
    found = rows(everything())
    notes = {n: r.note for n, r in found.items() if r.outcome == "folded"}
    assert notes == {
        "stem_bn": "into stem",
        "depthwise_relu": "into depthwise",
        "reduce_activation": "into reduce",
        "pre_relu": "into pre_bn",
    }
    assert "does nothing" in found["drop"].note
    assert "logits" in found["logits_activation"].note


@pytest.mark.parametrize(
    ("weight_bits", "container"),
    [(4, "INT4"), ((4, 3, 2), "INT2 or INT4"), (8, "INT8"), ((8, 4), "INT4 or INT8"), (5, "INT8")],
)
def test_container_follows_from_the_candidates(weight_bits, container, rows):
    found = rows(everything(), kmm.SearchSpace((8, 4), weight_bits))
    for name in ("reduce", "expand", "project"):
        assert found[name].container == container, name
    for name in ("stem", "depthwise", "wide", "odd", "grouped", "logits"):
        assert found[name].container == "INT8", name
    for row in found.values():
        assert bool(row.container) == (row.outcome == "quantized")


def test_edges_below_8_bits_are_held_as_the_others(rows):
    found = rows(everything(), kmm.SearchSpace((4,), 4, edge_bits=4))
    assert found["logits"].container == "INT4"
    assert found["stem"].container == "INT8"


def test_candidates_are_those_of_the_network(rows):
    model, space = everything(), kmm.SearchSpace((8, 4, 3), (8, 5))
    found = rows(model, space)
    layers_of = kmm.MetaMixModel.from_float(model, space).mac_layers
    assert {layer.name for layer in layers_of} == {
        n for n, r in found.items() if r.outcome == "quantized"
    }
    for layer in layers_of:
        row = found[layer.name]
        assert row.activation_bits == layer.input_quantizer.candidates
        assert row.weight_bits == layer.weight_quantizer.candidates


def test_delegates(rows):
    for space in (None, kmm.SearchSpace((8,), 8)):
        for row in rows(everything(), space).values():
            runs = row.outcome in ("quantized", "integer")
            int4 = row.container.startswith("INT4")
            assert row.xnnpack == runs
            assert row.gpu == (runs and not int4 and row.operator not in NOT_GPU), row.name
            refused = row.name == "grouped" or row.operator in NOT_EDGE_TPU
            assert row.edge_tpu == (runs and not refused), row.name


def test_shares_are_those_of_the_costs_and_sum_to_1(rows):
    for model in (everything(), small_resnet((8, 8, 1), width=4)):
        space, found = kmm.SearchSpace((8, 4), (8, 4)), rows(model)
        costs = {cost.name: cost for cost in kmm.layer_costs(model)}
        macs = sum(cost.macs for cost in costs.values())
        most = kmm.uniform_assignment(model, 8, 4)  # the default space at its most bits
        for name, row in found.items():
            assert row.macs == (costs[name].macs if name in costs else 0)
            assert row.mac_share == pytest.approx(row.macs / macs)
            if name in costs:
                bits = most[name].activation * most[name].weight
                expected = row.macs * bits / kmm.bops(model, most)
                assert row.bops_share == pytest.approx(expected)
        for wide in (rows(model), rows(model, space)):
            assert sum(row.mac_share for row in wide.values()) == pytest.approx(1.0)
            assert sum(row.bops_share for row in wide.values()) == pytest.approx(1.0)


def test_a_relu_that_nothing_holds_requantizes(rows):
    image = keras.Input(SHAPE, name="image")
    x = conv(name="stem")(image)
    outputs = conv(name="left")(layers.ReLU(name="relu")(x)), conv(name="right")(x)
    row = rows(keras.Model(image, outputs))["relu"]
    assert (row.outcome, row.operator, row.note) == ("integer", "MUL", "requantizes")


def test_rows_are_of_the_expanded_model(rows):
    inner = keras.Sequential([keras.Input(SHAPE), conv(name="conv", activation="silu")])
    found = rows(model_of(inner, layers.SeparableConv2D(4, 3, name="separable")))
    assert list(found) == [
        "stem", "conv", "conv_activation_gate", "conv_activation",
        "separable_depthwise", "separable_pointwise", "flat", "logits",
    ]  # fmt: skip


# --- what cannot be exported, or not be wrapped ------------------------------------------------


def test_a_layer_that_is_asked_to_stay_in_float(rows):
    row = rows(model_of(conv(name="odd")), float_layers=("odd",))["odd"]
    assert (row.outcome, row.operator, row.macs) == ("float", "", 0)
    assert row.note == "left in float, as asked"
    explanation = kmm.explain(model_of(conv(name="odd")), float_layers=("odd",))
    assert list(explanation.not_exported) == ["odd"]


def test_what_has_no_integer_form_stays_in_float_as_streams_do():
    source, space = (
        model_of(layers.LayerNormalization(name="odd")),
        kmm.SearchSpace(stream_bits=None),
    )
    (row,) = [row for row in kmm.explain(source, space).rows if row.name == "odd"]
    assert (row.outcome, row.note) == ("float", "left in float: stream_bits=None")
    assert kmm.explain(source, space).refused == {}
    assert kmm.MetaMixModel.from_float(source, space).float_layers == ("odd",)


REFUSED = {
    "channels first": lambda: layers.Conv2D(2, 1, data_format="channels_first", name="bad"),
    "norm on another axis": lambda: layers.BatchNormalization(axis=1, name="bad"),
    "pool on another axis": lambda: layers.MaxPooling2D(data_format="channels_first", name="bad"),
}


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED)
def test_what_from_float_refuses_is_refused_with_its_reason(make):
    explanation = kmm.explain(model_of(make()))
    assert list(explanation.refused) == ["bad"]
    assert explanation.not_exported == explanation.refused
    with pytest.raises(ValueError, match="'bad'") as error:
        kmm.MetaMixModel.from_float(model_of(make()))
    assert explanation.refused["bad"] in str(error.value)
    (row,) = [row for row in explanation.rows if row.name == "bad"]
    assert (row.outcome, row.operator, row.macs) == ("refused", "", 0)
    assert row.note in explanation.refused["bad"]
    assert row.note in str(explanation)


def test_a_constant_for_each_pixel_is_refused_by_the_name_of_the_operation():
    table = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    model = model_of(lambda x: x + table)
    (name,) = kmm.explain(model).refused
    with pytest.raises(ValueError, match=rf"'{name}'.*one constant"):
        kmm.MetaMixModel.from_float(model)


def test_everything_that_is_refused_is_found_at_once():
    bad = [layers.BatchNormalization(axis=axis, name=f"bad{axis}") for axis in (1, 2)]
    assert list(kmm.explain(model_of(*bad)).refused) == ["bad1", "bad2"]


class _Subclassed(keras.Model):
    def call(self, inputs):
        return inputs


@pytest.mark.parametrize("model", [_Subclassed(), "bad", None], ids=str)
def test_what_has_no_graph_is_a_type_error(model):
    with pytest.raises(TypeError, match="Expected a functional or Sequential Keras model, found"):
        kmm.explain(model)


# --- the table ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build",
    [
        everything,
        lambda: small_resnet((8, 8, 1), width=4),
        lambda: model_of(layers.LayerNormalization(name="odd")),
    ],
)
def test_the_table_has_a_line_for_each_row(build):
    explanation = kmm.explain(build())
    table, _, remark = str(explanation).partition("\n\n")
    assert ("without VNNI" in remark) == bool(explanation.saturating)
    header, rule, *lines = table.splitlines()
    assert header.split()[0] == "layer"
    for name in ("LiteRT operator", "weights in", "XNNPACK", "GPU", "Edge TPU", "MAC share"):
        assert name in header
    assert set(rule) == {"-", " "}
    assert len(lines) == len(explanation.rows)
    for line, row in zip(lines, explanation.rows, strict=True):
        cells = line.split()
        assert cells[:2] == [row.name, row.layer_class]
        for cell in (row.operator, row.container, row.note, f"{row.macs:,}" if row.macs else ""):
            assert cell in line
        assert row.outcome in OUTCOMES
        assert (row.outcome in line) == (row.outcome in NO_OPERATOR)
        assert bool(row.operator) != (row.outcome in NO_OPERATOR)
        assert "yes" not in line or row.operator
    with pytest.raises(dataclasses.FrozenInstanceError):
        explanation.rows[0].name = "other"


def test_explaining_leaves_the_model_as_it_was():
    model = everything()
    before = [np.array(w) for w in model.weights]
    nodes = [len(layer._inbound_nodes) for layer in model.layers]
    kmm.explain(model)
    assert [len(layer._inbound_nodes) for layer in model.layers] == nodes
    for old, weight in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, weight)


# --- agreement with the file -------------------------------------------------------------------


def constants():
    return model_of(
        layers.ReLU(name="first_relu"),
        lambda x: layers.Rescaling(0.5, -0.25, name="rescaling")(x),
        conv(name="conv", activation="hard_sigmoid"),
        lambda x: layers.Add(name="sum")([x, conv(name="other")(x), x]),
        lambda x: ops.relu(x),
        layers.GlobalMaxPooling2D(keepdims=True, name="largest"),
    )


def sizes():
    return model_of(
        conv(64, 1, name="many"),
        layers.Conv2DTranspose(8, 2, 2, name="blocks"),
        layers.Conv2DTranspose(4, 3, 1, name="transposed"),
        layers.UpSampling2D((1, 2), name="repeated"),
        layers.Resizing(12, 10, name="bilinear"),
        lambda x: layers.Add(name="sum")([x, conv(name="other")(x)]),
        layers.Resizing(6, 10, "nearest", name="fewer"),
    )


FILES = {
    "sizes": sizes,
    "small_resnet": lambda: small_resnet((8, 8, 1), classes=5, width=4),
    "small_mobilenet": lambda: small_mobilenet((16, 16, 1), classes=5, width=4),
    "everything": everything,
    "constants": constants,
}


@pytest.fixture(scope="module")
def in_file():
    """in_file(model, space) -> {tensor name: (operator, type of the weights)} of its file."""

    def convert(source, space):
        model = kmm.MetaMixModel.from_float(source, space)
        shape = source.inputs[0].shape[1:]
        images = np.random.default_rng(0).normal(0, 2, (8, *shape)).astype(np.float32)
        kmm.calibrate(model, images)
        model.set_bits(model.bit_assignment)
        graph = mt.verify(mt.convert(model), model.bit_assignment)
        types = {t.name: t.type for t in graph.tensors}
        names = {o: graph.tensors[o.outputs[0]].name for o in graph.operators}
        return {name: (o.op, types.get(f"{name}/weights", "")) for o, name in names.items()}

    return convert


@pytest.mark.parametrize("weight_bits", [4, 8])
@pytest.mark.parametrize("name", FILES)
def test_operators_and_containers_are_those_of_the_file(name, weight_bits, in_file):
    keras.utils.set_random_seed(0)
    source, space = FILES[name](), kmm.SearchSpace((4,), weight_bits)
    explanation, found = kmm.explain(source, space), in_file(source, space)
    for row in explanation.rows:
        if row.outcome == "quantized":
            assert found[row.name] == (row.operator, row.container), row.name
        elif row.outcome == "integer":
            assert found[row.name][0] == row.operator, row.name
        else:
            assert row.name not in found
    # What else the file holds: ends of the graph, and what changes a grid.
    names = {row.name for row in explanation.rows}  # "NAME/part" is one of several operators
    rest = {found[n][0] for n in found if n.partition("/")[0] not in names}
    assert rest <= {"QUANTIZE", "DEQUANTIZE", "MUL"}


def test_where_the_container_depends_on_the_bits_the_file_has_one_of_the_two(in_file):
    keras.utils.set_random_seed(0)
    source, space = everything(), kmm.SearchSpace((4,), (8, 4))
    found = in_file(source, space)
    for row in kmm.explain(source, space).rows:
        if row.outcome == "quantized":
            assert found[row.name][1] in row.container.split(" or ")


@pytest.mark.parametrize(
    "layer",
    [
        layers.ConvLSTM1D(2, 1, name="bad"),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_a_layer_that_cannot_be_opened_is_refused_with_its_reason(layer):
    explanation = kmm.explain(model_of(layer))
    assert set(explanation.refused) == {"bad"}
    with pytest.raises(ValueError) as raised:
        kmm.MetaMixModel.from_float(model_of(layer))
    assert explanation.refused["bad"] in str(raised.value)


def test_shares_of_a_layer_that_is_called_twice_sum_to_1():
    image = keras.Input(SHAPE, name="image")
    shared = conv(name="shared")
    x = shared(layers.ReLU(name="relu")(shared(image)))
    x = layers.Dense(3, name="logits")(layers.Flatten(name="flat")(x))
    rows = kmm.explain(keras.Model(image, x)).rows
    assert [row.name for row in rows].count("shared") == 2
    assert sum(row.mac_share for row in rows) == pytest.approx(1)
    assert sum(row.bops_share for row in rows) == pytest.approx(1)


def test_the_first_layer_behind_one_in_float_is_an_end():
    rows = {r.name: r for r in kmm.explain(model_of(conv(name="next")), None, ["stem"]).rows}
    model = kmm.MetaMixModel.from_float(model_of(conv(name="next")), None, ["stem"])
    assert rows["next"].activation_bits == (8,)
    assert model.network.get_layer("next").input_quantizer.candidates == (8,)


def test_a_model_without_mac_layers_is_refused():
    image = keras.Input(SHAPE, name="image")
    with pytest.raises(ValueError, match="no MAC layer"):
        kmm.explain(keras.Model(image, layers.ReLU()(image)))


def test_the_default_space_is_named_and_how_to_have_another():
    model = small_resnet((8, 8, 1), width=4)
    remedy = "default space. Those of QuantizedModel.from_float(model, 8, 4): explain("
    assert remedy in str(kmm.explain(model))
    fixed = kmm.explain(model, kmm.SearchSpace(8, 4))
    assert "default space" not in str(fixed)
    plain = kmm.QuantizedModel.from_float(model, 8, 4)
    assert fixed.space == plain.space
    for layer in plain.mac_layers:
        (row,) = (row for row in fixed.rows if row.name == layer.name)
        assert row.activation_bits == layer.input_quantizer.candidates
        assert row.weight_bits == layer.weight_quantizer.candidates


def test_weights_that_saturate_in_openvino_are_reported():
    image = keras.Input((8, 8, 3))
    x = layers.Flatten()(layers.Conv2D(4, 3, name="conv")(image))
    model = keras.Model(image, layers.Dense(3, name="logits")(x))
    found = kmm.explain(model)
    assert found.saturating == ("conv", "logits")  # the edges
    assert "with those of 2 layers that may have 8 (.saturating) saturate there" in str(found)
    fewer = kmm.explain(model, kmm.SearchSpace(edge_weight_bits=7))
    assert fewer.saturating == () and "VNNI" not in str(fewer)

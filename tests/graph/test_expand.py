"""Nested, composite and combined operations become one flat graph of the same arithmetic."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import keras_metamix as kmm
from keras_metamix.assignment import SearchSpace
from keras_metamix.graph.expand import expand
from keras_metamix.graph.quantize import quantize
from keras_metamix.graph.topology import Topology
from keras_metamix.layers.mac import QuantizedMac
from keras_metamix.layers.mode import FLOAT, quantization_mode
from keras_metamix.metamix.model import MetaMixModel

SHAPE = (8, 8, 4)


def conv(filters=4, size=3, name=None, **arguments):
    return layers.Conv2D(filters, size, padding="same", name=name, **arguments)


def model_of(function, shape=SHAPE, head=True):
    """A model of `function` between a convolution and a dense layer."""
    image = keras.Input(shape, name="image")
    x = function(conv(name="stem")(image))
    if head:
        x = layers.Dense(3, name="logits")(layers.Flatten(name="flat")(x))
    return keras.Model(image, x, name="whole")


def block(name, shape=SHAPE):
    """A model of a convolution, a batch norm and a ReLU, with names of its own."""
    x = image = keras.Input(shape, name=f"{name}_in")
    x = conv(name="conv")(x)
    x = layers.BatchNormalization(name="norm")(x)
    return keras.Model(image, layers.ReLU(name="relu")(x), name=name)


def sequential_block(name):
    parts = [keras.Input(SHAPE), conv(name="a"), layers.ReLU(name="b"), conv(name="c")]
    return keras.Sequential(parts, name=name)


def deep():
    inner = keras.Input(SHAPE)
    middle = keras.Model(inner, conv(name="last")(block("innermost")(inner)), name="middle")
    return model_of(middle)


def called_twice():
    shared = block("shared")
    return model_of(lambda x: layers.Add(name="sum")([shared(x), shared(conv(name="other")(x))]))


def equal_names():
    first, second = block("first"), block("second")
    return model_of(lambda x: second(first(x)))


def outputs_of_a_nested_model():
    image = keras.Input(SHAPE)
    both = keras.Model(image, [conv(name="left")(image), conv(name="right")(image)], name="both")
    return model_of(lambda x: layers.Add(name="sum")(both(x)))


def inputs_of_a_nested_model():
    parts = {name: keras.Input(SHAPE, name=name) for name in ("low", "high")}
    total = layers.Add(name="sum")([conv(name="on_low")(parts["low"]), parts["high"]])
    inner = keras.Model(parts, total, name="inner")
    return model_of(lambda x: inner({"high": x, "low": ops.relu(x)}))


class Composite(layers.Layer):
    """Runs layers that it owns."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = conv(name="inner_conv")
        self.norm = layers.BatchNormalization(name="inner_norm")
        self.rest = [layers.ReLU(name="inner_relu"), conv(name="inner_last")]

    def call(self, x, training=None):
        x = self.norm(self.conv(x), training=training)
        for layer in self.rest:
            x = layer(x)
        return x


class Gated(layers.Layer):
    """Runs layers and raw operations, reads two tensors and an argument that is none."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.conv = conv(name="gate_conv")

    def call(self, x, other=None, twice=False):
        x = ops.relu(self.conv(x)) * other
        return x * 2.0 if twice else x


class Outer(layers.Layer):
    """A composite layer of a composite layer and of a model."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.composite, self.model = Composite(name="composite"), block("block")

    def call(self, x):
        return self.model(self.composite(x))


class Swish(layers.Layer):
    def call(self, x):
        return x * ops.relu6(x + 3.0) * (1.0 / 6.0)


def composite_called_twice():
    shared = Composite(name="shared")
    return model_of(lambda x: layers.Add(name="sum")([shared(x), shared(ops.relu(x))]))


def gated(x):
    gate = conv(name="gate", activation="sigmoid")(x)
    return Gated(name="gated")(x, other=gate, twice=True)


def hard_sigmoid_of_applications(x):
    return layers.ReLU(6.0, name="relu6")(x + 3.0) * (1.0 / 6.0)


def squeeze_and_excite(x):
    gate = layers.GlobalAveragePooling2D(keepdims=True, name="squeeze")(x)
    gate = layers.Conv2D(4, 1, name="excite")(gate)
    return layers.Multiply(name="scaled")([x, hard_sigmoid_of_applications(gate)])


def separable(x):
    return layers.SeparableConv2D(
        6, 3, 2, "same", depth_multiplier=2, activation="relu", name="separable"
    )(x)


def separable_twice():
    shared = layers.SeparableConv2D(4, 3, padding="same", use_bias=False, name="shared")
    return model_of(lambda x: shared(layers.ReLU(name="relu")(shared(x))))


def fused(cls, activation):
    def apply(x):
        if cls is layers.DepthwiseConv2D:
            return cls(3, activation=activation, name="fused")(x)
        if cls is layers.Conv2D:
            return cls(5, 3, activation=activation, name="fused")(x)
        return cls(5, activation=activation, name="fused")(x)

    return lambda: model_of(apply)


def activation_layer_as_argument():
    return model_of(lambda x: conv(name="fused", activation=layers.ReLU(6.0, name="six"))(x))


def three(cls):
    return lambda: model_of(lambda x: cls(name="joined")([x, conv(name="b")(x), conv(name="c")(x)]))


def two(function):
    return lambda: model_of(lambda x: function([x, conv(name="b")(x)]))


def of_stem(function):
    return lambda: model_of(function)


def softmax_end():
    image = keras.Input(SHAPE, name="image")
    x = layers.Flatten(name="flat")(conv(name="stem")(image))
    return keras.Model(image, layers.Dense(3, activation="softmax", name="logits")(x))


def preprocessed():
    image = keras.Input(SHAPE, name="image")
    x = layers.Rescaling(1 / 127.5, -1.0, name="rescaling")(image)
    x = layers.Normalization(
        mean=[0.1, -0.2, 0.3, 0.0], variance=[1.0, 2.0, 0.5, 4.0], name="normalization"
    )(x)
    return keras.Model(image, conv(name="only")(x), name="preprocessed")


def shared_layers():
    shared, norm = conv(name="shared"), layers.BatchNormalization(name="shared_norm")
    return model_of(lambda x: norm(shared(layers.ReLU(name="relu")(norm(shared(x))))))


def several_ends(structure):
    def build():
        left, right = keras.Input(SHAPE, name="left"), keras.Input((8, 8, 2), name="right")
        total = layers.Add(name="sum")([block("inner")(left), conv(name="on_right")(right)])
        outputs = conv(2, name="one")(total), sequential_block("two")(total)
        inputs = {"right": right, "left": left} if structure is dict else [left, right]
        return keras.Model(inputs, outputs, name="several")

    return build


def features():
    x = keras.Input((5,), name="features")
    y = layers.Dense(6, activation="gelu", name="hidden")(x)
    return keras.Model(x, layers.Dense(2, activation="tanh", name="last")(y))


FUSED = ["relu", "relu6", "hard_silu", "silu", "sigmoid", "tanh", "gelu", "hard_sigmoid"]
MODELS = {
    "nested functional": lambda: model_of(block("inner")),
    "nested Sequential": lambda: model_of(sequential_block("inner")),
    "nested twice deep": deep,
    "nested model called twice": called_twice,
    "equal names": equal_names,
    "nested of several outputs": outputs_of_a_nested_model,
    "nested of named inputs": inputs_of_a_nested_model,
    "composite layer": of_stem(lambda x: Composite(name="composite")(x)),
    "composite told that it does not train": of_stem(lambda x: Composite()(x, training=False)),
    "composite called twice": composite_called_twice,
    "composite of two tensors and raw operations": of_stem(gated),
    "composite of a composite and a model": of_stem(lambda x: Outer(name="outer")(x)),
    "weightless layer": of_stem(lambda x: Swish(name="swish")(x)),
    "separable": of_stem(separable),
    "separable called twice": separable_twice,
    **{f"{c.__name__} {a}": fused(c, a)
       for c, activations in ((layers.Conv2D, FUSED), (layers.DepthwiseConv2D, FUSED[1:5]),
                              (layers.Dense, FUSED[:1] + FUSED[4:])) for a in activations},
    "an activation layer as argument": activation_layer_as_argument,
    "softmax at the end": softmax_end,
    **{f"Activation {a}": of_stem(lambda x, a=a: layers.Activation(a, name="act")(x))
       for a in ("silu", "hard_silu", "softmax", "linear")},
    "raw silu": of_stem(ops.silu),
    "raw hard_silu": of_stem(ops.hard_silu),
    "three-way sum": three(layers.Add),
    "three-way product": three(layers.Multiply),
    "three-way concatenation": three(layers.Concatenate),
    "average": two(layers.Average(name="mean")),
    "maximum": two(layers.Maximum(name="most")),
    "difference": two(layers.Subtract(name="less")),
    "raw sum and product": two(lambda pair: (pair[0] + pair[1]) * pair[0]),
    "Rescaling and Normalization": preprocessed,
    "x + 3": of_stem(lambda x: x + 3.0),
    "2 * x": of_stem(lambda x: 2.0 * x),
    "1 - x": of_stem(lambda x: 1.0 - x),
    "x - 1": of_stem(lambda x: x - 1.0),
    "x / 2": of_stem(lambda x: x / 2.0),
    "a constant for each channel": of_stem(
        lambda x: x * np.array([1.0, -2.0, 0.5, 3.0], np.float32)
    ),
    "hard sigmoid of keras.applications": of_stem(hard_sigmoid_of_applications),
    "squeeze-and-excite": of_stem(squeeze_and_excite),
    "shared layers": shared_layers,
    "several inputs and outputs": several_ends(list),
    "named inputs": several_ends(dict),
    "features": features,
}  # fmt: skip


@pytest.fixture(scope="module")
def filled():
    """filled(model): every weight random, so that none is neutral."""

    def fill(model):
        rng = np.random.default_rng(0)
        for variable in model.weights:
            positive = variable.name in ("moving_variance", "gamma")
            low, high = (0.5, 2.0) if positive else (-0.6, 0.6)
            variable.assign(rng.uniform(low, high, variable.shape))
        return model

    return fill


@pytest.fixture(scope="module", params=MODELS)
def model(request, filled):
    """Each of MODELS; tests leave it as it is."""
    return filled(MODELS[request.param]())


@pytest.fixture(scope="module")
def expanded(model):
    return expand(model)[0]


@pytest.fixture
def images():
    def make(model, count=3):
        rng = np.random.default_rng(1)
        return keras.tree.map_structure(
            lambda t: rng.normal(0, 2, (count, *t.shape[1:])).astype(np.float32), model.input
        )

    return make


@pytest.fixture
def same():
    def check(found, expected):
        keras.tree.assert_same_structure(found, expected)
        for a, b in zip(keras.tree.flatten(found), keras.tree.flatten(expected), strict=True):
            np.testing.assert_array_equal(a, b)

    return check


@pytest.fixture
def multiset():
    """Shapes and bytes of weights, in no order."""

    def of(weights):
        arrays = [np.asarray(w) for w in weights]
        return sorted((a.shape, a.tobytes()) for a in arrays)

    return of


# --- the same arithmetic -----------------------------------------------------------------------


def test_the_expanded_model_differs_by_exactly_0(model, expanded, images, same):
    x = images(model)
    same(expanded(x), model(x))


def test_the_expanded_model_is_flat_with_the_same_weights(model, expanded, multiset):
    names = [operation.name for operation in expanded.operations]
    assert len(names) == len(set(names))
    for operation in expanded.operations:
        assert not isinstance(operation, (keras.Model, layers.SeparableConv2D))
        assert not isinstance(operation, (Composite, Gated, Outer, Swish))
        if isinstance(operation, (layers.Conv2D, layers.DepthwiseConv2D, layers.Dense)):
            assert operation.activation.__name__ == "linear"
        if isinstance(operation, (layers.Add, layers.Multiply)):
            assert len(operation.input) == 2
    assert multiset(expanded.weights) == multiset(model.weights)
    assert {id(w) for w in expanded.weights}.isdisjoint(id(w) for w in model.weights)


def wrap(model):
    """A MetaMixModel of a model, what has no integer form left in float."""
    return MetaMixModel.from_float(model, SearchSpace(), kmm.explain(model).refused)


def test_from_float_with_quantizers_off_differs_by_exactly_0(model, images, same):
    x, wrapped = images(model), wrap(model)
    with quantization_mode(FLOAT):
        same(wrapped(x), model(x))


def test_the_given_model_is_left_as_it_was(model, images, same):
    x = images(model)
    before, outputs = [np.array(w) for w in model.weights], model(x)
    models = [m for m in model._flatten_layers() if isinstance(m, keras.Model)]
    flat = [layer for m in models for layer in m.layers]
    nodes = {id(layer): len(layer._inbound_nodes) for layer in flat}
    for network in (expand(model)[0], wrap(model).network):
        for variable in network.weights:
            if variable.dtype == "float32":
                variable.assign(np.full(variable.shape, 0.5))
    for variable, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(variable, value, err_msg=variable.path)
    assert {id(layer): len(layer._inbound_nodes) for layer in flat} == nodes
    for layer in model.layers:
        if nodes[id(layer)] == 1:
            assert model.get_layer(layer.name).output is not None  # Keras raises for several
    same(model(x), outputs)


@pytest.mark.parametrize("name", ["composite layer", "nested twice deep", "separable"])
def test_the_expanded_model_trains_as_the_given_one(name, filled, images, multiset):
    model = filled(MODELS[name]())
    expanded, x, before = expand(model)[0], images(model), multiset(model.weights)
    np.testing.assert_array_equal(expanded(x, training=True), model(x, training=True))
    assert multiset(expanded.weights) == multiset(model.weights)  # moving statistics
    assert (multiset(model.weights) == before) == (name == "separable")


def test_a_frozen_part_stays_frozen(filled):
    inner = block("inner")
    inner.trainable = False
    expanded = expand(filled(model_of(inner)))[0]
    assert not expanded.get_layer("conv").trainable
    assert not expanded.get_layer("norm").trainable
    assert expanded.get_layer("stem").trainable


# --- names -------------------------------------------------------------------------------------


def names_of(model):
    return [o.name for o in model.operations if not isinstance(o, layers.InputLayer)]


def test_layers_of_a_nested_model_keep_their_names():
    expanded = expand(MODELS["nested functional"]())[0]
    assert names_of(expanded) == ["stem", "conv", "norm", "relu", "flat", "logits"]


def test_equal_names_get_the_name_of_their_model_before_them():
    expanded = expand(equal_names())[0]
    assert names_of(expanded) == [
        "stem", "conv", "norm", "relu", "second_conv", "second_norm", "second_relu",
        "flat", "logits",
    ]  # fmt: skip
    model = MetaMixModel.from_float(equal_names(), SearchSpace())
    assert set(model.bit_assignment.weight_bits) == {"stem", "conv", "second_conv", "logits"}


def test_names_outside_models_stay():
    inner = block("inner")
    expanded = expand(model_of(lambda x: conv(name="conv")(inner(x))))[0]
    assert names_of(expanded)[:5] == ["stem", "inner_conv", "norm", "relu", "conv"]


def test_names_of_what_an_operation_becomes():
    def function(x):
        x = layers.Conv2D(4, 3, activation="hard_silu", name="a")(x)
        x = layers.SeparableConv2D(4, 3, activation="relu", name="b")(x)
        x = layers.Add(name="c")([x, x, x, x])
        return layers.Average(name="d")([x, x])

    assert names_of(expand(model_of(function))[0])[1:-2] == [
        "a", "a_activation_gate", "a_activation",
        "b_depthwise", "b_pointwise", "b_activation",
        "c_2", "c_3", "c", "d_sum", "d",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (called_twice, "conv"),
        (shared_layers, "shared"),
        (separable_twice, "shared_depthwise"),
        (composite_called_twice, "inner_conv"),
    ],
)
def test_what_is_called_twice_is_one_layer_called_twice(build, name):
    expanded = expand(build())[0]
    calls = [n for n in Topology(expanded).nodes if n.name == name]
    assert len(calls) == 2
    assert calls[0].operation is calls[1].operation
    model = MetaMixModel.from_float(build(), SearchSpace())
    assert len([layer for layer in model.mac_layers if layer.name == name]) == 1


@pytest.mark.parametrize("name", ["nested twice deep", "separable", "raw silu", "named inputs"])
def test_expanding_twice_changes_nothing(name, filled, images, same):
    model = filled(MODELS[name]())
    first = expand(model)[0]
    second = expand(first)[0]
    assert names_of(first) == names_of(second)
    same(first(images(model)), second(images(model)))


# --- what is refused ---------------------------------------------------------------------------


@keras.saving.register_keras_serializable("test_expand")
class OwnWeights(layers.Layer):
    def build(self, input_shape):
        self.slope = self.add_weight((input_shape[-1],), "ones", name="slope")

    def call(self, x):
        return x * self.slope


class OwnTensorFlow(layers.Layer):
    def call(self, x):
        return tf.nn.relu(x)


class OwnNumPy(layers.Layer):
    def call(self, x):
        return np.maximum(x, 0)

    def compute_output_shape(self, input_shape):
        return input_shape


class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = conv(name="inner")

    def call(self, x):
        return self.inner(x)


class Holder(layers.Layer):
    """A composite layer that holds one that cannot be opened."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.own = OwnWeights(name="bad")

    def call(self, x):
        return self.own(x)


REFUSED = {
    "weights of its own": (
        lambda: OwnWeights(name="bad"), r"'bad' \(OwnWeights\).*weights of its own, \['slope'\]"),
    "TensorFlow": (
        lambda: OwnTensorFlow(name="bad"), r"'bad' \(OwnTensorFlow\): could not be opened"),
    "NumPy": (lambda: OwnNumPy(name="bad"), r"'bad' \(OwnNumPy\): could not be opened"),
    "a subclassed model": (
        lambda: Subclassed(name="bad"), r"'bad' \(Subclassed\): a subclassed model"),
    "inside a composite layer": (
        lambda: Holder(name="holder"), r"'bad' \(OwnWeights\) inside 'holder' \(Holder\)"),
    "EinsumDense": (
        lambda: layers.EinsumDense("abcd,de->abce", (8, 8, 4), name="bad"),
        r"'bad' \(EinsumDense\): not exported yet"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_opened_is_refused_by_name(make, message):
    model = model_of(make())
    for function in (expand, MetaMixModel.from_float):
        with pytest.raises(ValueError, match=message) as error:
            function(model)
        assert list(error.value.refused) == ["bad"]
        assert "float_layers=['bad']" in str(error.value)


def test_an_unknown_name_in_float_layers_is_refused():
    model = MODELS["nested functional"]()
    names = frozenset({"conv", "con"})
    for function in (
        lambda: expand(model, names)[0],
        lambda: quantize(model, SearchSpace(), names)[0],
        lambda: kmm.explain(model, float_layers=names),
    ):
        with pytest.raises(
            ValueError, match=r"float_layers: .* layers of 'whole', found \['con'\]"
        ):
            function()


# --- float_layers ------------------------------------------------------------------------------

IN_FLOAT = {
    "weights of its own": (lambda: model_of(OwnWeights(name="odd")), OwnWeights),
    "Conv2DTranspose": (
        lambda: model_of(layers.Conv2DTranspose(4, 3, padding="same", name="odd")),
        layers.Conv2DTranspose),
    "Conv2D": (lambda: model_of(conv(name="odd", activation="relu")), layers.Conv2D),
    "inside a nested model": (
        lambda: model_of(keras.Sequential([keras.Input(SHAPE), OwnWeights(name="odd")])),
        OwnWeights),
}  # fmt: skip


@pytest.fixture(params=IN_FLOAT)
def in_float(request, filled):
    """(float model, its MetaMixModel with "odd" in float, class of "odd")."""
    build, cls = IN_FLOAT[request.param]
    model, space = filled(build()), SearchSpace()
    return model, MetaMixModel.from_float(model, space, ("odd",)), cls


def test_a_layer_in_float_is_the_plain_one(in_float, images, same):
    model, wrapped, cls = in_float
    layer = wrapped.network.get_layer("odd")
    assert type(layer) is cls
    assert not isinstance(layer, QuantizedMac)
    assert set(wrapped.bit_assignment.weight_bits) == {"stem", "logits"}
    with quantization_mode(FLOAT):
        same(wrapped(images(model)), model(images(model)))


def test_a_layer_in_float_trains_and_is_saved_and_cannot_be_folded(in_float, images, tmp_path):
    model, wrapped, _ = in_float
    x, odd = images(model, 8), wrapped.network.get_layer("odd")
    before = np.array(odd.weights[0])
    wrapped.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = wrapped.fit(x, np.arange(8) % 3, batch_size=8, verbose=0)
    assert wrapped.phase == "bit_meta"
    assert np.isfinite(history.history["loss"][0])
    assert np.any(np.asarray(odd.weights[0]) != before)
    wrapped.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again(x), wrapped(x))
    assert again.bit_assignment == wrapped.bit_assignment
    for found in (wrapped, again):
        found.set_bits(found.bit_assignment)
        with pytest.raises(ValueError, match="'odd'"):
            kmm.fold_batch_norm(found)


@pytest.mark.parametrize("kind", ["BatchNormalization", "ReLU", "MaxPooling2D", "Rescaling"])
def test_a_layer_of_a_known_kind_stays_in_float_too(kind, filled, images):
    arguments = {"Rescaling": {"scale": 0.5}}.get(kind, {})
    layer = getattr(layers, kind)(name="odd", **arguments)
    wrapped = MetaMixModel.from_float(filled(model_of(layer)), SearchSpace(), ["odd"])
    kmm.calibrate(wrapped, images(wrapped.network))
    wrapped.set_bits(kmm.uniform_assignment(wrapped, 4, 4))
    assert type(wrapped.network.get_layer("odd")) is getattr(layers, kind)
    with pytest.raises(ValueError, match="'odd'.*left in float"):
        kmm.fold_batch_norm(wrapped)


def test_layers_of_equal_names_stay_in_float_together(filled):
    parts = [keras.Sequential([keras.Input(SHAPE), OwnWeights(name="odd")], name=f"m{i}")
             for i in (1, 2)]  # fmt: skip
    model = filled(model_of(lambda x: parts[1](parts[0](x))))
    assert set(MetaMixModel.from_float(model, SearchSpace(), ["odd"]).float_layers) == {
        "odd", "m2_odd"}  # fmt: skip


class _Frozen(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = layers.BatchNormalization()

    def call(self, x):
        return self.norm(x, training=False)


def test_a_composite_that_calls_for_inference_is_refused():
    # A functional model passes its own `training` on to every layer.
    with pytest.raises(ValueError, match=r"'odd' \(_Frozen\): calls .* with training=False"):
        expand(model_of(_Frozen(name="odd")))

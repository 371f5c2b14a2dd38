"""TransitionalBatchNormalization: each set is a Keras batch norm, and only the one in use moves."""

import itertools

import keras
import numpy as np
import pytest

from keras_metamix.layers.activation_quantizer import ActivationQuantizer
from keras_metamix.layers.batch_norm import FoldableBatchNormalization
from keras_metamix.layers.bit_choice import BitChoice
from keras_metamix.layers.mac import QuantizedConv2D
from keras_metamix.layers.mode import FLOAT, QuantizationMode, quantization_mode
from keras_metamix.layers.transitional_batch_norm import TransitionalBatchNormalization

BITS = (4, 3, 2)
NAMES = ("first", "second")
SHAPES = {"image": (8, 5, 5, 4), "features": (16, 4)}
SETS = {"3 x 3": (3, 3), "1 x 3": (1, 3), "2 x 1": (2, 1)}
OPTIONS = {
    "default": {},
    "no scale": {"scale": False},
    "no center": {"center": False},
    "momentum": {"momentum": 0.7, "epsilon": 1e-5},
    "frozen by trainable": {"trainable": False},
}
CASES = {name: (sets, {}) for name, sets in SETS.items()}
CASES |= {name: ((3, 3), options) for name, options in OPTIONS.items() if options}


@pytest.fixture(params=SHAPES)
def shape(request):
    return SHAPES[request.param]


@pytest.fixture(params=CASES)
def case(request):
    """Sets and other arguments of a layer."""
    return CASES[request.param]


@pytest.fixture(params=SETS)
def sets(request):
    return SETS[request.param]


class Ends(dict):
    """Quantizers of the two layers that key a batch norm, by name."""

    def __init__(self, sets):
        super().__init__()
        for name, count in zip(NAMES, sets, strict=True):
            self[name] = ActivationQuantizer(BITS[:count], name=name)
            self[name].build((None, 4))

    @property
    def choices(self):
        return {name: quantizer.choice for name, quantizer in self.items()}


@pytest.fixture
def make(shape):
    """A layer with random variables in every set."""

    def build(sets, own=1, **options):
        layer = TransitionalBatchNormalization(sets, own, NAMES, **options)
        layer.follow(Ends(sets).choices)
        layer.build((None, *shape[1:]))
        generator = np.random.default_rng(0)
        layer.set_weights([generator.uniform(0.2, 2.0, v.shape) for v in layer.weights])
        return layer

    return build


@pytest.fixture
def keras_twin(shape):
    """Keras' layer with the variables of one set."""

    def build(layer, number, **options):
        twin = keras.layers.BatchNormalization(**options)
        twin.build((None, *shape[1:]))
        twin.set_weights([np.array(v)[number] for v in layer.weights])
        return twin

    return build


def choices(sets):
    """(number of the set, candidate of the first layer, candidate of the second)."""
    pairs = itertools.product(range(sets[0]), range(sets[1]))
    return [(i * sets[1] + j, i, j) for i, j in pairs]


def some(sets):
    """The first and the last of `choices`, and one between."""
    found = choices(sets)
    return [found[n] for n in sorted({0, 2 * len(found) // 3, len(found) - 1})]


def forced(layer, i, j):
    """What a training step of Bit-Mixer draws, for these two layers and another."""
    another = BitChoice(BITS, "activations")
    drawn = dict(zip((*layer.choices, another), (i, j, 0), strict=True))
    return QuantizationMode("forced", "off", False, drawn)


def assign(layer, i, j):
    for choice, number in zip(layer.choices, (i, j), strict=True):
        choice.assign(BITS[number])


# --- set by set -----------------------------------------------------------------------------------


def test_training_is_keras_s_in_the_set_drawn_and_leaves_the_others(
    make, keras_twin, case, batches, close
):
    sets, options = case
    layer = make(sets, **options)
    for number, i, j in some(sets):
        twin = keras_twin(layer, number, **options)
        before = [np.array(v) for v in layer.weights]
        for batch in batches[:2]:
            with quantization_mode(forced(layer, i, j)):
                outputs = layer(batch, training=True)
            close(outputs, twin(batch, training=True))
        for ours, theirs, old in zip(layer.weights, twin.weights, before, strict=True):
            found = np.array(ours)
            np.testing.assert_allclose(found[number], theirs, rtol=1e-5, atol=1e-6)
            unused = np.delete(found, number, axis=0)
            np.testing.assert_array_equal(unused, np.delete(old, number, axis=0))


def test_gradients_are_keras_s_in_the_set_drawn_and_0_in_the_others(
    make, keras_twin, sets, shape, batches, gradients_of
):
    upstream = np.random.default_rng(2).normal(size=shape)
    batch = keras.ops.convert_to_tensor(batches[1])
    layer = make(sets)
    for number, i, j in some(sets):
        twin = keras_twin(layer, number)
        with quantization_mode(forced(layer, i, j)):
            found = gradients_of(
                lambda: layer(batch, training=True), [batch, layer.gamma, layer.beta], upstream
            )
        expected = gradients_of(
            lambda twin=twin: twin(batch, training=True), [batch, twin.gamma, twin.beta], upstream
        )
        for name, ours, theirs in zip(("x", "gamma", "beta"), found, expected, strict=True):
            if name != "x":
                assert not np.delete(ours, number, axis=0).any()
                ours = ours[number]
                assert np.all(ours != 0)
            scale = np.max(np.abs(theirs))
            np.testing.assert_allclose(ours / scale, theirs / scale, atol=1e-3, err_msg=name)


def test_evaluation_in_float_is_keras_s_exactly(make, keras_twin, case, batches):
    sets, options = case
    layer = make(sets, **options)
    outputs = []
    for number, i, j in choices(sets):
        twin = keras_twin(layer, number, **options)
        assign(layer, i, j)
        with quantization_mode(FLOAT):
            outputs.append(np.asarray(layer(batches[0], training=False)))
        np.testing.assert_array_equal(outputs[-1], twin(batches[0], training=False))
    for one, other in itertools.combinations(outputs, 2):
        assert np.any(one != other)


def test_frozen_uses_batch_statistics_and_keeps_the_moving_ones(
    make, keras_twin, sets, batches, close
):
    """What calibration does: the bit-widths assigned choose the set."""
    layer = make(sets)
    before = [np.array(v) for v in layer.weights]
    for number, i, j in some(sets):
        twin = keras_twin(layer, number)
        assign(layer, i, j)
        with quantization_mode(QuantizationMode(statistics="frozen")):
            close(layer(batches[0], training=True), twin(batches[0], training=True))
    for variable, value in zip(layer.weights, before, strict=True):
        np.testing.assert_array_equal(variable, value, err_msg=variable.path)


def test_a_mask_leaves_values_out_as_keras_does(close):
    """Without TensorFlow's fused kernel, as on other backends."""
    layer, twin = (
        TransitionalBatchNormalization((3, 3), 1, NAMES),
        keras.layers.BatchNormalization(),
    )
    layer.follow(Ends((3, 3)).choices)
    generator = np.random.default_rng(3)
    batch = generator.normal(size=(6, 7, 4)).astype(np.float32)
    mask = generator.random((6, 7)) < 0.6
    with quantization_mode(forced(layer, 1, 2)):
        found = layer(batch, training=True, mask=mask)
    close(found, twin(batch, training=True, mask=mask))
    close(np.array(layer.moving_mean)[5], twin.moving_mean)
    close(np.array(layer.moving_variance)[5], twin.moving_variance)
    np.testing.assert_array_equal(np.delete(layer.moving_mean, 5, axis=0), 0)


def test_without_a_transition_the_first_set_is_used(batches, close):
    layer, twin = TransitionalBatchNormalization(), keras.layers.BatchNormalization()
    for batch in batches:
        close(layer(batch, training=True), twin(batch, training=True))
    close(np.array(layer.moving_mean)[0], twin.moving_mean)


# --- between the stages ---------------------------------------------------------------------------


@pytest.mark.parametrize("own", [0, 1])
@pytest.mark.parametrize("options", [{}, {"scale": False}, {"center": False}], ids=str)
def test_spread_diagonal_copies_the_set_of_the_own_bit_width(make, own, options):
    layer = make((3, 3), own, **options)
    before = [np.array(v) for v in layer.weights]
    layer.spread_diagonal()
    assert len(layer.weights) == 4 - len(options)
    for variable, old in zip(layer.weights, before, strict=True):
        found = np.array(variable)
        for i in range(3):
            for j in range(3):
                same = (i, j)[own]
                np.testing.assert_array_equal(found[3 * i + j], old[4 * same], err_msg=f"{i} {j}")
        assert np.any(found != old)


@pytest.mark.parametrize("sets", [(1, 3), (3, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("own", [0, 1])
def test_where_one_end_has_no_choice_every_set_is_its_own(make, sets, own):
    layer = make(sets, own)
    before = layer.get_weights()
    layer.spread_diagonal()
    for found, expected in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(found, expected)


# --- as the device will compute it ----------------------------------------------------------------


@pytest.fixture
def bound():
    """A convolution on a grid, its transitional batch norm, and one plain norm for each set."""

    def build(use_bias, **options):
        generator = np.random.default_rng(3)
        norm = TransitionalBatchNormalization((3, 3), 1, NAMES, **options)
        norm.follow(Ends((3, 3)).choices)
        mac = QuantizedConv2D(4, 3, use_bias=use_bias, weight_bits=4, norm=norm, name="mac")
        mac.build((None, 6, 6, 2))
        mac.input_quantizer.log_step.assign([np.log(0.03)])
        if use_bias:
            mac.bias.assign(generator.normal(size=4))
        values = [generator.uniform(0.3, 2.0, v.shape) for v in norm.weights]
        norm.set_weights([v * generator.choice([-1.0, 1.0], v.shape) if n.name == "gamma" else v
                          for v, n in zip(values, norm.weights, strict=True)])  # fmt: skip
        plain = []
        for number in range(9):
            one = FoldableBatchNormalization(**options)
            twin = QuantizedConv2D(4, 3, use_bias=use_bias, weight_bits=4, norm=one)
            twin.build((None, 6, 6, 2))
            twin.input_quantizer.set_weights(mac.input_quantizer.get_weights())
            twin.weight_quantizer.set_weights(mac.weight_quantizer.get_weights())
            twin.kernel.assign(mac.kernel)
            if use_bias:
                twin.bias.assign(mac.bias)
            one.set_weights([np.array(v)[number] for v in norm.weights])
            plain.append(twin)
        return mac, plain, generator.normal(size=(3, 6, 6, 2)).astype(np.float32)

    return build


@pytest.mark.parametrize(
    ("use_bias", "options"),
    [(True, {}), (False, {}), (True, {"scale": False}), (False, {"center": False})],
    ids=str,
)
def test_the_set_assigned_folds_as_a_batch_norm_of_its_own(bound, use_bias, options):
    mac, plain, x = bound(use_bias, **options)
    folded = []
    for number, i, j in choices((3, 3)):
        assign(mac.norm, i, j)
        twin = plain[number].folded(2.0, 0.5)
        for found, expected in zip(mac.folded(2.0, 0.5), twin, strict=True):
            np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(mac(x, training=False), plain[number](x, training=False))
        folded.append(np.asarray(mac.folded()[1]))
    assert len({f.tobytes() for f in folded}) == 9  # nine sets, nine biases


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [0, 1])
def test_saved_and_loaded_is_identical(make, own, shape, saved_and_loaded, batches):
    layer = make((3, 3), own, momentum=0.8)
    _, _, twin = saved_and_loaded(layer, shape[1:])
    assert type(twin) is TransitionalBatchNormalization
    assert twin.get_config() == layer.get_config()
    assert (twin.sets, twin.own, twin.momentum) == ((3, 3), own, 0.8)
    twin.follow(Ends((3, 3)).choices)  # it holds their names: the model sets them anew
    for _, i, j in choices((3, 3)):
        assign(layer, i, j)
        assign(twin, i, j)
        np.testing.assert_array_equal(layer(batches[0]), twin(batches[0]))

"""MetaMix Eq. 3 to 6 against NumPy."""

import itertools
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_metamix.cost import PricedBudget
from keras_metamix.layers.bit_choice import BitChoice
from keras_metamix.metamix.loss import (
    DEFAULT_STRENGTH,
    chosen_cost,
    cost_loss,
    make_objective,
)


@pytest.fixture
def choice():
    """A BitChoice with the given alpha, which is no trainable variable there either."""

    def make(of, candidates, alpha=None):
        made = BitChoice(candidates, of)
        made.build(keras.layers.Layer(name=of))
        if alpha is not None:
            made.alpha.assign(alpha)
        return made

    return make


@pytest.fixture
def softmax():
    def compute(alpha):
        e = np.exp(alpha - np.max(alpha))
        return e / e.sum()

    return compute


@pytest.fixture
def layer(choice):
    """A MAC layer with the choices of its activation and weights, or one for both."""

    def make(name, activation, weight, tied=False):
        first = choice("activations", *activation)
        quantizers = [
            types.SimpleNamespace(candidates=made.candidates, choice=made)
            for made in (first, first if tied else choice("weights", *weight))
        ]
        return types.SimpleNamespace(
            name=name, input_quantizer=quantizers[0], weight_quantizer=quantizers[1], tied=tied
        )

    return make


def bops_of(layers, macs):
    """The BOPs of every pair of candidates, by hand."""
    pairs = {
        x.name: itertools.product(x.input_quantizer.candidates, x.weight_quantizer.candidates)
        for x in layers
    }
    return budget_of(
        {n: {(a, w): m * a * w for a, w in pairs[n]} for n, m in zip(pairs, macs, strict=True)}
    )


def budget_of(prices, limit=1.0, **fields):
    return PricedBudget("a budget", prices, {n: [*r] for n, r in prices.items()}, limit, **fields)


@pytest.mark.parametrize(
    ("candidates", "alpha"),
    [((8, 4, 3), [0.1, 0.3, -0.2]), ((8, 2), [1.0, -1.0]), ((8, 4, 2), [-3.0, -2.0, 5.0])],
)
def test_eq_5_selects_the_argmax_and_passes_the_softmax_s_gradient(
    layer, softmax, candidates, alpha
):
    one = layer("one", (candidates, alpha), ((1,),))
    alphas = one.input_quantizer.choice.alpha.value
    with tf.GradientTape() as tape:
        tape.watch(alphas)
        bits = chosen_cost([one], bops_of([one], [10**9]))
    assert float(bits) == candidates[int(np.argmax(alpha))]
    p, b = softmax(np.array(alpha)), np.array(candidates)
    expected = p * (b - np.dot(p, b))  # d<softmax(alpha), B> / d alpha
    np.testing.assert_allclose(tape.gradient(bits, alphas), expected, rtol=1e-3)


def test_eq_6_in_units_of_1e9(layer):
    layers = [layer("a", ((8,),), ((8,),)), layer("b", ((3,),), ((4,),))]
    found = chosen_cost(layers, bops_of(layers, [10**9, 5 * 10**8]))
    assert float(found) == pytest.approx(64 + 0.5 * 12)


@pytest.mark.parametrize("tied", [False, True])
def test_prices_of_a_table_and_their_gradient(layer, softmax, tied):
    """hs(alpha)^T P hs(beta): the price at the argmax; each softmax sees its row or column."""
    generator = np.random.default_rng(3)
    candidates, alpha, beta = (8, 4, 2), np.array([0.2, -0.1, 0.4]), np.array([0.3, 0.5, -0.6])
    matrix = generator.uniform(1, 90, (3, 3))
    one = layer("one", (candidates, alpha), (candidates, beta), tied)
    prices = dict(zip(itertools.product(candidates, candidates), matrix.ravel(), strict=True))
    choices = dict.fromkeys((one.input_quantizer.choice, one.weight_quantizer.choice))
    choosers = [choice.alpha.value for choice in choices]
    table = budget_of({"one": prices}, fixed=1500.0, paper_unit=1e3)
    with tf.GradientTape() as tape:
        tape.watch(choosers)
        cost = chosen_cost([one], table)
    row, column = 2, 2 if tied else 1
    assert float(cost) == pytest.approx(1.5 + matrix[row, column] / 1e3, rel=1e-5)

    def through(logits, values):
        p = softmax(logits)
        return p * (values - p @ values) / 1e3

    found = tape.gradient(cost, choosers)
    if tied:  # both factors are the activation's choice
        expected = through(alpha, matrix[:, row] + matrix[row])
        assert len(found) == 1
    else:
        expected = through(alpha, matrix[:, column])
        np.testing.assert_allclose(found[1], through(beta, matrix[row]), rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-7)


def test_a_price_that_is_missing_is_named(layer):
    one = layer("one", ((8, 4), [0.0, 1.0]), ((8,),))
    with pytest.raises(ValueError, match=r"'one': .*4 activation and 8 weight bits.*\(8, 8\)"):
        chosen_cost([one], budget_of({"one": {(8, 8): 1.0}}))


@pytest.mark.parametrize(
    ("gigabops", "target", "form", "expected"),
    [
        (6.0, 5e9, "relative", 0.2),
        (4.0, 5e9, "relative", 0.2),  # two-sided
        (6.0, 5e9, "paper", 1.0),
        (4.5, 5e9, "paper", 0.5),
        (6e-4, 5e5, "relative", 0.2),  # a small network: the relative form does not vanish
        (6e-4, 5e5, "paper", 1e-4),
    ],
)
def test_eq_4(gigabops, target, form, expected):
    assert float(cost_loss(tf.constant(gigabops), target / 1e9, form)) == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize("form", ["relative", "paper"])
@pytest.mark.parametrize("target", [4e8, 1e8])
def test_the_cost_s_gradient_through_eq_4_to_6(layer, softmax, form, target):
    """Two searched layers and an edge; signs differ on both sides of the target."""
    macs, alphas, candidates = [10**6, 2 * 10**7, 10**7], ([0.2, 0.1], [-0.3, 0.4]), (8, 4)
    layers = [layer("edge", ((8,),), ((8,),))]
    layers += [layer(f"layer{i}", (candidates, a), ((4,),)) for i, a in enumerate(alphas)]
    choosers = [x.input_quantizer.choice.alpha.value for x in layers[1:]]
    with tf.GradientTape() as tape:
        tape.watch(choosers)
        gigabops = chosen_cost(layers, bops_of(layers, macs))
        loss = cost_loss(gigabops, target / 1e9, form)
    found = tape.gradient(loss, choosers)
    total = 64 * macs[0] + 8 * 4 * macs[1] + 4 * 4 * macs[2]
    unit = target if form == "relative" else 1e9
    assert float(loss) == pytest.approx(abs(total - target) / unit, rel=1e-5)
    for gradient, alpha, m in zip(found, alphas, macs[1:], strict=True):
        p, b = softmax(np.array(alpha)), np.array(candidates)
        expected = np.sign(total - target) * m * 4 * p * (b - np.dot(p, b)) / unit
        np.testing.assert_allclose(gradient, expected, rtol=1e-4)


def test_default_strengths():
    """Relative: lambda' in 5..13 (so that it compares with the paper's lambda * T); paper: 1."""
    assert 5 <= DEFAULT_STRENGTH["relative"] <= 13
    assert DEFAULT_STRENGTH["paper"] == 1.0


def test_of_several_budgets_the_tightest_counts(layer, softmax):
    """max_i(cost_i / T_i) in the place of cost / T: 0 where the tightest is met exactly."""
    alpha, candidates = [0.3, 0.1], (8, 4)
    one = layer("one", (candidates, alpha), ((4,),))
    prices = {"one": {(8, 4): 32e6, (4, 4): 16e6}}
    other = {"one": {(8, 4): 700.0, (4, 4): 500.0}}
    for limits, chosen, slope in (
        ((20e6, 690.0), 32e6 / 20e6, 4e6 / 20e6),
        ((40e6, 500.0), 700 / 500, 50 / 500),
        ((40e6, 1000.0), 32e6 / 40e6, -4e6 / 40e6),  # neither is used up
    ):
        objective = make_objective(
            [
                budget_of(prices, limits[0]),
                budget_of(other, limits[1], unit="bytes", log="size_bytes", paper_unit=1e3),
            ]
        )
        alphas = one.input_quantizer.choice.alpha.value
        with tf.GradientTape() as tape:
            tape.watch(alphas)
            distance, logs = objective.distance([one])
        assert float(distance) == pytest.approx(abs(chosen - 1), rel=1e-5)
        assert (float(logs["bops"]), float(logs["size_bytes"])) == pytest.approx((32e6, 700.0))
        p = softmax(np.array(alpha))
        expected = slope * p * (np.array(candidates) - p @ np.array(candidates))
        np.testing.assert_allclose(tape.gradient(distance, alphas), expected, rtol=1e-4)


def test_the_paper_s_form_is_of_bops():
    sized = budget_of({"one": {(8, 8): 1.0}}, unit="bytes")
    with pytest.raises(ValueError, match="cost_form='paper' is of one budget of BOPs, found a bud"):
        make_objective([sized], form="paper")
    assert make_objective([sized]).strength == DEFAULT_STRENGTH["relative"]

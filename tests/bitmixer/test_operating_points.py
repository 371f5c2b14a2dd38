"""Bit-widths chosen for a budget, against brute force, and what they are said to cost."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

import keras_metamix as kmm
from keras_metamix.bitmixer.operating_points import (
    METHODS,
    choose_bits,
    choose_points,
)
from keras_metamix.pareto import pareto_front

LAYERS = ("stem", "one", "two", "three", "logits")
BITS = (4, 3, 2)
# What a bit-width costs in loss, of each layer on its own; "two" is better off at 3 bits.
RISES = {"one": (0, 0.02, 0.5), "two": (0, -0.01, 0.05), "three": (0, 0.1, 0.2)}
# As on a phone that runs 3 bits as it does 4, and the middle layer's 2 bits slower than its 3.
LATENCIES = {
    "stem": {8: 5.0},
    "one": {4: 4.0, 3: 4.0, 2: 2.0},
    "two": {4: 6.0, 3: 2.0, 2: 3.0},
    "three": {4: 8.0, 3: 8.0, 2: 8.0},
    "logits": {8: 1.0},
}


def additive(bits):
    """A loss that is a sum over layers."""
    return 1.0 + sum(row[BITS.index(bits[name])] for name, row in RISES.items())


def interacting(bits):
    """A loss of which no part belongs to one layer."""
    low = [name for name in RISES if bits[name] < 4]
    return additive(bits) + 0.3 * len(low) ** 2 + 0.1 * (bits["one"] == bits["three"])


@pytest.fixture(scope="module")
def built(mixer, deep_model):
    return mixer(stage="network_wide", source=deep_model)


@pytest.fixture
def model(built, assignment):
    built.set_bits(assignment(built, 4, 4, 4))
    return built


@pytest.fixture
def with_loss(model, monkeypatch):
    """The model with a made-up loss, and the assignments it was asked for in order."""

    def install(loss):
        asked = []

        def evaluate(x, y=None, verbose=0, return_dict=False):
            bits = model.bit_assignment
            assert bits.activation_bits == bits.weight_bits
            asked.append(tuple(bits.activation_bits[name] for name in RISES))
            return {"loss": loss(bits.activation_bits), "accuracy": 0.5}

        monkeypatch.setattr(model, "evaluate", evaluate)
        return model, asked

    return install


def everything():
    """Every choice for the three searched layers."""
    for chosen in itertools.product(BITS, repeat=3):
        yield dict(zip(RISES, chosen, strict=True))


def price_table(model, cost="bops"):
    """{layer: {activation bits: price}} of a kind of cost."""
    return {
        name: {a: p for (a, _), p in row.items() if (a, _) in found.choices[name]}
        for found in [budget(cost, 1e12).priced(model)]
        for name, row in found.prices.items()
    }


def budget(cost, limit):
    """A budget of a kind of cost, with a limit on the layers' prices alone."""
    return kmm.Priced(cost, limit) if isinstance(cost, dict) else kmm.Bops(limit)


def price(prices, chosen):
    return sum(row[chosen.get(name, 8)] for name, row in prices.items())


def budgets(prices):
    """The least and the most, what an assignment costs, and less than that by little."""
    costs = sorted({price(prices, chosen) for chosen in everything()})
    middle = costs[len(costs) // 2]
    return [costs[0], costs[len(costs) // 4], middle, middle - 1e-3, costs[-2], costs[-1], 1e12]


def searched(point):
    return {name: point.bits.activation_bits[name] for name in RISES}


@pytest.mark.parametrize("cost", ["bops", LATENCIES], ids=["bops", "latencies"])
def test_the_solver_is_brute_force_s_best_where_losses_add_up(cost, with_loss):
    model, asked = with_loss(additive)
    prices = price_table(model, cost)

    def wasted(choice):  # as much, or more, for fewer bits is no way to use a budget
        name, bits = choice
        return any(prices[name][b] <= prices[name][bits] for b in BITS if b > bits)

    for limit in budgets(prices):
        point = choose_bits(model, None, budget(cost, limit), verbose=0)
        affordable = [
            c for c in everything() if price(prices, c) <= limit and not any(map(wasted, c.items()))
        ]
        used = [c for c in affordable if price(prices, c) >= 0.97 * limit]
        assert point.cost == price(prices, searched(point)) <= limit
        if used:
            assert point.cost >= 0.97 * limit
            assert point.metrics["loss"] >= min(map(additive, used)) - 1e-12
        best = min(affordable, key=additive)
        if price(prices, best) >= 0.97 * limit:
            assert point.metrics["loss"] == pytest.approx(additive(best), abs=1e-12)
        assert point.metrics == {"loss": additive(searched(point)), "accuracy": 0.5}
        assert (point.bits["stem"].activation, point.bits["logits"].weight) == (8, 8)
    # Each layer alone, the others at their highest; then what was chosen.
    alone = [(4, 4, 4), (3, 4, 4), (2, 4, 4), (4, 3, 4), (4, 2, 4), (4, 4, 3), (4, 4, 2)]
    assert asked[:7] == alone
    assert 7 * len(budgets(prices)) <= len(asked) <= 8 * len(budgets(prices))


def greedy(loss, prices, budget):
    """The rule, written for a dict: the next cheaper bit-width of least rise for what it saves."""
    chosen = dict.fromkeys(RISES, 4)
    while price(prices, chosen) > budget:
        steps = []
        for name, bits in chosen.items():
            now = prices[name][bits]
            lower = next((b for b in BITS if b < bits and prices[name][b] < now), None)
            if lower is not None:
                rise = loss(chosen | {name: lower}) - loss(chosen)
                steps.append((rise / (now - prices[name][lower]), name, lower))
        _, name, lower = min(steps)
        chosen[name] = lower
    while price(prices, chosen) < 0.97 * budget:  # then back up, where that fits
        raised = [
            chosen | {name: BITS[BITS.index(bits) - 1]} for name, bits in chosen.items() if bits < 4
        ]
        fits = [up for up in raised if price(prices, up) <= budget]
        if not fits:
            break
        chosen = min(fits, key=loss)
    return chosen


@pytest.mark.parametrize("made_up", [additive, interacting], ids=lambda f: f.__name__)
@pytest.mark.parametrize("cost", ["bops", LATENCIES], ids=["bops", "latencies"])
def test_greedy_follows_its_rule_and_never_exceeds_the_budget(made_up, cost, with_loss):
    model, _ = with_loss(made_up)
    prices = price_table(model, cost)
    for limit in budgets(prices):
        point = choose_bits(model, None, budget(cost, limit), "greedy", verbose=0)
        assert point.cost == price(prices, searched(point)) <= limit
        assert searched(point) == greedy(made_up, prices, limit)
        assert point.metrics["loss"] == made_up(searched(point))


@pytest.mark.parametrize("method", METHODS)
def test_several_budgets_at_once_give_what_each_gives_alone(method, with_loss):
    model, asked = with_loss(interacting)
    prices = price_table(model, "bops")
    named = {f"budget {i}": b for i, b in enumerate(budgets(prices))}
    together = choose_points(model, None, named, method=method, verbose=0)
    at_once = len(asked)
    assert list(together) == list(named)
    for name, budget in named.items():
        assert together[name] == choose_bits(model, None, budget, method=method, verbose=0)
    assert at_once < len(asked) - at_once  # what was measured served all of them


# --- the front --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("made_up", [additive, interacting], ids=lambda f: f.__name__)
def test_the_front_rises_in_cost_and_falls_in_loss(method, made_up, with_loss):
    model, _ = with_loss(made_up)
    front = pareto_front(model, None, 12, method=method, verbose=0)
    costs, losses = [p.cost for p in front], [p.metrics["loss"] for p in front]
    assert len(front) > 1
    assert np.all(np.diff(costs) > 0)
    assert np.all(np.diff(losses) < 0)
    prices = price_table(model, "bops")
    assert costs[0] == min(price(prices, c) for c in everything())
    if method == "solver" and made_up is additive:  # then no assignment at all beats one of them
        for point, chosen in itertools.product(front, everything()):
            assert (
                price(prices, chosen) > point.cost
                or made_up(chosen) >= point.metrics["loss"] - 1e-12
            )


def test_budgets_of_the_front_may_be_given_in_any_order(with_loss):
    model, _ = with_loss(additive)
    wanted = [kmm.Size(share=s) for s in (0.0, 0.3, 0.6, 1.0)]
    front = pareto_front(model, None, wanted[::-1], verbose=0)
    assert front == pareto_front(model, None, wanted, verbose=0)
    assert {p.cost for p in front} <= {choose_bits(model, None, b, verbose=0).cost for b in wanted}


def test_several_budgets_of_a_point_are_all_met(with_loss):
    model, _ = with_loss(additive)
    budgets = [kmm.Bops(share=0.4), kmm.Priced(LATENCIES, 19.0)]
    for method in METHODS:
        point = choose_bits(model, None, budgets, method, verbose=0)
        priced = [b.priced(model) for b in budgets]
        assert all(p.total(point.bits) <= p.limit for p in priced)
        assert point.cost == priced[0].total(point.bits)


# --- costs ------------------------------------------------------------------------------------


def test_bops_are_those_of_the_assignment(model, assignment):
    prices = price_table(model, "bops")
    for chosen in everything():
        bits = assignment(model, *chosen.values())
        assert price(prices, chosen) == kmm.bops(model, bits)


def test_a_table_of_prices_is_taken_as_it_is(model):
    assert price_table(model, LATENCIES) == LATENCIES
    assert price_table(model, LATENCIES | {"elsewhere": {4: 1.0}}) == LATENCIES


def test_weights_of_one_bit_width_are_priced_at_it(mixer, deep_model):
    model = mixer(source=deep_model, space=kmm.SearchSpace((4, 2), 3))
    prices, costs = price_table(model, "bops"), {c.name: c for c in kmm.layer_costs(model)}
    assert prices["two"] == {4: costs["two"].macs * 12, 2: costs["two"].macs * 6}
    assert prices["stem"] == {8: costs["stem"].macs * 64}


# --- with a network ---------------------------------------------------------------------------


def test_losses_are_what_evaluate_says_of_each_assignment(model, data, assignment):
    """Nothing is trained, nothing is left changed, and data may be a pair or a data set."""
    model.set_bits(assignment(model, 3, 2, 4))
    bits, before = model.bit_assignment, [np.array(v) for v in model.network.variables]
    prices = price_table(model, "bops")
    limit = (price(prices, dict.fromkeys(RISES, 4)) + price(prices, dict.fromkeys(RISES, 2))) / 2
    dataset = tf.data.Dataset.from_tensor_slices(data).batch(8)
    point = choose_bits(model, dataset, limit, verbose=0)
    assert model.bit_assignment == bits
    for variable, value in zip(model.network.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value, err_msg=variable.path)
    rises = {}
    for name, number in itertools.product(RISES, BITS):
        chosen = dict.fromkeys(RISES, 4) | {name: number}
        model.set_bits(assignment(model, *chosen.values()))
        rises[name, number] = model.evaluate(*data, verbose=0, return_dict=True)["loss"]
    values = {
        tuple(c.values()): sum(rises[item] for item in c.items())
        for c in everything()
        if 0.97 * limit <= price(prices, c) <= limit
    }
    assert tuple(searched(point).values()) == min(values, key=values.get)
    model.set_bits(point.bits)
    found = model.evaluate(*data, verbose=0, return_dict=True)
    assert dict(point.metrics) == pytest.approx(found, rel=1e-5)
    most = choose_bits(model, data, 1e12, method="greedy", verbose=0)
    model.set_bits(most.bits)
    assert most.bits == model.uniform_bits(4)
    assert dict(most.metrics) == model.evaluate(*data, verbose=0, return_dict=True)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fails_at", [1, 3, 8])
def test_bits_are_restored_when_a_measurement_fails(method, fails_at, with_loss, assignment):
    def loss(bits):
        if len(asked) == fails_at:
            raise RuntimeError("the data set ended")
        return additive(bits)

    model, asked = with_loss(loss)
    before = assignment(model, 2, 3, 4)
    model.set_bits(before)
    budget = price(price_table(model, "bops"), dict.fromkeys(RISES, 2))
    with pytest.raises(RuntimeError, match="the data set ended"):
        choose_bits(model, None, budget, method=method, verbose=0)
    assert model.bit_assignment == before


def test_progress_is_said_once_and_can_be_left_out(with_loss, capsys):
    model, asked = with_loss(additive)
    choose_bits(model, None, 1e12)
    assert capsys.readouterr().out.strip() == f"assignments measured: {len(asked)}"
    choose_bits(model, None, 1e12, verbose=0)
    assert capsys.readouterr().out == ""


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize("short", [1, 1000])
def test_a_budget_that_no_assignment_meets_names_the_least_and_the_most(short, with_loss):
    model, asked = with_loss(additive)
    prices = price_table(model, "bops")
    least, most = (price(prices, dict.fromkeys(RISES, b)) for b in (2, 4))
    for call in (choose_bits, lambda *a, **k: pareto_front(a[0], a[1], [1e12, a[2]], **k)):
        with pytest.raises(ValueError, match="expected at least") as error:
            call(model, None, least - short, verbose=0)
        for number in (least, most):
            assert f"{number:.6g}" in str(error.value)
    assert not asked
    assert choose_bits(model, None, least, verbose=0).cost == least


@pytest.mark.parametrize("missing", ["two", "stem"])
def test_a_missing_price_names_the_layer_and_the_bits(missing, model):
    bits = list(LATENCIES[missing])[-1]
    rest = {b: p for b, p in LATENCIES[missing].items() if b != bits}
    message = rf"price of layer '{missing}' at {bits} activation and {bits} weight bits, found none"
    for table in (
        LATENCIES | {missing: rest},
        {k: v for k, v in LATENCIES.items() if k != missing},
    ):
        with pytest.raises(ValueError, match=message if missing in table else f"'{missing}'"):
            price_table(model, table)
        with pytest.raises(ValueError, match=f"'{missing}'"):
            choose_bits(model, None, kmm.Priced(table, 1e12), verbose=0)


def test_an_unknown_budget_or_method_is_named(with_loss):
    model, asked = with_loss(additive)
    with pytest.raises(TypeError, match=r"budget: expected Bops, Size, .* found 'energy'"):
        choose_bits(model, None, "energy", verbose=0)
    with pytest.raises(ValueError, match=r"method: expected one of \['solver', 'greedy'\].*'best'"):
        choose_bits(model, None, 1e12, method="best", verbose=0)
    assert not asked

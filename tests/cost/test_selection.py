"""The assignment chosen under budgets against brute force: met, used, and of the most score."""

import itertools
import math

import numpy as np
import pytest

from keras_metamix.assignment import BitAssignment
from keras_metamix.cost import LayerCost, PricedBudget, argmax_bits, select, weighted_bits
from keras_metamix.cost.prices import USED, worthwhile

PAIRS = {
    "activations": tuple((a, 4) for a in (8, 4, 3)),
    "pairs": tuple(itertools.product((8, 4, 2), (8, 4))),
    "same": ((8, 8), (4, 4), (2, 2)),
}


def priced(prices, limit, fixed=0, **fields):
    return PricedBudget("Bops", prices, {n: [*r] for n, r in prices.items()}, limit, fixed)


def bops_of(layers, scores, limit):
    prices = {
        x.name: {(a, w): weighted_bits([x.macs], [a], [w]) for a, w in scores[x.name]}
        for x in layers
    }
    return priced(prices, limit)


@pytest.fixture
def problem():
    """Random layers (fixed 8-bit ends, as in a network) and log-probabilities."""

    def make(seed, kind, spread, count=4):
        generator = np.random.default_rng(seed)
        macs = generator.integers(1, 10 ** generator.integers(2, 9), count + 2)
        layers, scores = [], {}
        for i, m in enumerate(macs):
            edge = i in (0, count + 1)
            name = f"layer{i}"
            layers.append(LayerCost(name, "Conv2D", int(m), 1, 1, 1, edge))
            pairs = ((8, 8),) if edge else PAIRS[kind]
            alpha = spread * generator.normal(size=len(pairs))
            log_p = alpha - np.log(np.sum(np.exp(alpha)))
            scores[name] = dict(zip(pairs, map(float, log_p), strict=True))
        return layers, scores

    return make


def everything(scores, budgets):
    """(costs, score, pairs) of every assignment."""
    for chosen in itertools.product(*scores.values()):
        pairs = dict(zip(scores, chosen, strict=True))
        costs = [b.fixed + sum(b.prices[n][p] for n, p in pairs.items()) for b in budgets]
        yield costs, math.fsum(scores[n][p] for n, p in pairs.items()), pairs


def pairs_of(bits):
    return {n: (bits[n].activation, bits[n].weight) for n in bits.activation_bits}


def used(costs, budgets):
    return any(cost >= USED * b.limit for cost, b in zip(costs, budgets, strict=True))


def more_bits(pairs, than):
    return all(p[0] >= q[0] and p[1] >= q[1] for p, q in zip(pairs.values(), than, strict=True))


def check(scores, budgets):
    """What `select` promises, against every assignment; returns whether it had to spend."""
    bits = pairs_of(select(scores, budgets))
    worth = {n: worthwhile(budgets, n, row) for n, row in scores.items()}
    options = [
        o
        for o in everything(
            {n: {p: scores[n][p] for p in row} for n, row in worth.items()}, budgets
        )
        if all(c <= b.limit for c, b in zip(o[0], budgets, strict=True))
    ]
    costs, score, _ = next(o for o in options if o[2] == bits)  # so that it meets all
    alone = max(options, key=lambda o: o[1])
    if used(alone[0], budgets):
        assert score == pytest.approx(alone[1], abs=1e-9)
        return False
    enough = [o for o in options if used(o[0], budgets)]
    if not enough:  # the dearest below the limits
        shares = [max(c / b.limit for c, b in zip(o[0], budgets, strict=True)) for o in options]
        found = max(c / b.limit for c, b in zip(costs, budgets, strict=True))
        assert found == pytest.approx(max(shares), rel=1e-9)
        return True
    assert used(costs, budgets)
    raised = [o for o in enough if more_bits(o[2], alone[2].values())]
    if raised:
        assert more_bits(bits, alone[2].values())
    assert score == pytest.approx(max(o[1] for o in raised or enough), abs=1e-9)
    return True


# 1e-3 is the spread at which the search starts: the scores of a short one are that close.
@pytest.mark.parametrize("spread", [2.0, 1e-3])
@pytest.mark.parametrize("kind", PAIRS)
def test_bops_are_met_and_used(kind, spread, problem):
    spent = 0
    for seed in range(4):
        layers, scores = problem(seed, kind, spread)
        budget = bops_of(layers, scores, 1.0)
        costs = sorted({c for (c,), _, _ in everything(scores, [budget])})
        # Limits on an assignment's cost, one BOP below one, the least, the most and above.
        limits = [costs[len(costs) // 3], costs[len(costs) // 2] - 1, costs[-2], costs[0]]
        for limit in [*limits, costs[-1], 1.5 * costs[-1]]:
            if limit >= costs[0]:
                spent += check(scores, [bops_of(layers, scores, limit)])
    assert spent > 3  # the scores alone left over more than 3 %


@pytest.mark.parametrize("seed", range(4))
def test_several_budgets_are_met_and_one_is_used(seed, problem):
    """A second one of prices that know no bits, nor rise with them."""
    layers, scores = problem(seed, "pairs", 1.0, count=3)
    generator = np.random.default_rng(seed)
    prices = {n: {p: float(generator.uniform(1, 90)) for p in row} for n, row in scores.items()}
    costs = sorted({c for (c,), _, _ in everything(scores, [priced(prices, 1.0)])})
    bops = sorted({c for (c,), _, _ in everything(scores, [bops_of(layers, scores, 1.0)])})
    for share in (0.2, 0.5, 0.8):
        budgets = [
            bops_of(layers, scores, bops[int(share * len(bops))]),
            priced(prices, costs[int(share * len(costs))] + 17.5, fixed=17.5),
        ]
        check(scores, budgets)
        check(scores, budgets[1:])


def test_budgets_that_exclude_each_other_are_refused():
    prices = {"a": {(8, 8): 1.0, (4, 4): 5.0}, "b": {(8, 8): 2.0}}
    other = {"a": {(8, 8): 5.0, (4, 4): 1.0}, "b": {(8, 8): 2.0}}
    scores = {"a": {(8, 8): 0.0, (4, 4): -1.0}, "b": {(8, 8): 0.0}}
    budgets = [priced(prices, 3.0), priced(other, 3.0)]
    with pytest.raises(ValueError, match=r"no assignment meets all of them.* of 3 to 3 BOPs"):
        select(scores, budgets)
    assert select(scores, budgets[:1])["a"].activation == 8


def test_nothing_is_spent_on_fewer_bits():
    """4-bit weights that are slower than 8-bit ones use a budget up, and serve nobody."""
    scores = {"a": {(8, 8): 0.0, (8, 4): -1.0}, "b": {(8, 8): 0.0}}
    slow = priced({"a": {(8, 8): 10.0, (8, 4): 90.0}, "b": {(8, 8): 5.0}}, 95.0)
    assert select(scores, [slow])["a"].weight == 8
    assert (slow.least, slow.most) == (15.0, 15.0)
    free = priced({"a": {(8, 8): 10.0, (8, 4): 10.0}, "b": {(8, 8): 5.0}}, 20.0)
    wants_four = {"a": {(8, 8): -1.0, (8, 4): 0.0}, "b": {(8, 8): 0.0}}
    assert select(wants_four, [free])["a"].weight == 8  # more bits for no more


def test_many_layers_are_solved(problem):
    """Fifty layers of nine pairs; an upper bound (the LP's) is near."""
    layers, scores = problem(3, "pairs", 2.0, count=50)
    dearest = bops_of(layers, scores, 1e99)
    target = (dearest.least + dearest.total(argmax_bits(scores))) // 2
    bits = select(scores, [bops_of(layers, scores, target)])
    assert USED * target <= dearest.total(bits) <= target

    # The Lagrangian bound: for every price of a BOP, no assignment within the budget is better.
    def bound(price):
        best = (
            max(s - price * dearest.prices[n][p] for p, s in row.items())
            for n, row in scores.items()
        )
        return sum(best) + price * target

    found = sum(scores[n][p] for n, p in pairs_of(bits).items())
    upper = min(bound(p) for p in np.geomspace(1e-12, 1e-2, 400))
    assert upper - 0.5 <= found <= upper + 1e-9  # at most about one layer's choice off


@pytest.mark.parametrize("spread", [1.0, 1e-3])
def test_many_layers_of_nearly_equal_scores_are_spent_on(spread, problem):
    """A network of fifty layers whose search moved little, and chose the fewest bits."""
    layers, scores = problem(5, "pairs", spread, count=50)
    scores = {n: {p: s - 5e-3 * p[0] * p[1] for p, s in row.items()} for n, row in scores.items()}
    budget = bops_of(layers, scores, 1.0)
    for share in (0.3, 0.7):
        limit = budget.least + share * (budget.most - budget.least)
        found = bops_of(layers, scores, limit)
        assert USED * limit <= found.total(select(scores, [found])) <= limit


# --- budgets -------------------------------------------------------------------------------------


@pytest.fixture
def tiny():
    layers = [LayerCost("a", "Dense", 10, 1, 1, 1, True), LayerCost("b", "Dense", 100, 1, 1, 1)]
    scores = {"a": {(8, 8): 0.0}, "b": {(8, 4): -1.0, (4, 4): -2.0, (2, 4): -3.0}}
    return layers, scores  # from 640 + 800 to 640 + 3200 BOPs


@pytest.mark.parametrize("target", [1439, 1439.999, 4.0e-9])
def test_budgets_that_cannot_be_met_name_the_least_and_the_most(tiny, target):
    with pytest.raises(ValueError, match=r"at least 1440 BOPs.*costs 3840 BOPs.*Bops.share=0.5"):
        select(tiny[1], [bops_of(*tiny, target)])


@pytest.mark.parametrize(
    ("target", "expected"),
    [(1440, 2), (2239, 2), (2240, 4), (3839.5, 4), (3840, 8), (1e30, 8), (np.float32(2e3), 2)],
)
def test_the_budget_is_met_to_the_last_bop(tiny, target, expected):
    assert select(tiny[1], [bops_of(*tiny, target)]) == BitAssignment(
        {"a": 8, "b": expected}, {"a": 8, "b": 4}
    )


def test_a_limit_above_the_most_bits_says_so(tiny):
    assert bops_of(*tiny, 3840).beyond() == ""
    assert "above 3840 BOPs" in bops_of(*tiny, 3841).beyond()


def test_a_price_that_is_missing_is_named(tiny):
    layers, scores = tiny
    budget = bops_of(layers, scores, 4000)
    with pytest.raises(ValueError, match=r"'b': .*at 3 activation and 4 weight bits"):
        budget.total(BitAssignment({"a": 8, "b": 3}, {"a": 8, "b": 4}))

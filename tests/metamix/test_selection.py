"""The budgeted assignment against brute force, and the budgets that are refused."""

import itertools
import math

import numpy as np
import pytest

from keras_metamix.assignment import BitAssignment
from keras_metamix.cost import LayerCost, assignment_bops
from keras_metamix.metamix.selection import (
    LayerScores,
    argmax_assignment,
    budgeted_assignment,
    check_budget,
)
from keras_metamix.pair_costs import PairCosts, bop_costs

PAIRS = {
    "activations": tuple((a, 4) for a in (8, 4, 3)),
    "pairs": tuple(itertools.product((8, 4, 2), (8, 4))),
    "same": ((8, 8), (4, 4), (2, 2)),
}


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
            scores[name] = LayerScores(pairs, tuple(float(p) for p in log_p))
        return layers, scores

    return make


def bops_of(layers, scores):
    """The cost table of a problem."""
    return bop_costs(layers, {name: entry.pairs for name, entry in scores.items()})


def least_bops(layers, scores):
    return sum(x.macs * min(a * w for a, w in scores[x.name].pairs) for x in layers)


@pytest.fixture
def everything():
    """Every assignment of a problem as (BOPs, log-probability)."""

    def enumerate_all(layers, scores):
        options = []
        for layer in layers:
            entry = scores[layer.name]
            options.append(
                [
                    (layer.macs * a * w, score)
                    for (a, w), score in zip(entry.pairs, entry.scores, strict=True)
                ]
            )
        return [
            (sum(c for c, _ in chosen), math.fsum(s for _, s in chosen))
            for chosen in itertools.product(*options)
        ]

    return enumerate_all


@pytest.fixture
def total_score():
    def compute(scores, bits):
        return math.fsum(
            entry.scores[entry.pairs.index((bits[name].activation, bits[name].weight))]
            for name, entry in scores.items()
        )

    return compute


# 1e-3 is the spread at which the search starts: the scores of a short one are that close.
@pytest.mark.parametrize("spread", [2.0, 1e-3])
@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("seed", range(8))
def test_budgeted_is_brute_force_s_best(seed, kind, spread, problem, everything, total_score):
    layers, scores = problem(seed, kind, spread)
    assignments = everything(layers, scores)
    costs = sorted({cost for cost, _ in assignments})
    # Budgets on an assignment's cost, one BOP below one, and the least possible.
    picks = [costs[len(costs) // 3], costs[len(costs) // 2] - 1, costs[-2], costs[0]]
    for target in (t for t in picks if t >= costs[0]):
        bits = budgeted_assignment(bops_of(layers, scores), scores, target)
        assert assignment_bops(layers, bits) <= target
        best = max(score for cost, score in assignments if cost <= target)
        assert total_score(scores, bits) == pytest.approx(best, abs=1e-9)


def test_the_argmax_is_taken_where_it_fits(problem):
    for seed in range(5):
        layers, scores = problem(seed, "pairs", 1.0)
        best = argmax_assignment(scores)
        for name, entry in scores.items():
            pair = entry.pairs[int(np.argmax(entry.scores))]
            assert (best[name].activation, best[name].weight) == pair
        cost = assignment_bops(layers, best)
        for target in (cost, cost + 1, 10 * cost, float(cost), math.inf):
            assert budgeted_assignment(bops_of(layers, scores), scores, target) == best
        if cost > least_bops(layers, scores):
            assert budgeted_assignment(bops_of(layers, scores), scores, cost - 1) != best


@pytest.mark.parametrize("seed", range(6))
def test_prices_of_a_table_against_brute_force(seed, total_score):
    """Latencies: no product of bits, not even monotonous in them, and a part that is constant."""
    generator = np.random.default_rng(seed)
    pairs, names = PAIRS["pairs"], [f"layer{i}" for i in range(4)]
    scores = {n: LayerScores(pairs, tuple(generator.normal(size=len(pairs)))) for n in names}
    prices = {n: dict(zip(pairs, generator.uniform(1, 90, len(pairs)), strict=True)) for n in names}
    table = PairCosts(prices, 17.5, "us", "target_latency", "latency_us", 1e3)
    every = [
        BitAssignment(
            {n: a for n, (a, _) in zip(names, chosen, strict=True)},
            {n: w for n, (_, w) in zip(names, chosen, strict=True)},
        )
        for chosen in itertools.product(pairs, repeat=len(names))
    ]
    costs = [table.total(bits) for bits in every]
    values = [total_score(scores, bits) for bits in every]
    for share in (0.01, 0.1, 0.4, 1.0):
        target = float(np.quantile(costs, share))
        bits = budgeted_assignment(table, scores, target)
        assert table.total(bits) <= target * (1 + 1e-12)
        best = max(v for v, cost in zip(values, costs, strict=True) if cost <= target)
        assert total_score(scores, bits) == pytest.approx(best, abs=1e-9)
    least = f"{min(costs):.4g}"
    with pytest.raises(ValueError, match=rf"target_latency=1: expected at least .* us \({least}\)"):
        check_budget(table, scores, 1)


def test_many_layers_are_solved(problem):
    """Fifty layers of nine pairs; an upper bound (the LP's) is near."""
    layers, scores = problem(3, "pairs", 2.0, count=50)
    least = least_bops(layers, scores)
    target = least + (assignment_bops(layers, argmax_assignment(scores)) - least) // 2
    bits = budgeted_assignment(bops_of(layers, scores), scores, target)
    assert assignment_bops(layers, bits) <= target

    # The Lagrangian bound: for every price of a BOP, no assignment within the budget is better.
    def bound(price):
        best = (
            max(
                s - price * layer.macs * a * w
                for (a, w), s in zip(
                    scores[layer.name].pairs, scores[layer.name].scores, strict=True
                )
            )
            for layer in layers
        )
        return sum(best) + price * target

    found = sum(
        scores[n].scores[scores[n].pairs.index((bits[n].activation, bits[n].weight))]
        for n in scores
    )
    upper = min(bound(p) for p in np.geomspace(1e-12, 1e-2, 400))
    assert found <= upper + 1e-9
    assert found >= upper - 0.5  # at most about one layer's choice off


# --- budgets -------------------------------------------------------------------------------------


@pytest.fixture
def tiny():
    layers = [LayerCost("a", "Dense", 10, 1, 1, 1, True), LayerCost("b", "Dense", 100, 1, 1, 1)]
    scores = {
        "a": LayerScores(((8, 8),), (0.0,)),
        "b": LayerScores(((8, 4), (4, 4), (2, 4)), (-1.0, -2.0, -3.0)),
    }
    return layers, scores  # from 640 + 800 to 640 + 3200 BOPs


@pytest.mark.parametrize(
    "target",
    [1439, 1439.999, 0, 4.0e-9, -5.3e9, math.nan, -math.inf, "5.3e9", None, True, [5e9], 5j],
    ids=str,
)
def test_budgets_that_cannot_be_met_name_the_least_and_the_most(tiny, target):
    for call in (check_budget, budgeted_assignment):
        with pytest.raises(ValueError, match=r"target_bops=.*at least 1440 BOPs.*costs 3840") as e:
            call(bops_of(*tiny), tiny[1], target)
        assert f"target_bops={target!r}:" in str(e.value)


@pytest.mark.parametrize(
    "target",
    [1440, 1440.0, 3840, 1e30, math.inf, np.float64(1440), np.int64(1440), np.float32(2e3)],
    ids=repr,
)  # fmt: skip
def test_budgets_that_can_be_met_pass(tiny, target):
    check_budget(bops_of(*tiny), tiny[1], target)
    assert assignment_bops(tiny[0], budgeted_assignment(bops_of(*tiny), tiny[1], target)) <= target


@pytest.mark.parametrize(
    ("target", "expected"), [(1440, 2), (2239, 2), (2240, 4), (3839.5, 4), (3840, 8)]
)
def test_the_budget_is_met_to_the_last_bop(tiny, target, expected):
    assert budgeted_assignment(bops_of(*tiny), tiny[1], target) == BitAssignment(
        {"a": 8, "b": expected}, {"a": 8, "b": 4}
    )

"""The knapsack against brute force, to the last unit of the budget."""

import itertools
import math

import numpy as np
import pytest

from keras_metamix.cost.solver import Between, best_choice


def knapsack(values, prices, budget):
    return best_choice(values, [Between(prices, high=budget)])


def everything(values, prices):
    """(price, value, numbers chosen) of every choice."""
    for chosen in itertools.product(*(range(len(row)) for row in values)):
        rows = list(enumerate(chosen))
        yield (
            sum(prices[r][n] for r, n in rows),
            math.fsum(values[r][n] for r, n in rows),
            list(chosen),
        )


@pytest.fixture
def problem():
    """Rows of unequal length with integer prices up to 10^digits."""

    def make(seed, digits, rows=5):
        generator = np.random.default_rng(seed)
        counts = generator.integers(1, 5, rows)
        values = [list(generator.normal(size=n)) for n in counts]
        prices = [[int(p) for p in generator.integers(0, 10**digits, n)] for n in counts]
        return values, prices

    return make


@pytest.mark.parametrize("digits", [1, 3, 9, 12])
@pytest.mark.parametrize("seed", range(6))
def test_it_is_brute_force_s_best_at_every_kind_of_budget(seed, digits, problem):
    values, prices = problem(seed, digits)
    options = list(everything(values, prices))
    costs = sorted({price for price, _, _ in options})
    for budget in {costs[0], costs[len(costs) // 3], costs[len(costs) // 2], costs[-1], math.inf}:
        chosen = knapsack(values, prices, budget)
        price, value, _ = next(o for o in options if o[2] == chosen)
        assert price <= budget
        assert value == pytest.approx(max(v for p, v, _ in options if p <= budget), abs=1e-9)


@pytest.mark.parametrize("short_by", [1, 0])
def test_the_budget_holds_to_the_last_unit_and_the_best_of_the_rest_is_taken(short_by):
    """One BOP in five billion is far below the solver's tolerance, which would let it pass."""
    unit = 5_000_000_000
    values = [[3.0, 2.0, 1.0], [3.0, 2.9, 0.0]]
    prices = [[unit, unit - 10, 1], [unit, unit - 1, 1]]
    chosen = knapsack(values, prices, 2 * unit - short_by)
    assert chosen == ([0, 1] if short_by else [0, 0])


@pytest.mark.parametrize("seed", range(12))
def test_one_unit_less_than_an_optimum_costs_gives_the_next_best(seed, problem):
    """Budgets just below what a good choice costs, in BOPs of a real network's size."""
    values, prices = problem(seed, 9)
    options = sorted(everything(values, prices), key=lambda o: -o[1])
    least = min(price for price, _, _ in options)
    for price, _, _ in options[:40]:
        budget = price - 1
        if budget < least:
            continue
        chosen = knapsack(values, prices, budget)
        found = next(o for o in options if o[2] == chosen)
        best = next(o for o in options if o[0] <= budget)
        assert found[0] <= budget
        assert found[1] == pytest.approx(best[1], abs=1e-9)


def test_prices_may_be_real_numbers_such_as_latencies():
    values = [[0.0, -0.1, -1.0]] * 3
    prices = [[0.75, 0.5, 0.25]] * 3  # binary fractions: their sums are exact
    assert knapsack(values, prices, 1.5) == [1, 1, 1]
    assert sorted(knapsack(values, prices, 1.4999)) == [1, 1, 2]
    assert sorted(knapsack(values, prices, 2.0)) == [0, 0, 1]
    assert knapsack(values, prices, 2.25) == [0, 0, 0]


def test_many_choices_of_one_price_just_above_the_budget_do_not_hide_the_best():
    """Fifteen layers of equal size, as a ResNet has: one BOP decides between thousands."""
    generator = np.random.default_rng(0)
    values = [[0.0, *sorted(-generator.random(2))[::-1]] for _ in range(15)]
    macs = 115_605_504
    prices = [[macs * b * b for b in (4, 3, 2)]] * 15
    budget = macs * (10 * 16 + 5 * 4)
    for target in (budget, budget - 1):
        chosen = knapsack(values, prices, target)
        assert sum(prices[0][n] for n in chosen) <= target
        # By dynamic programming over multiples of one layer's MACs.
        best = {0: 0.0}
        for row in values:
            sums: dict[int, float] = {}
            for spent, value in best.items():
                for bits, more in zip((16, 9, 4), row, strict=True):
                    sums[spent + bits] = max(sums.get(spent + bits, -math.inf), value + more)
            best = sums
        expected = max(value for units, value in best.items() if units * macs <= target)
        found = sum(row[n] for row, n in zip(values, chosen, strict=True))
        assert found == pytest.approx(expected, abs=1e-9)


def test_what_costs_nothing_may_have_a_budget_of_0():
    assert knapsack([[1.0, 2.0], [5.0, 4.0]], [[0, 3], [2, 0]], 0) == [0, 1]


@pytest.mark.parametrize("budget", [0, 2.999, -1, -math.inf])
def test_a_budget_below_the_least_prices_has_no_choice(budget):
    assert knapsack([[1.0, 2.0], [5.0, 4.0]], [[1, 3], [2, 7]], budget) is None


@pytest.mark.parametrize("digits", [1, 6])
@pytest.mark.parametrize("seed", range(8))
def test_several_limits_with_floors_against_brute_force(seed, digits, problem):
    values, first = problem(seed, digits)
    generator = np.random.default_rng(seed + 99)
    second = [list(generator.uniform(0, 10, len(row))) for row in values]
    options = list(everything(values, first))
    sums = {tuple(c): sum(second[r][n] for r, n in enumerate(c)) for _, _, c in options}
    costs, others = sorted(p for p, _, _ in options), sorted(sums.values())
    for low, high in ((0.3, 0.6), (0.55, 0.6), (0.9, 0.1)):
        a = Between(first, costs[int(low * len(costs))], costs[int(0.95 * len(costs))])
        b = Between(second, high=others[int(high * len(others))])
        inside = [v for p, v, c in options if a.low <= p <= a.high and sums[tuple(c)] <= b.high]
        chosen = best_choice(values, [a, b])
        if not inside:
            assert chosen is None
            continue
        assert a.holds(chosen) and b.holds(chosen)
        found = next(v for _, v, c in options if c == chosen)
        assert found == pytest.approx(max(inside), abs=1e-9)

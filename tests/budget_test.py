from itertools import product

import pytest

from gmpq_tf.budget import Budget, BudgetError, bit_ops
from gmpq_tf.cost_tables import bit_ops_table
from gmpq_tf.limits import Limit, resolve_limit
from gmpq_tf.policy import draw

MACS = {"a": 1000, "b": 300, "c": 77}
FULL = 1377 * 32 * 32
CANDIDATES = dict.fromkeys(MACS, ((2, 3, 4), (2, 4)))


def resolve_budget(budget):
    number = Budget(budget, "bit_ops", budget, budget <= 1)
    return resolve_limit(number, bit_ops_table(MACS), CANDIDATES).budget


def draw_bits(budget, seed):
    return draw.draw_bits(CANDIDATES, [Limit(bit_ops_table(MACS), budget)], seed)


def cost(bits):
    return sum(MACS[name] * w * a for name, (w, a) in bits.items())


def every_cost():
    pairs = list(product((2, 3, 4), (2, 4)))
    for choice in product(pairs, repeat=3):
        yield cost(dict(zip(MACS, choice, strict=True)))


def test_up_to_1_is_a_fraction_of_full_precision():
    assert resolve_budget(0.01) == pytest.approx(0.01 * FULL)
    assert resolve_budget(1) == FULL
    assert resolve_budget(9000) == 9000
    assert resolve_budget(4 * 1377) == min(every_cost())


@pytest.mark.parametrize("budget", [4 * 1377 - 1, 1e-5, 0, -3, float("nan")])
def test_a_budget_that_nothing_meets_is_refused_with_the_range(budget):
    text = "reaches 5.508e-06 to 2.203e-05 GBOPs"
    with pytest.raises(BudgetError, match=text):
        resolve_budget(budget)


@pytest.mark.parametrize("budget", [5508, 6000, 9000, 14_000, 30_000])
def test_draws_end_at_3_percent_below_or_at_the_nearest(budget):
    nearest = max(each for each in every_cost() if each <= budget)
    for seed in range(5):
        found = cost(draw_bits(budget, seed))
        assert min(0.97 * budget, nearest) <= found <= budget


def test_draws_differ_by_seed_and_stay_among_the_candidates():
    draws = [draw_bits(9000, seed) for seed in range(8)]
    assert draws == [draw_bits(9000, seed) for seed in range(8)]
    assert len({tuple(bits.values()) for bits in draws}) > 1
    assert {w for bits in draws for w, _ in bits.values()} <= {2, 3, 4}
    assert {a for bits in draws for _, a in bits.values()} <= {2, 4}


def test_bit_ops_is_the_product():
    assert bit_ops(10, 4, 3) == 120

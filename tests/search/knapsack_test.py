"""The knapsack against brute force."""

from itertools import product

import numpy as np
import pytest

from gmpq_tf.cost_tables import bit_ops_table
from gmpq_tf.limits import Limit
from gmpq_tf.search import knapsack
from gmpq_tf.search.knapsack import SLACK

MACS = {"first": 500, "a": 3000, "b": 1700, "c": 900}
CANDIDATES = {
    "first": ((8,), (8,)),
    "a": ((2, 3, 4), (2, 3, 4)),
    "b": ((2, 3, 4), (2, 3, 4)),
    "c": ((2, 4), (3,)),
}


def limits_of(macs: dict, budget: float | None) -> list:
    return [] if budget is None else [Limit(bit_ops_table(macs), budget)]


def most_probable_bits(probabilities, candidates, macs, budget=None) -> dict:
    limits = limits_of(macs, budget)
    return knapsack.most_probable_bits(probabilities, candidates, limits)


def spend_budget(bits, candidates, macs, budget) -> dict:
    return knapsack.spend_budget(bits, candidates, limits_of(macs, budget))


def random_probabilities(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    return {
        name: tuple(rng.dirichlet(np.ones(len(bits))) for bits in pair)
        for name, pair in CANDIDATES.items()
    }


def brute_force(probabilities: dict, low: float, high: float):
    """Best log-probability among all policies with low <= cost <= high."""
    best, chosen = -np.inf, None
    options = [list(product(*CANDIDATES[n])) for n in MACS]
    for policy in product(*options):
        cost = sum(m * w * a for m, (w, a) in zip(MACS.values(), policy, strict=True))
        if not low <= cost <= high:
            continue
        value = sum(
            np.log(probabilities[n][0][CANDIDATES[n][0].index(w)])
            + np.log(probabilities[n][1][CANDIDATES[n][1].index(a)])
            for n, (w, a) in zip(MACS, policy, strict=True)
        )
        if value > best:
            best, chosen = value, dict(zip(MACS, policy, strict=True))
    return chosen


def cost_of(bits: dict) -> int:
    return sum(MACS[n] * w * a for n, (w, a) in bits.items())


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("budget", [62_000, 75_000, 90_000])
def test_knapsack_is_the_best_of_all_policies(seed, budget):
    probabilities = random_probabilities(seed)
    best = brute_force(probabilities, (1 - SLACK) * budget, budget)
    got = most_probable_bits(probabilities, CANDIDATES, MACS, budget)
    # What is left over is spent: at least the best bits, and no further step fits.
    assert all(g >= b for n in MACS for g, b in zip(got[n], best[n], strict=True))
    assert cost_of(got) <= budget
    assert spend_budget(best, CANDIDATES, MACS, budget) == got
    for name, (w, a) in got.items():
        for more in ((w + 1, a), (w, a + 1)):
            allowed = all(
                b <= max(c) for b, c in zip(more, CANDIDATES[name], strict=True)
            )
            assert not allowed or cost_of({**got, name: more}) > budget or name == "c"


def test_without_a_budget_each_branch_is_the_argmax():
    probabilities = random_probabilities(3)
    got = most_probable_bits(probabilities, CANDIDATES, MACS)
    for name, (w, a) in got.items():
        assert w == CANDIDATES[name][0][probabilities[name][0].argmax()]
        assert a == CANDIDATES[name][1][probabilities[name][1].argmax()]


@pytest.mark.parametrize("extreme", [min, max])
def test_budgets_at_the_ends_of_the_space_are_met_exactly(extreme):
    ends = {n: (extreme(w), extreme(a)) for n, (w, a) in CANDIDATES.items()}
    budget = cost_of(ends)
    got = most_probable_bits(random_probabilities(0), CANDIDATES, MACS, budget)
    assert got == ends


def test_nothing_within_the_slack_takes_the_nearest_below():
    macs, candidates = {"a": 1000}, {"a": ((2, 4), (2, 4))}
    got = most_probable_bits(
        {"a": (np.array([0.9, 0.1]), np.array([0.5, 0.5]))}, candidates, macs, 12_000
    )
    assert got["a"][0] * got["a"][1] == 8  # 4 is further below, 16 is above


def test_probabilities_of_zero_and_one_still_make_a_policy():
    sure = {
        name: tuple(np.eye(len(bits))[-1] for bits in pair)
        for name, pair in CANDIDATES.items()
    }
    most = {name: (max(w), max(a)) for name, (w, a) in CANDIDATES.items()}
    assert most_probable_bits(sure, CANDIDATES, MACS) == most
    cheapest = cost_of({n: (min(w), min(a)) for n, (w, a) in CANDIDATES.items()})
    got = most_probable_bits(sure, CANDIDATES, MACS, cheapest)
    assert cost_of(got) == cheapest

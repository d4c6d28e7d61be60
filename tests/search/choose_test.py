"""Choosing by values, against brute force."""

from itertools import product

import numpy as np
import pytest

from gmpq_tf.budget import BudgetError
from gmpq_tf.cost_tables import bit_ops_table
from gmpq_tf.limits import Limit
from gmpq_tf.search.choose import (
    Margin,
    choose,
    margin_of,
    posed,
    shortlist,
    uniform_bits,
)
from gmpq_tf.search.decisions import decisions_of
from gmpq_tf.search.readouts import read_importances
from gmpq_tf.search.values import Bonds, Valued, only, total

MACS = {"a": 3000, "b": 1700, "c": 900}
CANDIDATES = dict.fromkeys(MACS, ((2, 3, 4), (2, 3, 4)))
LIMITS = (Limit(bit_ops_table(MACS), 9 * sum(MACS.values())),)


def random_values(seed):
    """Strictly more with more bits, as costs are."""
    rng = np.random.default_rng(seed)
    return {
        name: tuple(
            dict(zip((2, 3, 4), -np.sort(rng.exponential(size=3))[::-1], strict=True))
            for _ in range(2)
        )
        for name in MACS
    }


def brute_force(values, count):
    """The best policies within the budget."""
    pairs = list(product((2, 3, 4), (2, 3, 4)))
    policies = [dict(zip(MACS, own, strict=True)) for own in product(pairs, repeat=3)]
    table, most = LIMITS[0].table, LIMITS[0].budget
    within = [p for p in policies if table.cost(p) <= most]
    return sorted(within, key=lambda p: (-total(values, p), table.cost(p)))[:count]


def raised(bits):
    """The policies with one bit more in one tensor that the budget still allows."""
    table, most = LIMITS[0].table, LIMITS[0].budget
    found = [
        {**bits, name: pair}
        for name, (w, a) in bits.items()
        for pair in ((w + 1, a), (w, a + 1))
        if max(pair) <= 4
    ]
    return [each for each in found if table.cost(each) <= most]


def random_pairs(seed):
    """Values of some choices of different tensors, those of one layer among them."""
    rng = np.random.default_rng(seed)
    tensors = [(name, side) for name in MACS for side in (0, 1)]
    return {
        ((*one, b), (*other, c)): float(rng.normal())
        for i, one in enumerate(tensors)
        for other in tensors[i + 1 :]
        for b, c in product((2, 3, 4), repeat=2)
        if rng.random() < 0.6
    }


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("seed", range(3))
def test_pairs_of_choices_are_best_together(seed):
    valued = Valued(random_values(seed), bonds=Bonds(pairs=random_pairs(seed)))
    policies = brute_force(valued.values, None)
    best = max(policies, key=valued.total)
    _, problem, _, found = posed(valued.values, CANDIDATES, LIMITS, valued.bonds)
    assert valued.total(found) == pytest.approx(valued.total(best))
    assert found == best
    for name, which in product(MACS, (0, 1)):
        forbidden = np.array(
            [n == name and p[which] == best[name][which] for n, p, _ in problem.rows]
        )
        other = problem.bits(problem.solve(problem.values, 0.0, (), forbidden))
        left = [p for p in policies if p[name][which] != best[name][which]]
        wanted = max(map(valued.total, left))
        assert valued.total(other) == pytest.approx(wanted)
    margin = margin_of(valued, CANDIDATES, LIMITS, best)
    decisions = decisions_of(valued, CANDIDATES, LIMITS, best)
    assert margin.difference >= 0 and len(list(decisions.each())) == 6


def test_tied_pairs_stay_tied():
    tied = dict.fromkeys(MACS, ((2, 2), (3, 3), (4, 4)))
    bonds = Bonds(tied)
    for seed in range(4):
        values = random_values(seed)
        found = choose(values, CANDIDATES, LIMITS, bonds)
        assert all(found[name] in tied[name] for name in MACS)
        allowed = [dict(zip(MACS, own, strict=True)) for own in product(*tied.values())]
        table, most = LIMITS[0].table, LIMITS[0].budget
        within = [p for p in allowed if table.cost(p) <= most]
        assert found == max(within, key=lambda p: total(values, p))
    few = (Limit(bit_ops_table(MACS), 10 * sum(MACS.values())),)
    wide = dict.fromkeys(MACS, ((4,), (2, 4)))
    values = {name: ({4: 0.0}, {2: -1.0, 4: 0.0}) for name in MACS}
    with pytest.raises(BudgetError, match="activations='measured'"):
        choose(values, wide, few, Bonds(dict.fromkeys(MACS, ((4, 4),))))


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e-5, 1e6])
def test_small_and_large_values_are_compared_as_exactly(scale):
    """Divergences of many bits are small; the solver's tolerances are absolute."""
    for seed in range(6):
        values = random_values(seed)
        scaled = {
            name: tuple({bits: scale * v for bits, v in side.items()} for side in pair)
            for name, pair in values.items()
        }
        found = choose(scaled, CANDIDATES, LIMITS)
        assert total(values, found) >= total(values, brute_force(values, 1)[0]) - 1e-9


@pytest.mark.parametrize("seed", range(6))
def test_shortlist_is_the_best_of_all(seed):
    values = random_values(seed)
    found = shortlist(values, CANDIDATES, LIMITS, 5)
    assert len({str(p) for p in found}) == 5
    # What is left is spent, which only makes a policy better.
    wanted = [p for p in brute_force(values, None) if not raised(p)]
    assert found == wanted[:5] and found[0] == brute_force(values, 1)[0]
    assert choose(values, CANDIDATES, LIMITS) == found[0]


@pytest.mark.parametrize("seed", range(6))
def test_of_equal_values_more_bits_are_taken(seed):
    """Measured values are equal where fewer bits were better, which is chance."""
    values = {
        name: tuple({b: float(np.round(v)) for b, v in side.items()} for side in pair)
        for name, pair in random_values(seed).items()
    }
    found, table = choose(values, CANDIDATES, LIMITS), LIMITS[0].table
    best = total(values, brute_force(values, 1)[0])
    assert total(values, found) == best and table.cost(found) <= LIMITS[0].budget
    assert not [p for p in raised(found) if total(values, p) >= best]
    # No bits are added that lower the value, as pairs of choices may.
    flat = {n: tuple(dict.fromkeys((2, 3, 4), 0.0) for _ in "wa") for n in MACS}
    pairs = {(("a", 0, 2), ("b", side, 2)): 1.0 for side in (0, 1)}
    found = choose(flat, CANDIDATES, LIMITS, Bonds(pairs=pairs))
    assert (found["a"][0], found["b"]) == (2, (2, 2)) and found["c"] == (4, 4)


def test_importances_alone_must_spend_the_budget():
    """They say what is probable, not what bits are worth."""
    values = {name: ({2: 0.0, 3: -1.0, 4: -2.0},) * 2 for name in MACS}
    table, most = LIMITS[0].table, LIMITS[0].budget
    assert choose(values, CANDIDATES, LIMITS) == dict.fromkeys(MACS, (2, 2))
    spent = choose(values, CANDIDATES, LIMITS, spends=True)
    assert 0.97 * most <= table.cost(spent) <= most
    soft = read_importances({n: (np.ones(3) / 3,) * 2 for n in MACS}, CANDIDATES)
    assert soft.spends and not Valued(values).spends


def test_shortlist_ends_where_policies_do():
    candidates = {"a": ((2, 3), (4,))}
    values = {"a": ({2: -1.0, 3: 0.0}, {4: 0.0})}
    found = shortlist(values, candidates, (), 5)
    assert found == [{"a": (3, 4)}, {"a": (2, 4)}]


def test_values_of_one_policy_choose_it():
    bits = {"a": (2, 3), "b": (4, 2), "c": (4, 4)}
    assert choose(only(bits), CANDIDATES, LIMITS) == bits


def test_uniform_spends_the_budget():
    assert uniform_bits(CANDIDATES, LIMITS) == dict.fromkeys(MACS, (3, 3))
    pinned = {**CANDIDATES, "a": ((8,), (8,))}
    least = Limit(bit_ops_table(MACS), 64 * 3000 + 4 * 2600)
    assert uniform_bits(pinned, (least,))["b"] == (2, 2)
    assert uniform_bits({**CANDIDATES, "a": ((3, 4), (4,))}, LIMITS) is None


def test_a_layer_pinned_on_one_side_is_as_wide_as_the_budget_allows():
    wide = {**dict.fromkeys("ab", ((2, 3), (2, 3))), "c": ((2, 3, 8), (8,))}
    table = bit_ops_table(MACS)
    ends = table.cost({"a": (3, 3), "b": (3, 3), "c": (8, 8)})
    for share, bits in ((1.0, (3, 3)), (0.99, (2, 3))):
        found = uniform_bits(wide, (Limit(table, share * ends),))
        assert found == {"a": bits, "b": bits, "c": (8, 8)}
    narrow = Limit(table, table.cost({"a": (2, 2), "b": (2, 2), "c": (2, 8)}))
    assert uniform_bits(wide, (narrow,)) == {"a": (2, 2), "b": (2, 2), "c": (2, 8)}


def test_margins_say_what_to_do():
    assert Margin(1.0, 0.1, {}).decided
    assert "Measure on more images" in str(Margin(0.1, 0.1, {}))
    assert "% as probable" in str(Margin(0.1, None, {}))
    assert not Margin(0.1, None, {}).decided
    assert Margin(0.0, None, None).decided
    assert Margin(0.0, 0.0, {}).in_errors == 0
    assert Margin(0.5, 0.0, {}).to_json()["in_errors"] is None

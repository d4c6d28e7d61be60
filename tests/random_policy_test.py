from itertools import product

import keras
import pytest

from gmpq_tf.budget import BudgetError
from gmpq_tf.cost import count_cost
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.space import SearchSpace, random_policy

SPACE = SearchSpace((2, 3, 4), (2, 3, 4))


@pytest.fixture(scope="module")
def model():
    x = inputs = keras.Input((16, 16, 3))
    for number in range(8):
        x = keras.layers.Conv2D(8 + 4 * number, 3, padding="same")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(10)(x), name="net")


@pytest.mark.parametrize("bits", [2.5, 3, 3.5, 4])
def test_the_cost_lands_within_3_percent_below_the_budget(model, bits):
    low, high = (
        count_cost(model, BitwidthPolicy.uniform(model, b, b)).bit_ops for b in (2, 4)
    )
    budget = int(low + (high - low) * (bits - 2) / 2)
    for seed in range(5):
        cost = count_cost(model, random_policy(model, SPACE, budget, seed)).bit_ops
        assert 0.97 * budget <= cost <= budget


def test_a_fraction_is_of_full_precision(model):
    full = count_cost(model).bit_ops
    policy = random_policy(model, SPACE, 0.009, 0)
    assert 0.97 * 0.009 * full <= count_cost(model, policy).bit_ops <= 0.009 * full


def test_the_seed_decides(model):
    draws = [random_policy(model, SPACE, 0.009, seed) for seed in (0, 0, 1, 2, 3)]
    assert draws[0] == draws[1]
    assert len(set(draws)) == 4
    assert draws[0].made_by["strategy"] == "random" and draws[0].made_by["seed"] == 0


def test_pins_and_candidates_hold(model):
    names = list(random_policy(model, SPACE, 0.009, 0))
    space = SearchSpace((2, 4), (3, 8), {names[2]: (5, 6)})
    policy = random_policy(model, space, 0.02, 0)
    assert tuple(vars(policy[names[2]]).values()) == (5, 6)
    for name in names[:2] + names[3:]:
        assert policy[name].weight_bits in (2, 4)
        assert policy[name].activation_bits in (3, 8)


def test_draws_reach_the_nearest_cost_of_a_coarse_space():
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, name="a")(inputs)
    x = keras.layers.Conv2D(4, 3, name="b")(x)
    model = keras.Model(inputs, x)
    space = SearchSpace((2, 8), (2, 8), {})
    costs = [
        count_cost(model, BitwidthPolicy("m", {"a": p[:2], "b": p[2:]})).bit_ops
        for p in product((2, 8), repeat=4)
    ]
    budget = sorted(costs)[6] + 1
    found = count_cost(model, random_policy(model, space, budget, 0)).bit_ops
    assert found == max(cost for cost in costs if cost <= budget)


def test_an_impossible_budget_is_refused_with_the_range(model):
    with pytest.raises(BudgetError, match="reaches"):
        random_policy(model, SPACE, 1e-4, 0)

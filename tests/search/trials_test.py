"""Strategies that try whole policies: the agent, the walk, children, rewards."""

from itertools import product

import keras
import numpy as np
import pytest

from gmpq_tf.cost_tables import CostTable, bit_ops_table
from gmpq_tf.limits import Limit, exceeded
from gmpq_tf.policy.draw import settled_bits
from gmpq_tf.search import StrategyError, search_policy
from gmpq_tf.search.ddpg import Agent, Transition
from gmpq_tf.search.strategies.haq import bits_of, layer_states, walked, within
from tests.search.toy import SPACE, toy_budget, toy_images, toy_model

MACS = {"a": 3000, "b": 1700, "c": 900}
CANDIDATES = dict.fromkeys(MACS, ((2, 3, 4), (2, 3, 4)))
HIGHEST = dict.fromkeys(MACS, (4, 4))


def test_actions_have_equal_shares():
    actions = np.linspace(0, 1, 7001)
    for candidates in ((2, 3, 4), (2, 4, 8), (8, 7, 6, 5, 4, 3, 2)):
        found = [bits_of(action, candidates) for action in actions]
        assert found == sorted(found)
        counts = np.unique(found, return_counts=True)[1]
        assert len(counts) == len(candidates) and np.ptp(counts) <= 2
    # As the official code rounds: b = round((most - least + 1) a + least - 1/2).
    for action in (0.0, 0.3, 0.34, 0.66, 0.7, 1.0):
        wanted = np.clip(np.round(3 * action + 2 - 0.5), 2, 4)
        assert bits_of(action, (2, 3, 4)) == wanted


def test_bits_fall_from_the_last_layer():
    table = bit_ops_table(MACS)
    steps = [
        HIGHEST,
        HIGHEST | {"c": (4, 3)},
        HIGHEST | {"c": (3, 3)},
        HIGHEST | {"c": (3, 3), "b": (4, 3)},
        HIGHEST | {"c": (3, 3), "b": (3, 3)},
        {"c": (3, 3), "b": (3, 3), "a": (4, 3)},
        {"c": (3, 3), "b": (3, 3), "a": (3, 3)},
        {"c": (3, 2), "b": (3, 3), "a": (3, 3)},
    ]
    for bits in steps:
        limit = Limit(table, table.cost(bits))
        assert walked(HIGHEST, CANDIDATES, [limit]) == bits
    least = dict.fromkeys(MACS, (2, 2))
    assert walked(HIGHEST, CANDIDATES, [Limit(table, table.cost(least))]) == least
    assert walked(HIGHEST, CANDIDATES, [Limit(table, table.cost(least) - 1)]) is None
    # What the walk leaves is spent.
    limit = Limit(table, table.cost(least) + 2 * 900)
    assert within(HIGHEST, CANDIDATES, [limit])["c"] in ((2, 3), (3, 2))


def test_where_more_bits_cost_less_the_nearest_is_taken():
    slow = np.zeros((7, 7))
    slow[0, :], slow[:, 0] = 9, 9  # two bits have no kernel of their own
    slow[1, 1:], slow[2, 1:] = 5, 1
    table = CostTable("latency", "ms", dict.fromkeys(MACS, slow))
    limit = Limit(table, 3.0)
    found = within(dict.fromkeys(MACS, (3, 3)), CANDIDATES, [limit])
    assert not exceeded([limit], found)
    assert found == dict.fromkeys(MACS, (4, 4))  # (4, 3), and four cost no more


def test_states_are_scaled_over_the_layers():
    model = toy_model()
    states = layer_states(model, SPACE.candidates(model))
    assert [own[:2] for own in states] == [
        (n, side) for n in ("branch_a", "branch_b") for side in (0, 1)
    ]
    table = np.array([own for *_, own in states])
    assert table.shape == (4, 10) and table.min() >= 0 and table.max() <= 1
    assert list(table[:, 9]) == [1, 0, 1, 0] and set(table[:, 8]) == {1.0}
    inputs = keras.Input((8, 8, 4))
    x = keras.layers.DepthwiseConv2D(3, strides=2, name="dw")(inputs)
    x = keras.layers.SeparableConv2D(6, 3, name="sep")(x)
    x = keras.layers.Dense(3, name="out")(keras.layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, x)
    names = ["dw", "sep_depthwise", "sep_pointwise", "out"]
    states = layer_states(model, dict.fromkeys(names, ((2, 4), (8,))))
    table = {name: own for name, _, own in states}
    assert [table[name][0] for name in names] == [1, 1, 0, 0]
    assert [table[name][3] for name in names] == [1, 0.5, 0.5, 0]  # strides 2, 1, 1, 0
    np.testing.assert_allclose(
        [table[name][6] for name in names],
        [1, 8 / 63, 0, 0],  # 64, 9, 1 and 1 pixels
    )


def test_children_keep_and_spend_the_budget():
    table = bit_ops_table(MACS)
    limit = Limit(table, table.cost(dict.fromkeys(MACS, (3, 3))))
    for seed, pairs in enumerate(product(product((2, 4), (2, 4)), repeat=3)):
        bits = dict(zip(MACS, pairs, strict=True))
        found = settled_bits(bits, CANDIDATES, [limit], seed)
        assert not exceeded([limit], found)
        assert settled_bits(bits, CANDIDATES, [limit], seed) == found
        for name, (w, a) in found.items():
            more = {**found, name: (w + 1, a)}, {**found, name: (w, a + 1)}
            for own, most in zip(more, (w, a), strict=True):
                assert most == 4 or exceeded([limit], own)
    assert settled_bits(HIGHEST, CANDIDATES, [Limit(table, 1.0)], 0) is None


def bandit(choose, learn, episodes):
    """Reward of the best episode, and of the last ones, where four bits are right."""
    wanted, rewards = (2, 4, 3, 4), []
    for episode in range(episodes):
        actions = choose(episode)
        bits = [bits_of(action, (2, 3, 4)) for action in actions]
        reward = -float(np.abs(np.subtract(bits, wanted)).sum())
        learn(actions, reward, episode)
        rewards.append(reward)
    return np.array(rewards)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
def test_an_agent_learns_what_random_actions_find_by_chance(seed):
    states = np.eye(4)
    agent = Agent(4, seed, warmup=20, memory=2000, batch=32)

    def learn(actions, reward, episode):
        agent.learn(
            [
                Transition(states[i], actions[i], reward, states[min(i + 1, 3)], i == 3)
                for i in range(4)
            ],
            episode,
        )

    found = bandit(lambda e: [agent.act(s, e) for s in states], learn, 160)
    random = np.random.default_rng(seed)
    drawn = bandit(lambda e: random.uniform(size=4), lambda *_: None, 160)
    assert found[-20:].mean() > drawn.mean() + 0.5
    again = [Agent(4, seed, warmup=20, memory=2000) for _ in range(2)]
    actions = [[own.act(state, 99) for state in states] for own in again]
    assert actions[0] == actions[1]


@pytest.fixture(scope="module")
def problem():
    model = toy_model()
    images = toy_images()
    labels = np.argmax(model(images), axis=-1)
    return model, images, labels, {"budget": toy_budget(model), "space": SPACE}


@pytest.mark.parametrize("strategy", ["haq", "evolution"])
def test_trials_that_cannot_be(problem, strategy):
    model, images, labels, options = problem

    def run(data=(images, labels), **own):
        search_policy(model, data, strategy, **(options | own), progress="none")

    for option, value, said in (
        ("trials", 1, "trials=1"),
        ("measure", "acuracy", "Did you mean 'accuracy'"),
        ("kappa", -1, "kappa=-1"),
        ("steps", -1, "steps=-1"),
        ("budget", None, "for a budget"),
    ):
        with pytest.raises(StrategyError, match=said):
            run(**{option: value})
    with pytest.raises(StrategyError, match="measure='accuracy' needs labels"):
        run(images, measure="accuracy")
    inputs = keras.Input((4,))
    numbers = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    values = np.random.default_rng(0).normal(size=(8, 5)).astype("float32")
    data = (values[:, :4], values[:, 4:])
    with pytest.raises(StrategyError, match="outputs are numbers"):
        search_policy(
            numbers,
            data,
            strategy,
            "W3A3",
            type(SPACE)(pinned={}),
            measure="accuracy",
            progress="none",
        )


@pytest.mark.slow
def test_kappa_adds_a_multiple_of_the_uniform_risk(problem):
    model, images, labels, options = problem
    plain, guided = (
        search_policy(
            model,
            (images, labels),
            "evolution",
            **options,
            trials=6,
            population=3,
            measure="task",
            kappa=kappa,
            progress="none",
        )
        for kappa in (0.0, 0.5)
    )
    # The uniform policy is the first: its generalization risk counts as one.
    assert guided.history[0]["policy"] == plain.history[0]["policy"]
    added = guided.history[0]["risk"] - plain.history[0]["risk"]
    assert added == pytest.approx(0.5, rel=1e-3)
    known = {str(own["policy"]): own["risk"] for own in plain.history}
    both = [h for h in guided.history if str(h["policy"]) in known]
    extra = [h["risk"] - known[str(h["policy"])] for h in both]
    assert len(extra) > 1 and max(extra) > min(extra) >= 0
    best = min(guided.history, key=lambda own: own["risk"])
    layers = guided.policy.layers
    assert best["policy"] == {
        n: [b.weight_bits, b.activation_bits] for n, b in layers.items()
    }

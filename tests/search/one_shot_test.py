"""Strategies that train a hypernet with drawn bits, and what they read from it."""

import keras
import numpy as np
import pytest

from gmpq_tf.search import StrategyError, policies, search_policy
from gmpq_tf.search.evaluator import Evaluator
from gmpq_tf.search.strategies.one_shot import (
    ExploreConfig,
    explored,
    random_draws,
    start_of,
)
from gmpq_tf.space import SearchSpace
from tests.search.toy import SPACE, toy_images, toy_model

# Steps of least squared error on a standard normal distribution, of symmetric grids of
# 2, 3 and 4 bits (Max, 1960).
GAUSSIAN = {2: 1.22, 3: 0.65, 4: 0.353}


def case_of(model, images, monkeypatch, **options):
    cases = []
    with monkeypatch.context() as patch:
        patch.setattr(policies, "search_case", lambda case, *_: cases.append(case))
        given = {"budget": "W3A3", "calibration_images": 64, "space": SPACE}
        search_policy(model, images, "loss_delta", **(given | options))
    return cases[0]


@pytest.fixture
def case(monkeypatch):
    return case_of(toy_model(), toy_images(256), monkeypatch)


def test_draws_are_of_all_candidates_and_repeat(case):
    first, again = (iter(random_draws(case)) for _ in range(2))
    drawn = [next(first) for _ in range(60)]
    assert drawn == [next(again) for _ in range(60)]
    assert {bits["branch_a"] for bits in drawn} == {
        (w, a) for w in (2, 3, 4) for a in (2, 3, 4)
    }
    assert {bits["select_a"] for bits in drawn} == {(8, 8)}


@pytest.mark.slow
def test_training_with_drawn_bits_serves_few_bits(case):
    """What a policy of two bits loses is less than in the float model's hypernet."""
    few = dict.fromkeys(SPACE.pinned, (8, 8)) | dict.fromkeys(
        ("branch_a", "branch_b"), (2, 2)
    )
    before = Evaluator(case, 64).measure(few).divergence
    config = ExploreConfig(
        training_steps=60, learning_rate=1e-3, training_batch_size=32
    )
    trained = explored(case, config, random_draws(case), 64)
    after = Evaluator(case, 64, trained=trained).measure(few).divergence
    assert after.mean() < 0.8 * before.mean()


def test_the_start_keeps_budgets_that_no_uniform_policy_keeps(monkeypatch):
    model = toy_model()
    space = SearchSpace((2, 3), (3, 4), SPACE.pinned)
    case = case_of(model, toy_images(64), monkeypatch, space=space)
    assert start_of(case)["branch_a"] == (3, 3)
    # No width serves both layers: one has weights of two bits alone.
    narrow = SearchSpace((3, 4), (3, 4), {**SPACE.pinned, "branch_a": (2, None)})
    case = case_of(model, toy_images(64), monkeypatch, space=narrow, budget=0.02)
    (limit,) = case.problem.limits
    assert limit.table.of_layers(start_of(case)) <= limit.for_layers


def test_learned_steps_start_where_a_gaussian_kernel_has_them(monkeypatch):
    """Steps that training hardly moved are those of least squared error."""
    inputs = keras.Input((6, 6, 64))
    layer = keras.layers.Conv2D(16, 3, use_bias=False, name="conv")
    x = keras.layers.GlobalAveragePooling2D()(layer(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3, name="classifier")(x))
    rng = np.random.default_rng(0)
    layer.set_weights([rng.normal(size=(3, 3, 64, 16)) / 7])
    images = rng.random((96, 6, 6, 64), dtype="float32")
    quick = {"training_steps": 1, "learning_rate": 1e-9, "training_batch_size": 16}
    space = SearchSpace(pinned={"classifier": (8, 8)})

    def values(**options):
        found = search_policy(
            model, images, "limpq", "W3A3", space, **quick, **options, progress="none"
        )
        return found.values["conv"]

    weights, inputs = values(normalize=True)
    for bits, step in GAUSSIAN.items():
        assert weights[bits] == pytest.approx(-2 * step, rel=0.05)
    assert inputs[2] < inputs[3] < inputs[4] < 0
    weights, _ = values(alpha=1.0)
    for bits, step in GAUSSIAN.items():
        assert weights[bits] == pytest.approx(-step / 7, rel=0.05)


def test_wrong_options_are_named():
    model, images = toy_model(), toy_images(128)
    for strategy, option, value, said in (
        ("limpq", "training_steps", 0, "training_steps=0"),
        ("limpq", "alpha", -1, "alpha=-1"),
        ("one_shot", "training_steps", -1, "training_steps=-1"),
        ("one_shot", "healing_steps", 1.5, "healing_steps=1.5"),
        ("one_shot", "measure", "loss", "measure='loss'"),
        ("one_shot", "learning_rate", 0, "learning_rate=0"),
    ):
        with pytest.raises(StrategyError, match=said):
            search_policy(model, images, strategy, "W3A3", SPACE, **{option: value})
    with pytest.raises(StrategyError, match="learns none"):
        search_policy(
            model,
            images,
            "limpq",
            "W3A3",
            SPACE,
            kernel_quantizer="max_abs",
            training_steps=1,
            training_batch_size=32,
        )


def test_healing_is_undone(case):
    """Each choice is trained from the same weights."""
    evaluator = Evaluator(case, 64)
    bits = start_of(case)
    before = [np.asarray(v) for v in evaluator.hypernet.variables]
    healed = evaluator.measure(bits, 5, learning_rate=0.01, batch_size=32)
    plain = evaluator.measure(bits)
    assert healed.divergence.mean() < plain.divergence.mean()
    for value, variable in zip(before, evaluator.hypernet.variables, strict=True):
        if "importance" not in variable.path:
            np.testing.assert_array_equal(value, np.asarray(variable))


def normalized_model(batch_size=None):
    """A network whose moving statistics are not those of its images."""
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((8, 8, 2), batch_size=batch_size)
    for index in range(2):
        x = keras.layers.Conv2D(8, 3, name=f"conv{index}")(x)
        x = keras.layers.BatchNormalization(momentum=0.999)(x)
        x = keras.layers.ReLU()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(5, name="last")(x))


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [None, 32])
def test_trained_policies_are_measured_with_statistics_of_their_own(
    batch_size, monkeypatch
):
    """Not with a moving average, which lags behind: those of batches, in NumPy."""
    model = normalized_model(batch_size)
    space = SearchSpace(pinned={"conv0": (8, 8), "last": (8, 8)})
    case = case_of(model, toy_images(128), monkeypatch, space=space)
    bits = {"conv0": (8, 8), "conv1": (4, 4), "last": (8, 8)}
    still = {"learning_rate": 1e-9, "batch_size": 32}
    found = Evaluator(case, 64).measure(bits, 1, **still).divergence
    seen = batch_size or 64
    for asked in (64, 1000):
        known = Evaluator(case, 64, statistics=asked).measure(bits).divergence
        np.testing.assert_allclose(found, known, rtol=1e-3, atol=1e-5)
    # The statistics of one layer are what its inputs say.
    evaluator = Evaluator(case, 64, statistics=64)
    evaluator._choose(bits)
    evaluator._measure_statistics(64)
    hypernet = evaluator.hypernet
    norm = next(la for la in hypernet.layers if hasattr(la, "moving_mean"))
    before = keras.Model(hypernet.inputs, norm.input)
    values = np.asarray(before(toy_images(128)[:seen]))
    np.testing.assert_allclose(norm.moving_mean, values.mean((0, 1, 2)), atol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, values.var((0, 1, 2)), rtol=1e-3)
    stale = Evaluator(case, 64).measure(bits).divergence
    assert abs(stale.mean() - found.mean()) > 1e-3

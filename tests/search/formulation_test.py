"""Penalties, rules and generalization risks, by closed forms and in NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import gmpq_tf as gmpq
from gmpq_tf.attribution import generalization_risk
from gmpq_tf.quantizers.fused import xla_quantizers
from gmpq_tf.run.loop import training_variables
from gmpq_tf.search import StrategyError
from gmpq_tf.search.complexity import tightened
from gmpq_tf.search.decisiveness import Decisiveness
from gmpq_tf.search.formulation import Formulation
from gmpq_tf.search.margin_risk import separation
from gmpq_tf.search.partitioned_risk import group_sizes, partitioned_risk
from gmpq_tf.search.penalties import PENALTIES
from gmpq_tf.search.risks import Step
from gmpq_tf.search.rules import ASGA, Plain, RuleConfig
from gmpq_tf.search.strategies.hmq import TemperatureCycles
from gmpq_tf.search.strategies.ssps import Deciding
from gmpq_tf.search.strategies.training import TrainingConfig, _decays
from gmpq_tf.space import SearchSpace
from tests.search.toy import SPACE, toy_budget, toy_images, toy_model


@pytest.fixture(autouse=True, scope="module")
def uncompiled():
    with xla_quantizers(False):  # compiling takes longer than these few steps
        yield


LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
RANDOM = np.random.default_rng(0)


def value_and_slope(penalty, spent):
    spent = tf.constant(float(spent))
    with tf.GradientTape() as tape:
        tape.watch(spent)
        value = PENALTIES[penalty](spent)
    return float(value), float(tape.gradient(value, spent))


class TestPenalties:
    def test_the_barrier_is_that_of_its_equation(self):
        for spent in (0.1, 0.6, 0.95, 0.989):
            left = 101 - 100 * spent
            value, slope = value_and_slope("barrier", spent)
            assert value == pytest.approx(-np.log(np.log(left)), rel=1e-4)
            assert slope == pytest.approx(100 / (left * np.log(left)), rel=1e-3)
        # From 99 % on its tangent, so that a search outside comes in.
        (edge, slope), (value, same) = (
            value_and_slope("barrier", s) for s in (0.98999, 1.5)
        )
        assert same == pytest.approx(slope, rel=2e-3)
        assert value == pytest.approx(edge + 0.51 * slope, rel=1e-2)

    @pytest.mark.parametrize(
        ("penalty", "inside", "outside"),
        [
            ("compression", 0.0, (1 - 1 / 1.6) ** 2),
            ("excess", 0.0, 0.36),
            ("distance", 0.4, 0.6),
        ],
    )
    def test_others_are_those_of_their_equations(self, penalty, inside, outside):
        assert value_and_slope(penalty, 0.6)[0] == pytest.approx(inside, abs=1e-6)
        value, slope = value_and_slope(penalty, 1.6)
        assert value == pytest.approx(outside, rel=1e-5) and slope > 0
        near = value_and_slope(penalty, 1.601)[0]
        assert slope == pytest.approx((near - value) / 1e-3, rel=1e-2)

    def test_compression_rises_in_equal_steps(self):
        rates = [1 / tightened(4.0, epoch, 20, 4) for epoch in range(20)]
        np.testing.assert_allclose(rates[::5], [7 / 16, 10 / 16, 13 / 16, 1])
        assert len(set(rates)) == 4
        # Of fewer epochs than stages the last one is still of the whole budget.
        assert [1 / tightened(4.0, epoch, 2, 4) for epoch in range(2)] == [0.625, 1]
        assert tightened(4.0, 0, 1, 4) == 1
        assert tightened(4.0, 0, 20, 1) == tightened(0.7, 0, 20, 4) == 1


@pytest.mark.parametrize(("epochs", "stages"), [(25, 4), (20, 4), (7, 3), (2, 4)])
def test_it_is_as_cold_as_it_gets_when_a_stage_ends(epochs, stages):
    class Model:
        def set_temperature(self, value):
            temperatures.append(value)

    temperatures, cycles = [], TemperatureCycles(epochs, stages)
    cycles.set_model(Model())
    for epoch in range(epochs):
        cycles.on_epoch_begin(epoch)
    rates = [1 / tightened(4.0, epoch, epochs, stages) for epoch in range(epochs)]
    for epoch in range(epochs):
        begins = epoch == 0 or rates[epoch] != rates[epoch - 1]
        ends = epoch == epochs - 1 or rates[epoch] != rates[epoch + 1]
        assert (temperatures[epoch] == 1) == begins
        assert (temperatures[epoch] == 0.5) == (ends and not begins)


def test_prob1_is_0_where_all_is_decided():
    class Layers:
        def __init__(self, *sides):
            self.sides = [tf.constant(side) for side in sides]

        def branch_probabilities(self):
            return [self.sides]

    def risk(*sides):
        ramp = Decisiveness(Layers(*sides), 2.0, lambda **_: tf.Variable(1.0))
        return ramp, float(ramp.value(None))

    assert risk([0.0, 1.0], [1.0])[1] == 0
    both, value = risk([1 / 3] * 3, [0.5, 0.5])
    assert value == pytest.approx((2 / 3) ** 3 + 0.25)
    weights = []
    for epoch in range(8):
        both.begin_epoch(epoch, 8)
        weights.append(float(both.weight(None)))
    assert weights[:4] == [0] * 4 and weights[-1] == 2
    np.testing.assert_allclose(np.diff(weights[3:]), 0.5)


class TestRules:
    def rule(self, cls, x, **options):
        inputs = keras.Input((1,))
        model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
        config = RuleConfig("asga" if cls is ASGA else "plain", **options)

        def make(**kwargs):
            return tf.Variable(kwargs["initializer"]([], "float32"))

        rule, variable = cls(config, model, (), make), tf.Variable(np.float32(x))

        def forward():
            loss = tf.reduce_sum(1.5 * tf.square(variable))  # 3 x^2 / 2
            return loss, loss

        found, (gradient,) = rule.gradients(forward, [variable])
        np.testing.assert_array_equal(variable, np.float32(x))
        return rule, float(found), gradient.numpy()

    def test_asga_on_a_quadratic(self):
        x = np.array([0.4, -0.3], "float32")
        rule, found, gradient = self.rule(ASGA, x, rho=0.1, alpha=0.02)
        first = 3 * x
        away = x + (0.1 / np.linalg.norm(first) - 0.02) * first
        assert found == pytest.approx(1.5 * x @ x)
        np.testing.assert_allclose(gradient, (first + 3 * away) / 2, rtol=1e-5)
        gap = 1.5 * (away @ away - x @ x)
        assert float(rule.radius) == pytest.approx(min(0.1, np.log1p(gap)), rel=1e-4)

    def test_without_a_radius_it_is_plain(self):
        _, _, plain = self.rule(Plain, [0.4, -0.3])
        _, _, asga = self.rule(ASGA, [0.4, -0.3], rho=0.0, alpha=0.0)
        np.testing.assert_array_equal(plain, asga)


def test_each_pixel_a_group_is_the_risk_of_gmpq():
    student, teacher = RANDOM.random((2, 3, 5, 4)).astype("float32")
    p = tf.constant(1.7)
    for top_k in (7, 20):
        found = partitioned_risk(
            tf.constant(student), tf.constant(teacher), p, top_k, 20
        )
        expected = generalization_risk(
            tf.constant(student), tf.constant(teacher), p, top_k
        )
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_groups_are_those_of_numpy_and_do_not_see_their_order():
    student, teacher = RANDOM.random((2, 2, 6, 6)).astype("float32")
    sizes = group_sizes(30, 4)
    assert sizes == [2, 4, 8, 16]
    target = teacher**2 / np.sum(teacher**2, (1, 2), keepdims=True)
    own = student / np.sum(student, (1, 2), keepdims=True)
    order = np.argsort(-teacher.reshape(2, 36), axis=1)[:, :30]
    total = 0
    for image in range(2):
        for group in np.split(order[image], np.cumsum(sizes)[:-1]):
            gap = (own - target)[image].ravel()[group].mean()
            total += len(group) * gap**2 / 2
    args = tf.constant(teacher), tf.constant(2.0), 30, 4
    found = partitioned_risk(tf.constant(student), *args)
    np.testing.assert_allclose(found, total, rtol=1e-4)
    moved = student.reshape(2, 36).copy()
    for image in range(2):
        group = order[image][6:14]
        moved[image, group] = moved[image, group[::-1]]
    again = partitioned_risk(tf.constant(moved.reshape(2, 6, 6)), *args)
    np.testing.assert_allclose(again, found, rtol=1e-4)


@pytest.mark.parametrize(("pixels", "groups"), [(1000, 8), (9, 8), (3, 8), (64, 1)])
def test_groups_have_all_pixels_and_grow(pixels, groups):
    sizes = group_sizes(pixels, groups)
    assert sum(sizes) == pixels and len(sizes) == min(pixels, groups)
    assert min(sizes) >= 1 and sizes == sorted(sizes)


def test_separation_is_that_of_numpy():
    features = RANDOM.normal(size=(12, 5)).astype("float32")
    classes = np.array([0, 0, 1, 1, 1, 3, 3, 0, 1, 3, 3, 3])
    centers = {k: features[classes == k].mean(0) for k in (0, 1, 3)}
    within = np.mean(
        [np.sum((f - centers[k]) ** 2) for f, k in zip(features, classes, strict=True)]
    )
    between = np.mean(
        [
            np.sum((centers[k] - centers[j]) ** 2)
            for k in classes
            for j in {0, 1, 3} - {k}
        ]
    )
    found = separation(tf.constant(features), tf.constant(classes), 4)
    assert float(found) == pytest.approx(within / between, rel=1e-4)
    scaled = separation(tf.constant(100 * features), tf.constant(classes), 4)
    assert float(scaled) == pytest.approx(float(found), rel=1e-4)
    assert float(separation(tf.constant(features), tf.zeros(12, tf.int32), 4)) == 0


@pytest.fixture(scope="module")
def model():
    return toy_model()


class StopAfterOne(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = True


def searched(model, callbacks=(), epochs=0, resume=None, **options):
    """A search of so many epochs; `resume`: variables of one that did the first."""
    keras.utils.set_random_seed(1)
    search = gmpq.PolicySearch(model, SPACE, budget=toy_budget(model), **options)
    search.compile(
        keras.optimizers.SGD(1e-3), keras.optimizers.SGD(0.1), LOSS, jit_compile=False
    )
    images = toy_images(32)
    search.calibrate([images])
    for variable, value in zip(training_variables(search), resume or (), strict=False):
        variable.assign(value)
    first = 0 if resume is None else 1
    if epochs:
        search.fit(
            *(images, np.argmax(model(images), -1)),
            batch_size=16,
            epochs=epochs,
            initial_epoch=first,
            shuffle=False,
            verbose=0,
            callbacks=[each() for each in callbacks],
        )
    return search


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "callbacks"),
    [
        (
            {
                "relaxation": "thresholds",
                "zeta": 32.0,
                "formulation": Formulation(
                    "compression", stages=2, prob1=1.0, rule=RuleConfig("asga")
                ),
            },
            [lambda: TemperatureCycles(2, 1)],
        ),
        (
            {"relaxation": "sampled", "generalization": "partitioned"},
            [lambda: Deciding(2, 0.5)],
        ),
    ],
)
def test_an_interrupted_search_goes_on(model, options, callbacks):
    whole = searched(model, callbacks, 2, **options)
    half = searched(model, [*callbacks, StopAfterOne], 2, **options)
    kept = [np.array(v) for v in training_variables(half)]
    again = searched(model, callbacks, 2, resume=kept, **options)
    pairs = zip(training_variables(whole), training_variables(again), strict=True)
    for one, other in pairs:
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6, err_msg=one.path)


def test_the_surest_are_decided_until_none_is_left(model):
    search = searched(model, eta=0.0, relaxation="sampled")
    sides = [side for layer in search.mixed_layers() for side in _sides(layer)]
    sides = [side for side in sides if len(side.bits) > 1]
    for strength, side in enumerate(sides):
        side.importance.assign([0.0, 0.1 * (strength + 1), 0.0])
    deciding, left = Deciding(4, 0.5), []
    deciding.set_model(search)
    for epoch in range(4):
        deciding.on_epoch_begin(epoch)
        sure = [float(np.max(side.probabilities())) == 1 for side in sides]
        left.append(len(sides) - sum(sure))
        if epoch == 2:
            assert sure == [False, False, True, True]
    assert left == [4, 4, 2, 0]
    assert all(np.argmax(side.probabilities()) == 1 for side in sides)


def _sides(layer):
    return layer.kernel_branches, layer.input_branches


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize(
    "relaxation", ["mixture", "nested", "learned_grid", "adjacent"]
)
def test_a_search_starts_where_it_is_told(model, relaxation):
    for start in (0.7, 1.2):
        search = searched(
            model,
            eta=0.0,
            relaxation=relaxation,
            formulation=Formulation("excess", start=start),
        )
        spent = search.complexity.spent_now(search.branches)
        assert spent == pytest.approx(start, rel=1e-3)


def test_the_barrier_keeps_the_expected_cost_inside(model):
    search = searched(
        model, eta=0.0, zeta=0.1, formulation=Formulation("barrier", start=0.9)
    )
    spent = []
    images = toy_images(32)
    labels = np.argmax(model(images), -1)
    for _ in range(12):
        search.train_on_batch(images, labels)
        spent.append(search.complexity.spent_now(search.branches))
    assert max(spent) < 1 and spent[-1] != spent[0]


@pytest.mark.slow
def test_a_formulation_is_saved_and_recorded(model, tmp_path):
    formulation = Formulation("distance", prob1=0.5, start=1.1, rule=RuleConfig("asga"))
    search = searched(
        model, eta=1.0, generalization="margin", formulation=formulation, epochs=1
    )
    assert search.rank_metric is None
    recorded = search.policy().made_by["config"]
    assert recorded["formulation"]["penalty"] == "distance"
    assert recorded["generalization"] == "margin"
    search.save(tmp_path / "search.keras")
    loaded = keras.models.load_model(tmp_path / "search.keras")
    assert loaded.formulation == formulation
    for one, other in zip(search.variables, loaded.variables, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_cannot_be_is_refused(model):
    def refused(said, **options):
        with pytest.raises(ValueError, match=said):
            gmpq.PolicySearch(model, SPACE, **options)

    refused("no budget", eta=0.0, formulation=Formulation("barrier"))
    refused("Did you mean 'margin'", eta=1.0, generalization="margins")
    refused("groups=0", groups=0)
    refused("labels", eta=1.0, generalization="margin", attribution_class="predicted")
    for said, make in (
        ("Did you mean 'barrier'", lambda: Formulation("barier")),
        ("stages=0", lambda: Formulation(stages=0)),
        ("start=0", lambda: Formulation(start=0)),
        ("Did you mean 'asga'", lambda: RuleConfig("sga")),
        ("is of rule='asga'", lambda: RuleConfig(rho=0.2)),
        ("rho=-1", lambda: RuleConfig("asga", rho=-1)),
    ):
        with pytest.raises(ValueError, match=said):
            make()
    images = toy_images(8)
    labels = np.argmax(model(images), -1)
    for strategy, option, value, said in (
        ("bp_nas", "mu", 0, "mu=0"),
        ("bp_nas", "relaxation", "sample", "Did you mean 'sampled'"),
        ("hmq", "stages", 0, "stages=0"),
        ("dq", "strength", -1, "strength=-1"),
        ("fracbits", "start", 0, "start=0"),
        ("ssps", "undecided", 1.5, "undecided=1.5"),
        ("bayesian_bits", "zeta", -1, "zeta=-1"),
        ("bayesian_bits", "generalization", "rank", "generalization"),
        ("dq", "rho", 0.1, "is of rule='asga'"),
    ):
        with pytest.raises(ValueError, match=said):
            gmpq.search_policy(
                model, (images, labels), strategy, "W3A3", SPACE, **{option: value}
            )
    with pytest.raises(StrategyError, match="no budget"):
        gmpq.search_policy(model, (images, labels), "hmq", None, SPACE)
    with pytest.raises(StrategyError, match="which is of a batch"):
        options = {"eta": 1.0, "generalization": "margin", "readout": "perturbation"}
        gmpq.search_policy(model, (images, labels), "dq", "W3A3", SPACE, **options)


def spending(search):
    return [each.spent_now(search.branches) for each in search.complexity.beside]


def two_budgets(model, bit_ops, weight_bytes, **options):
    """A search of two budgets, shares of what its importances cost at the start."""
    whole = {"bit_ops": "W4A4", "weight_bytes": "1MB"}
    keras.utils.set_random_seed(1)
    first = gmpq.PolicySearch(model, SPACE, eta=0.0, budget=whole, storage="packed")
    spent = [each.expected(Step(None, None, first.branches)) for each in first.risks]
    budget = {
        "bit_ops": float(spent[0]) / bit_ops,
        "weight_bytes": float(spent[1]) / weight_bytes,
    }
    return gmpq.PolicySearch(
        model, SPACE, eta=0.0, budget=budget, storage="packed", **options
    )


def test_a_distance_is_from_the_budget_that_is_spent_most(model):
    """The others are upper bounds: they do not ask for more bits."""
    for shares in ((1.05, 0.97), (0.97, 1.02), (0.95, 0.98), (1.05, 1.02)):
        search = two_budgets(
            model, *shares, zeta=2.0, formulation=Formulation("distance")
        )
        now = Step(None, None, search.branches)
        found = sum(float(each.weighted(now)) for each in search.complexity.beside)
        spent = spending(search)
        most, other = max(spent), min(spent)
        wanted = abs(most - 1) + max(other - 1, 0)
        assert found == pytest.approx(2 * wanted, rel=1e-4)


def test_a_start_keeps_all_budgets(model):
    for shares in ((1.0, 0.9), (0.9, 1.0)):
        search = two_budgets(
            model, *shares, zeta=0.1, formulation=Formulation("barrier", start=0.95)
        )
        assert max(spending(search)) == pytest.approx(0.95, rel=1e-3)


def test_a_budget_that_no_bits_change_is_no_reason_for_fewer(model):
    """The weight of a penalty is not that of bit operations, which nobody limited."""
    search = gmpq.PolicySearch(
        model,
        SearchSpace((4,), (2, 3, 4), SPACE.pinned),
        eta=0.0,
        zeta=10.0,
        budget={"weight_bytes": "1MB"},
        formulation=Formulation("excess"),
    )
    assert float(search.complexity.weighted(Step(None, None, search.branches))) == 0


def test_both_passes_of_asga_see_the_same_draws():
    """Without a radius its steps are those of the plain rule, Dropout and RQ or not."""
    inputs = keras.Input((4,))
    x = keras.layers.Dense(8, activation="relu", name="first")(inputs)
    x = keras.layers.Dropout(0.5)(x)
    x = keras.layers.Dense(8, activation="relu", name="middle")(x)
    model = keras.Model(inputs, keras.layers.Dense(3, name="last")(x))
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
    images = rng.normal(size=(32, 4)).astype("float32")
    found = []
    for rule in (RuleConfig(), RuleConfig("asga", rho=0.0, alpha=0.0)):
        keras.utils.set_random_seed(1)
        search = gmpq.PolicySearch(
            model,
            SearchSpace(pinned={"last": (8, 8)}),
            eta=0.0,
            kernel_quantizer="rq",
            relaxation="sampled",
            formulation=Formulation(rule=rule),
        )
        sgd = [keras.optimizers.SGD(0.1) for _ in range(2)]
        search.compile(*sgd, LOSS, run_eagerly=True)
        search.calibrate([images])
        for _ in range(2):
            search.train_on_batch(images, np.arange(32) % 3)
        found.append([np.asarray(v) for v in search.hypernet.variables])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("epochs", "rates"),
    [
        (1, [1.0]),
        (2, [1.0, 0.1]),
        (5, [1.0, 1.0, 0.1, 0.1, 0.01]),
    ],
)
def test_learning_rates_fall_after_two_and_four_fifths(epochs, rates):
    """Section 4.1's 10 and 20 of 25 epochs; a single epoch keeps its rate."""
    config = TrainingConfig(
        epochs=epochs, learning_rate=0.5, importance_learning_rate=0.25
    )
    of_weights, of_importances = _decays(config, both=True)
    for epoch, share in enumerate(rates):
        assert of_weights.schedule(epoch, None) == pytest.approx(0.5 * share)
        assert of_importances.schedule(epoch, None) == pytest.approx(0.25 * share)

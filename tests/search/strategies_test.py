"""Every row of STRATEGIES on a problem with one right answer."""

import json

import keras
import numpy as np
import pytest

from gmpq_tf.budget import BudgetError
from gmpq_tf.cost import count_cost
from gmpq_tf.search import (
    STRATEGIES,
    JournalError,
    StrategyError,
    policies,
    search_policy,
)
from gmpq_tf.search.choose import choose
from gmpq_tf.search.evaluator import Evaluator
from gmpq_tf.space import SearchSpace
from tests.search.toy import RIGHT, SPACE, toy_budget, toy_images, toy_model

# Options with which a row is quick; a row without a case fails.
CASES: dict = {
    "gmpq": {"epochs": 1},
    "edmips": {"epochs": 1},
    "loss_delta": {},
    "random": {"policies": 24},
}
# Rows that see the error of each choice find the right answer. A mixture of branches
# averages rounding errors, so that its importances hardly tell one from another.
EXACT = ("loss_delta", "random")


@pytest.fixture(scope="module")
def model():
    return toy_model()


@pytest.fixture(scope="module")
def labelled(model):
    images = toy_images()
    return images, np.argmax(model(images), axis=-1)


def run(model, data, strategy, **options):
    given = {"budget": toy_budget(model), "space": SPACE, "calibration_images": 96}
    return search_policy(model, data, strategy, **(given | options))


@pytest.fixture
def case(model, labelled, monkeypatch):
    """What strategies are given, for the images and those again."""
    cases = []
    monkeypatch.setattr(policies, "search_case", lambda case, *_: cases.append(case))
    twice = [labelled, labelled]
    run(model, twice, "loss_delta")
    monkeypatch.undo()
    return cases[0]


def chosen(result):
    layers = result.policy.layers
    return {
        name: (bits.weight_bits, bits.activation_bits) for name, bits in layers.items()
    }


def test_every_row_has_a_case():
    assert set(CASES) == set(STRATEGIES)


@pytest.mark.parametrize("strategy", STRATEGIES)
class TestStrategy:
    def test_keeps_the_contract(self, model, labelled, strategy, tmp_path):
        before = [v.numpy() for v in model.variables]
        file = tmp_path / "journal.jsonl"
        result = run(model, labelled, strategy, journal=file, **CASES[strategy])
        for kept, variable in zip(before, model.variables, strict=True):
            np.testing.assert_array_equal(kept, variable.numpy())
        bits = chosen(result)
        assert list(bits) == list(SPACE.candidates(model))
        assert all(bits[name] == (8, 8) for name in SPACE.pinned)
        assert {b for n in RIGHT for b in bits[n]} <= {2, 3, 4}
        assert count_cost(model, result.policy).bit_ops <= toy_budget(model)
        assert result.cost.float_steps > 0
        json.dumps(result.to_json(), allow_nan=False)
        assert list(result.values) == list(bits)
        # Interrupted in the middle, it goes on from the journal to the same bytes.
        lines = file.read_bytes().splitlines(keepends=True)
        part = tmp_path / "part.jsonl"
        part.write_bytes(b"".join(lines[: len(lines) // 2 + 1]) + b'{"key": [1')
        again = run(model, labelled, strategy, journal=part, **CASES[strategy])
        assert json.dumps(again.to_json()) == json.dumps(result.to_json())
        assert again.policy.layers == result.policy.layers
        assert again.cost.float_steps == pytest.approx(result.cost.float_steps, rel=0.3)

    def test_finds_the_right_answer(self, model, labelled, strategy):
        if strategy not in EXACT:
            pytest.skip("averages rounding errors: it does not see those of a choice")
        for measure in ("divergence", "task"):
            options = {**CASES[strategy], "measure": measure}
            bits = chosen(run(model, labelled, strategy, **options))
            assert {name: bits[name] for name in RIGHT} == RIGHT

    def test_refuses_what_it_cannot_do(self, model, labelled, strategy):
        with pytest.raises(StrategyError, match="Received: epoch_count=3"):
            run(model, labelled, strategy, epoch_count=3)
        with pytest.raises(BudgetError, match="No policy"):
            run(model, labelled, strategy, budget=1e-6, **CASES[strategy])
        if STRATEGIES[strategy].gradient:
            with pytest.raises(StrategyError, match="trains on labels"):
                run(model, labelled[0], strategy, **CASES[strategy])


def test_other_seeds_draw_other_policies(model, labelled):
    found = [
        run(model, labelled[0], "random", policies=1, seed=seed) for seed in range(6)
    ]
    assert len({str(chosen(each)) for each in found}) > 1
    again = run(model, labelled[0], "random", policies=1, seed=3)
    assert chosen(again) == chosen(found[3])


def test_a_margin_is_in_standard_errors(model, labelled):
    result = run(model, labelled[0], "loss_delta")
    assert result.margin.decided
    assert "standard errors better" in str(result.margin)
    few = run(model, labelled[0], "loss_delta", images=1)
    assert few.margin.error == 0  # of one image nobody knows it


def test_reversed_values_are_worse(model, labelled, case):
    result = run(model, labelled[0], "loss_delta")
    reversed_values = {
        name: tuple({bits: -v for bits, v in side.items()} for side in pair)
        for name, pair in result.values.items()
    }
    problem, evaluator = case.problem, Evaluator(case, 96)
    wrong = choose(reversed_values, problem.candidates, problem.limits)
    best, worst = (evaluator.measure(bits) for bits in (chosen(result), wrong))
    gap = worst.divergence - best.divergence
    assert gap.mean() > 5 * gap.std() / np.sqrt(len(gap))


@pytest.mark.parametrize("steps", [0, 3])
def test_finalists_have_the_uniform_policy_among_them(model, labelled, steps):
    result = run(
        model,
        labelled,
        "loss_delta",
        budget="W3A3",
        images=32,
        finalists=3,
        finalist_images=32,
        finalist_steps=steps,
        finalist_batch_size=32,
    )
    assert len(result.finalists) == 2
    risks = [risk for _, risk in result.finalists]
    assert risks == sorted(risks)
    assert chosen(result) == dict(result.finalists[0][0])
    measured = [entry for entry in result.finalists if entry[0]["branch_a"] == (3, 3)]
    assert all(entry[1] >= risks[0] for entry in measured)


def test_attribution_gives_columns_and_moves_values(model, labelled):
    plain, guided = (
        run(model, labelled, "loss_delta", measure="task", eta=eta)
        for eta in (0.0, 50.0)
    )
    assert set(plain.valued.columns) == {"task"}
    assert set(guided.valued.columns) == {"task", "generalization", "rank_distance"}
    worse = guided.valued.columns["generalization"]["branch_b"][0]
    assert worse[2] < worse[4] <= 1e-6
    assert guided.values["branch_b"][0][2] != plain.values["branch_b"][0][2]
    # Both columns are there, so that another eta needs no measurement.
    added = [
        guided.valued.columns[c]["branch_b"][0][2] for c in ("task", "generalization")
    ]
    assert guided.values["branch_b"][0][2] == pytest.approx(added[0] + 50 * added[1])


def test_a_table_of_another_space_and_of_bytes(model, labelled):
    wide = SearchSpace((4, 5, 6, 8), (4, 5, 6, 8), {})
    budget = {"bit_ops": "W6A6", "weight_bytes": 100}
    result = run(model, labelled[0], "loss_delta", space=wide, budget=budget)
    assert (
        count_cost(model, result.policy).bit_ops
        <= count_cost(model, result.policy.uniform(model, 6, 6, pinned={})).bit_ops
    )
    assert count_cost(model, result.policy).weight_bytes <= 100
    assert set(result.values["select_a"][0]) == {4, 5, 6, 8}


def test_without_a_budget_everything_gets_most_bits(model, labelled):
    result = run(model, labelled[0], "loss_delta", budget=None)
    assert result.policy.layers["branch_b"].weight_bits == 4
    with pytest.raises(StrategyError, match="for a budget"):
        run(model, labelled[0], "random", budget=None)


def test_nothing_to_search(model, labelled):
    pinned = {**SPACE.pinned, "branch_a": (3, 3), "branch_b": (3, 3)}
    with pytest.warns(UserWarning, match="Nothing is left to search"):
        result = run(
            model,
            labelled[0],
            "loss_delta",
            space=SearchSpace(pinned=pinned),
            budget=None,
        )
    assert chosen(result)["branch_a"] == (3, 3)
    assert result.margin.following is None


@pytest.mark.parametrize("strategy", ["loss_delta", "random"])
def test_statistics_and_wrong_data(model, labelled, strategy):
    images, labels = labelled
    with pytest.raises(StrategyError, match="Did you mean 'task'"):
        run(model, labelled, strategy, measure="tsk")
    with pytest.raises(StrategyError, match="needs labels"):
        run(model, images, strategy, measure="task")
    with pytest.raises(ValueError, match="from 0 to 4"):
        run(model, (images, labels + 5), strategy, measure="task")
    # Labels that do not belong to the model's classes can be left aside.
    run(model, (images, labels + 5), strategy, images=8)
    with pytest.raises(ValueError, match="finite"):
        run(model, np.full_like(images, np.nan), strategy)
    with pytest.raises(ValueError, match="more than once"):
        run(model, iter([images]), strategy)


def test_unknown_strategies_and_options_of_others(model, labelled):
    with pytest.raises(StrategyError, match="Did you mean 'loss_delta'"):
        run(model, labelled, "loss_detla")
    with pytest.raises(StrategyError, match="It is one of 'gmpq', 'edmips'"):
        run(model, labelled, "loss_delta", epochs=3)
    for name, value in (("images", 0), ("images", 2.5), ("eta", -1), ("top_k", 0)):
        with pytest.raises(ValueError, match=f"{name}="):
            run(model, labelled, "loss_delta", **{name: value})
    with pytest.raises(StrategyError, match="finalists=1"):
        run(model, labelled, "loss_delta", finalists=1)


def test_a_journal_of_another_problem_is_refused(model, labelled, tmp_path):
    file = tmp_path / "journal.jsonl"
    run(model, labelled[0], "loss_delta", images=8, journal=file)
    with pytest.raises(JournalError, match="seed: 0 -> 1"):
        run(model, labelled[0], "loss_delta", images=8, journal=file, seed=1)
    with pytest.raises(JournalError, match="images"):
        run(model, labelled[0][::-1], "loss_delta", images=8, journal=file)
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:2], "{broken", *lines[2:]]) + "\n")
    with pytest.raises(JournalError, match="line 3"):
        run(model, labelled[0], "loss_delta", images=8, journal=file)


def test_batches_of_any_kind_say_the_same(model, labelled):
    import tensorflow as tf

    images, labels = labelled
    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(40)
    batches = [(images[:40], labels[:40]), (images[40:], labels[40:])]
    found = [run(model, data, "loss_delta") for data in (labelled, dataset, batches)]
    assert len({str(each.values) for each in found}) == 1
    with pytest.raises(ValueError, match="must have labels, or none"):
        run(model, [batches[0], images[40:]], "loss_delta")


def quantized(values, quantizer, bits):
    """Rounded to the nearest code, in NumPy."""
    branch = quantizer.bits.index(bits)
    step, (low, high) = quantizer.step(branch), quantizer.codes(branch)
    return np.clip(np.floor(values / step + 0.5), low, high) * step


def test_the_evaluator_computes_the_policy(model, labelled, case):
    """Of any policy: what stock layers make of rounded kernels and inputs."""
    bits = {
        **dict.fromkeys(SPACE.pinned, (8, 8)),
        "branch_a": (2, 3),
        "branch_b": (3, 8),
    }
    evaluator = Evaluator(case, 96, labels=True)
    measured = evaluator.measure(bits)

    def apply(name, x):
        layer, (weights, inputs) = evaluator.hypernet.get_layer(name), bits[name]
        kernel = layer.kernel.numpy()
        branch = layer.weight_bits.index(weights)
        steps = layer.kernel_quantizer.step(kernel, branch)
        limit = 2 ** (weights - 1) - 1
        kernel = np.clip(np.floor(kernel / steps + 0.5), -limit, limit) * steps
        x = quantized(x, layer.input_quantizer, inputs)
        if kernel.ndim == 2:
            return x @ kernel + layer.bias.numpy()
        return keras.ops.convert_to_numpy(keras.ops.conv(x, kernel.astype("float32")))

    branches = [
        apply(f"branch_{n}", np.maximum(apply(f"select_{n}", labelled[0]), 0))
        for n in "ab"
    ]
    outputs = apply("classifier", np.maximum(sum(branches), 0).mean(axis=(1, 2)))
    teacher = keras.ops.softmax(model(labelled[0]))
    wanted = keras.losses.kl_divergence(teacher, keras.ops.softmax(outputs))
    np.testing.assert_allclose(measured.divergence, wanted, rtol=1e-3, atol=1e-5)
    loss = keras.losses.sparse_categorical_crossentropy(
        labelled[1], outputs, from_logits=True
    )
    np.testing.assert_allclose(measured.task, loss, rtol=1e-3, atol=1e-5)
    right = np.argmax(outputs, axis=-1) == labelled[1]
    assert measured.accuracy == pytest.approx(right.mean())
    # Measuring leaves nothing behind, whatever was trained in between.
    evaluator.measure(bits, steps=2, batch_size=8, learning_rate=0.1)
    case.journal._answers.clear()
    np.testing.assert_array_equal(evaluator.measure(bits).task, measured.task)

"""Every row of STRATEGIES on a problem with one right answer."""

import json
import re
from itertools import product

import keras
import numpy as np
import pytest
import tensorflow as tf

from gmpq_tf.bits import PolicyError
from gmpq_tf.budget import BudgetError
from gmpq_tf.cost import count_cost
from gmpq_tf.graph import GraphError
from gmpq_tf.inputs import InputError
from gmpq_tf.layers.relaxation import RELAXATIONS
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.search import (
    STRATEGIES,
    JournalError,
    StrategyError,
    policies,
    search_policy,
    watch,
)
from gmpq_tf.search.choose import choose
from gmpq_tf.search.decisions import decisions_of
from gmpq_tf.search.evaluator import Evaluator
from gmpq_tf.search.generalizations import GENERALIZATIONS
from gmpq_tf.search.readouts import READOUTS
from gmpq_tf.search.rules import RULES
from gmpq_tf.search.values import Valued, total
from gmpq_tf.space import SearchSpace
from gmpq_tf.task import TaskError
from gmpq_tf.transform import build_hypernet, prune_channels, quantize_model
from tests.search.toy import RIGHT, SPACE, toy_budget, toy_images, toy_model

# Of the strategies with gradients: how importances are read.
MEASURED = {"epochs": 1, "learning_rate": 1e-3, "readout": "perturbation"}
# Options with which a row is quick; a row without a case fails.
CASES: dict = {
    "gmpq": {"epochs": 1},
    "edmips": {"epochs": 1},
    "bp_nas": MEASURED | {"rule": "asga"},
    "hmq": MEASURED,
    "dq": MEASURED,
    "djpq": MEASURED,
    "fracbits": MEASURED,
    "sdq": MEASURED,
    "ssps": {"epochs": 2, "eta": 1.0, "generalization": "partitioned"},
    "bayesian_bits": {"epochs": 1, "eta": 1.0, "generalization": "margin"},
    "loss_delta": {},
    "one_shot": {"training_steps": 4, "learning_rate": 1e-3, "images": 32},
    "limpq": {"training_steps": 4, "learning_rate": 1e-3, "training_batch_size": 16},
    "random": {"policies": 24},
    "haq": {"trials": 8, "warmup": 3},
    "evolution": {"trials": 30, "population": 6},
    "hawq": {"probes": 4, "trace_images": 96},
    "fisher": {},
    "clado": {"pair_images": 32},
    "ompq": {"feature_images": 16},
    "topological_entropy": {"map_images": 16, "map_channels": 4, "images": 16},
}
# How layers compute, where that is an option, and how importances are read.
GRADIENT: list = [
    ("edmips", MEASURED | {"relaxation": "mixture"}),
    ("edmips", MEASURED | {"relaxation": "sampled", "readout_measure": "divergence"}),
    ("edmips", MEASURED | {"relaxation": "expected_grid"}),
    ("gmpq", MEASURED | {"relaxation": "sampled", "eta": 1.0}),
    ("gmpq", {"epochs": 1, "relaxation": "expected_grid", "readout": "expected_bits"}),
]
# The other ways to value activations.
TABLES: list = [
    (name, CASES[name] | {"activations": way})
    for name, way in (
        ("hawq", "tied"),
        ("fisher", "tied"),
        ("fisher", "measured"),
        ("limpq", "measured"),
        ("clado", "tied"),
        ("ompq", "tied"),
        ("topological_entropy", "measured"),
    )
]
SEEING = ("loss_delta", "one_shot", "random", "evolution", "hawq", "fisher", "clado")
ROWS = [*CASES.items(), *TABLES, *GRADIENT]
# Strategies that are a way to compute of their own.
COMPUTES = {
    "hmq": "thresholds",
    "dq": "learned_grid",
    "djpq": "learned_grid",
    "fracbits": "adjacent",
    "sdq": "drawn_neighbour",
    "bayesian_bits": "nested",
}
APOT = SearchSpace((2, 4), (2, 4), dict.fromkeys(SPACE.pinned, (6, 8)))


def finds(strategy, options):
    """Whether a row sees the error of each choice, and so the right answer.

    A mixture of branches averages rounding errors, so that its importances, unless they
    are read by measuring, hardly tell one from another; one epoch is too short for any.
    """
    return (
        strategy in SEEING and options.get("activations") != "tied"
    ) or options.items() >= MEASURED.items()


def names_of(rows):
    return ["-".join([n, *(str(v) for v in o.values())]) for n, o in rows]


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
    rows = [{"relaxation": COMPUTES.get(name), **options} for name, options in ROWS]
    for option, known in (
        ("relaxation", RELAXATIONS),
        ("readout", READOUTS),
        ("rule", RULES),
        ("generalization", GENERALIZATIONS),
    ):
        default = {"log_probability", "plain", "attribution"}
        assert {row.get(option) for row in rows} >= set(known) - default


class TestStrategy:
    @pytest.mark.quick_rows(8)
    @pytest.mark.parametrize(
        ("strategy", "options"),
        [
            *CASES.items(),
            *(
                pytest.param(*row, marks=pytest.mark.slow)
                for row in [*TABLES, *GRADIENT]
            ),
        ],
        ids=names_of(ROWS),
    )
    def test_keeps_the_contract(
        self, model, labelled, strategy, options, tmp_path, capsys, monkeypatch
    ):
        before = [v.numpy() for v in model.variables]
        file = tmp_path / "journal.jsonl"
        monkeypatch.setattr(watch, "INTERVALS", {"bar": 0.0, "line": 0.0})
        shows: dict = {"progress": "line", "journal": file}
        result = run(model, labelled, strategy, **shows, **options)
        # Training has a row an epoch, measuring lines; one measurement has none.
        trains = STRATEGIES[strategy].gradient or strategy == "limpq"
        several = trains or len(file.read_bytes().splitlines()) > 3
        assert re.search(r"\bleft\b", capsys.readouterr().out) or not several
        for kept, variable in zip(before, model.variables, strict=True):
            np.testing.assert_array_equal(kept, variable.numpy())
        bits = chosen(result)
        assert list(bits) == list(SPACE.candidates(model))
        assert all(bits[name] == (8, 8) for name in SPACE.pinned)
        assert {b for n in RIGHT for b in bits[n]} <= {2, 3, 4}
        searched = prune_channels(model, result.kept)
        assert count_cost(searched, result.policy).bit_ops <= toy_budget(model)
        assert result.cost.float_steps > 0
        if finds(strategy, options):
            assert {name: bits[name] for name in RIGHT} == RIGHT
        json.dumps(result.to_json(), allow_nan=False)
        assert list(result.values) == list(bits)
        # Interrupted in the middle, it goes on from the journal to the same bytes.
        lines = file.read_bytes().splitlines(keepends=True)
        part = tmp_path / "part.jsonl"
        part.write_bytes(b"".join(lines[: len(lines) // 2 + 1]) + b'{"key": [1')
        for kept in tmp_path.glob("journal.*.npz"):  # the weights that were trained
            kept.rename(tmp_path / kept.name.replace("journal", "part"))
        again = run(model, labelled, strategy, journal=part, progress="line", **options)
        shown = re.findall(r"Measured (\d+) of (\d+)  (.*)", capsys.readouterr().out)
        # The host shows how far training is; one measurement has nothing to show.
        assert shown or len(lines) < 4 or "epochs" in options or strategy == "limpq"
        assert all(int(done) <= int(planned) for done, planned, _ in shown)
        assert not shown or re.match(r"left: \d\d:\d\d", shown[-1][2])
        assert json.dumps(again.to_json()) == json.dumps(result.to_json())
        assert again.policy.layers == result.policy.layers
        assert again.cost.float_steps == pytest.approx(result.cost.float_steps, rel=0.3)

    @pytest.mark.parametrize("strategy", ["loss_delta", "random"])
    def test_finds_the_right_answer_by_labels_too(self, model, labelled, strategy):
        bits = chosen(run(model, labelled, strategy, measure="task", **CASES[strategy]))
        assert {name: bits[name] for name in RIGHT} == RIGHT

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_refuses_what_it_cannot_do(self, model, labelled, strategy):
        with pytest.raises(StrategyError, match="Received: epoch_count=3"):
            run(model, labelled, strategy, epoch_count=3)
        with pytest.raises(BudgetError, match="No policy"):
            run(model, labelled, strategy, budget=1e-6, **CASES[strategy])
        if STRATEGIES[strategy].gradient:
            with pytest.raises(StrategyError, match="trains on labels"):
                run(model, labelled[0], strategy, **CASES[strategy])


@pytest.mark.slow
def test_hmq_comes_down_to_its_budget(model, labelled):
    data = tf.data.Dataset.from_tensor_slices(labelled).batch(8)
    budget = toy_budget(model)
    options = {"learning_rate": 1e-3, "importance_learning_rate": 0.1}
    history = run(model, data, "hmq", epochs=10, **options).history
    spent = [cost / budget for cost in history["expected_bit_ops"]]
    # The penalty of an excess vanishes with it, so that a little of it may stay.
    assert spent[0] > 1.3 and 0.8 < spent[-1] < 1.15


def test_trained_weights_are_missed_by_name(model, labelled, tmp_path):
    file, (strategy, options) = tmp_path / "journal.jsonl", GRADIENT[2]
    run(model, labelled, strategy, journal=file, **options)
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:4]))
    (weights,) = tmp_path.glob("*.npz")
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(JournalError, match=r"journal\.trained\.npz"):
        run(model, labelled, strategy, journal=file, **options)


def test_relaxations_and_readouts_that_cannot_be(model, labelled):
    for option, value, said in (
        ("relaxation", "sample", "Did you mean 'sampled'"),
        ("readout", "perturb", "Did you mean 'perturbation'"),
        ("readout_images", 8, "is for readout='perturbation'"),
        ("readout_statistics", 0, "is for readout='perturbation'"),
    ):
        with pytest.raises(ValueError, match=said):
            run(model, labelled, "edmips", **{option: value})
    for option, value in (("readout_images", 0), ("readout_measure", "loss")):
        with pytest.raises(StrategyError, match=f"Received: {option}="):
            run(model, labelled, "edmips", readout="perturbation", **{option: value})
    with pytest.raises(ValueError, match="'apot'"):
        options = {"relaxation": "expected_grid", "kernel_quantizer": "apot"}
        run(model, labelled, "edmips", **options, space=APOT)


@pytest.mark.slow
def test_a_purpose_names_strategy_and_options(model, labelled):
    result = run(model, labelled, None, purpose="post_training")
    assert result.policy.made_by["strategy"] == "loss_delta"
    quick = {"finalist_steps": 1, "finalist_batch_size": 16, "finalist_images": 32}
    result = run(model, labelled, None, purpose="fine_tuning", epochs=1, **quick)
    assert result.policy.made_by["strategy"] == "edmips"
    assert result.policy.made_by["config"]["finalists"] == 8
    assert len(result.finalists) >= 2
    # A strategy that is named is taken, and options of one's own.
    result = run(model, labelled, "random", purpose="fine_tuning", policies=4)
    assert result.policy.made_by["strategy"] == "random" and not result.finalists
    result = run(model, labelled, None, purpose="fine_tuning", finalists=0, epochs=1)
    assert not result.finalists
    with pytest.raises(StrategyError, match="Did you mean 'fine_tuning'"):
        run(model, labelled, None, purpose="finetuning")


def test_each_choice_has_a_margin(model, labelled, case):
    result = run(model, labelled[0], "loss_delta")
    margins, best = result.decisions.margins, chosen(result)
    assert margins["select_a"] == (None, None)
    # Against the best of all policies without that choice, by brute force.
    pairs = [*product((2, 3, 4), repeat=2)]
    within = [{**best, "branch_a": a, "branch_b": b} for a, b in product(pairs, pairs)]
    (limit,) = case.problem.limits
    shares = [limit.table.of_layers(bits) / limit.for_layers for bits in within]
    within = [p for p, s in zip(within, shares, strict=True) if s <= 1]
    for name, which in product(RIGHT, (0, 1)):
        margin = margins[name][which]
        assert margin.following[name][which] != RIGHT[name][which]
        allowed = [p for p in within if p[name][which] != RIGHT[name][which]]
        most = max(total(result.values, p) for p in allowed)
        assert margin.difference == pytest.approx(total(result.values, best) - most)
    assert re.search(r"or more: [0-4] of 4 choices", str(result.decisions))
    text = json.dumps(result.decisions.to_json(), allow_nan=False)
    assert json.loads(text)["layers"]["branch_a"]["activations"]["bits"] == 4
    soft = run(model, labelled, "edmips", epochs=0)
    assert str(soft.decisions).startswith("Least sure") and "%" in str(soft.decisions)
    soft = run(model, labelled, "edmips", epochs=0, readout="expected_bits")
    assert "%" not in f"{soft.margin}{soft.decisions}"
    assert "no measured error" in str(soft.margin)
    drawn = run(model, labelled[0], "random", policies=6)
    assert set(drawn.decisions.margins) == set(best)


def test_a_choice_that_is_chance_is_named():
    values = {"a": ({2: -1.0, 3: 0.0}, {4: 0.0}), "b": ({2: -0.1, 3: 0.0}, {4: 0.0})}
    noise = np.array([-1.0, 1.0] * 50)
    samples = {
        name: ({2: side[2] + scale * noise, 3: 0 * noise}, {4: 0 * noise})
        for (name, (side, _)), scale in zip(values.items(), (1, 3), strict=True)
    }
    candidates = dict.fromkeys(values, ((2, 3), (4,)))
    found = decisions_of(
        Valued(values, samples), candidates, (), {"a": (3, 4), "b": (3, 4)}
    )
    assert found.margins["a"][0].in_errors == pytest.approx(1 / 0.1005, rel=1e-3)
    assert not found.margins["b"][0].decided
    assert "1 of 2 choices. Not decided: b W3 (0.33); measure on more" in str(found)


def test_a_search_says_what_it_cost(model, labelled, capsys, monkeypatch):
    monkeypatch.setattr(watch, "INTERVALS", {"bar": 0.0, "line": 0.0})
    run(model, labelled[0], "loss_delta", progress="line")
    said = capsys.readouterr().out
    assert "float-step equivalents" in said and "standard errors" in said
    assert re.search(r"Measured 13 of 13  left: 00:00", said)
    run(model, labelled[0], "loss_delta", progress="none")
    assert not capsys.readouterr().out
    with pytest.raises(StrategyError, match="Did you mean 'line'"):
        run(model, labelled[0], "loss_delta", progress="lines")


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.quick_rows(1)
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


def test_what_finalists_cannot_train_on_is_refused_first(model, labelled, monkeypatch):
    images, labels = labelled
    monkeypatch.setattr(Evaluator, "measure", lambda *_: pytest.fail("too late"))
    options = {"finalists": 3, "finalist_images": 64, "finalist_batch_size": 32}
    with pytest.raises(InputError, match="32 images besides the 80"):
        run(model, images, "loss_delta", **{**options, "finalist_images": 80})
    with pytest.raises(TaskError, match="from 0 to 4"):
        run(model, (images, labels + 5), "loss_delta", **options)


@pytest.mark.slow
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
    with pytest.raises(TaskError, match="must be numbers"):
        run(model, (images, labels.astype(str)), strategy, measure="task")
    with pytest.raises(InputError, match=r"dataset\.batch"):
        run(model, tf.data.Dataset.from_tensor_slices(images), strategy)
    for wrong in ([images, labels], (images, labels, np.ones(len(images)))):
        with pytest.raises(InputError, match=r"tuple \(images, labels\)"):
            run(model, wrong, strategy)
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
    with pytest.raises(JournalError, match="a folder"):
        run(model, labelled[0], "loss_delta", images=8, journal=tmp_path)
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:2], "{broken", *lines[2:]]) + "\n")
    with pytest.raises(JournalError, match="line 3"):
        run(model, labelled[0], "loss_delta", images=8, journal=file)


@pytest.mark.parametrize("images", [48, None])
def test_a_journal_knows_every_image_that_was_measured(
    model, labelled, tmp_path, images
):
    first, given = labelled[0], {"images": images, "calibration_images": 8}
    file = {"journal": tmp_path / "journal.jsonl"}
    run(model, first, "loss_delta", **given, **file)
    other = np.concatenate([first[:20], first[20:][::-1]])  # none sets a range
    with pytest.raises(JournalError, match="images"):
        run(model, other, "loss_delta", **given, **file)


def test_a_journal_is_of_weights_and_not_of_random_states(tmp_path):
    """A script that is started again makes its Dropout with another seed."""

    def made(seed):
        x = inputs = keras.Input((8, 8, 2))
        x = keras.layers.Conv2D(3, 3, kernel_initializer="ones", name="first")(x)
        x = keras.layers.Dropout(0.1, seed=seed)(keras.layers.Flatten()(x))
        x = keras.layers.Dense(5, kernel_initializer="ones", name="last")(x)
        return keras.Model(inputs, x, name="small")

    options = {"space": SearchSpace((2, 4), (2, 4), {}), "budget": "W4A4", "images": 8}
    options["journal"] = tmp_path / "journal.jsonl"
    found = [
        search_policy(made(n), toy_images(), "loss_delta", **options) for n in (1, 2)
    ]
    assert found[0].to_json() == found[1].to_json()


def test_numbers_of_numpy_are_numbers(model, labelled, tmp_path):
    found = [
        run(model, labelled[0], "loss_delta", images=of(8), seed=of(1), **journal)
        for of, journal in ((int, {}), (np.int64, {"journal": tmp_path / "a.jsonl"}))
    ]
    assert found[0].to_json() == found[1].to_json()


def test_what_is_no_float_model_or_no_space_is_refused(model, labelled):
    with pytest.raises(PolicyError, match=r"SearchSpace\(weight_bits"):
        run(model, labelled, "loss_delta", space=(2, 4, 8))
    with pytest.raises(GraphError, match=r"model='toy\.keras'"):
        search_policy("toy.keras", labelled, budget="W4A4")
    student = quantize_model(model, BitwidthPolicy.uniform(model, 4, 4))
    policy = BitwidthPolicy.uniform(model, 8, 8)
    by_keras = keras.models.clone_model(model)
    by_keras.quantize("int8")
    for quantized in (student, build_hypernet(model, SPACE), by_keras):
        with pytest.raises(GraphError, match="quantized already"):
            search_policy(quantized, labelled, budget="W4A4")
        with pytest.raises(GraphError, match="quantized already"):
            build_hypernet(quantized, SPACE)
        with pytest.raises(GraphError, match="quantized already"):
            quantize_model(quantized, policy)
    tuned = keras.models.clone_model(model)
    tuned.get_layer("classifier").enable_lora(2)
    with pytest.raises(GraphError, match="'classifier' adds LoRA's"):
        quantize_model(tuned, policy)


@pytest.mark.slow
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

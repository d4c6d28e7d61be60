import dataclasses
import json
from pathlib import Path

import keras
import numpy as np
import pytest

from gmpq_tf.cost import bit_ops_range, count_cost
from gmpq_tf.cost_tables import cost_table
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.run import loop
from gmpq_tf.search import BudgetError, RiskConfig
from gmpq_tf.space import SearchSpace
from gmpq_tf.train.report import searched_budget
from gmpq_tf.train.search import SearchConfig, search


def tiny(float_file, **changes):
    options = {"epochs": 1, "learning_rate": 0.01, "calibration_images": 32}
    return SearchConfig(**{**options, "model": str(float_file), **changes})


def test_a_search_leaves_policy_importances_and_metrics(float_file, digits, quiet):
    model = keras.models.load_model(float_file)
    low, high = bit_ops_range(model, SearchSpace())
    budget = (low + high) // 2
    config = tiny(float_file, risk=RiskConfig(bit_ops_budget=budget))
    stage = search(config, digits, quiet)
    policy = BitwidthPolicy.load(stage.folder / "policy.json")
    cost = count_cost(model, policy).bit_ops
    assert cost <= budget and cost == stage.results()["bit_ops"]
    assert policy.made_by["seed"] == 0 and policy.made_by["versions"]
    layers = json.loads((stage.folder / "importances.json").read_text())["layers"]
    assert set(layers) == {"first", "middle", "last"}
    assert sum(layers["middle"]["weight_probabilities"]) == pytest.approx(1, abs=1e-5)
    (line,) = map(json.loads, (stage.folder / "metrics.jsonl").open())
    assert {"task_risk", "complexity_risk", "generalization_risk", "p"} < set(line)
    assert low <= line["expected_bit_ops"] <= high
    assert search(config, digits, quiet).finished


def test_a_budget_as_people_say_it_is_kept_and_drawn(float_file, digits, quiet):
    config = tiny(float_file, epochs=0, risk=RiskConfig(budget="W3A3"))
    policy = BitwidthPolicy.load(search(config, digits, quiet).folder / "policy.json")
    model = keras.models.load_model(float_file)
    names = list(policy)
    bits = {name: (8, 8) if name in (names[0], names[-1]) else (3, 3) for name in names}
    cost = count_cost(model, BitwidthPolicy(policy.model, bits)).bit_ops
    assert searched_budget(Path(quiet.workdir)) == cost
    assert count_cost(model, policy).bit_ops <= cost


def test_the_recipe_of_the_paper_is_the_default():
    config = SearchConfig()
    assert (config.epochs, config.decay_epochs) == (25, (10, 20))
    assert (config.optimizer, config.learning_rate) == ("sgd", 0.1)
    assert (config.importance_optimizer, config.importance_learning_rate) == (
        "sgd",
        0.01,
    )


def test_an_impossible_budget_leaves_nothing_behind(
    float_file, digits, quiet, tmp_path
):
    config = tiny(float_file, risk=RiskConfig(bit_ops_budget=1e-6))
    with pytest.raises(BudgetError, match="reaches"):
        search(config, digits, quiet)
    assert not list(tmp_path.rglob("*.json"))


def test_divergence_names_the_risk(float_file, digits, quiet, tmp_path):
    model = keras.models.load_model(float_file)
    last = model.get_layer("last")
    last.kernel.assign(np.full(last.kernel.shape, 1e30, "float32"))
    path = tmp_path / "huge.keras"
    model.save(path)
    config = tiny(path, learning_rate=1e30, risk=RiskConfig(eta=0.0))
    with pytest.raises(ValueError, match="task"):
        search(dataclasses.replace(config, epochs=2), digits, quiet)


def test_candidates_out_of_range_are_refused():
    with pytest.raises(ValueError, match="2 to 8"):
        SearchConfig(space=SearchSpace((1, 2), (2, 3)))


@pytest.mark.slow
def test_the_temperature_falls_to_the_one_asked_for(float_file, digits, quiet):
    config = tiny(float_file, epochs=2, final_temperature=0.25)
    stage = search(config, digits, quiet)
    lines = map(json.loads, (stage.folder / "metrics.jsonl").open())
    assert [line["temperature"] for line in lines] == [1.0, 0.25]
    with pytest.raises(ValueError, match="final_temperature=0"):
        SearchConfig(final_temperature=0)


@pytest.mark.parametrize("budgets", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_an_interrupted_search_ends_as_one_that_was_not(
    float_file, digits, quiet, tmp_path, monkeypatch, budgets
):
    """Weights, importances, both optimizers and zeta's controllers are restored."""
    model = keras.models.load_model(float_file)
    low, high = bit_ops_range(model, SearchSpace())
    risk = RiskConfig(bit_ops_budget=(low + high) // 2)
    if budgets == 2:
        bytes_of = cost_table("weight_bytes", model).uniform(3, 3)
        risk = RiskConfig(eta=0.0, budget=f"W3A3,weight_bytes={bytes_of}B")
    options = {"epochs": 3, "final_temperature": 0.5, "risk": risk}
    config = tiny(float_file, **options)
    whole = search(config, digits, dataclasses.replace(quiet, workdir=f"{tmp_path}/a"))
    save, cut_run = loop.EpochBackup.on_epoch_end, f"{tmp_path}/b"

    def cut(self, epoch, logs=None):
        save(self, epoch, logs)
        raise KeyboardInterrupt

    for _ in range(2):
        monkeypatch.setattr(loop.EpochBackup, "on_epoch_end", cut)
        with pytest.raises(KeyboardInterrupt):
            search(config, digits, dataclasses.replace(quiet, workdir=cut_run))
    monkeypatch.setattr(loop.EpochBackup, "on_epoch_end", save)
    stage = search(config, digits, dataclasses.replace(quiet, workdir=cut_run))
    for name in ("policy.json", "importances.json"):
        assert (stage.folder / name).read_text() == (whole.folder / name).read_text()
    lines = [
        [json.loads(line) for line in (s.folder / "metrics.jsonl").open()]
        for s in (whole, stage)
    ]
    for a, b in zip(*lines, strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}
    assert ("zeta_weight_bytes" in lines[0][0]) == (budgets == 2)
    assert ("expected_weight_bytes" in lines[0][0]) == (budgets == 2)

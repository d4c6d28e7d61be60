"""The search command with strategies that measure: files, resume, flags."""

import dataclasses
import json
import subprocess
import sys

import pytest

from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.run.errors import StageError
from gmpq_tf.search import BudgetError, RiskConfig, evaluator
from gmpq_tf.search.policies import FinalistsConfig
from gmpq_tf.search.strategies.loss_delta import LossDeltaConfig
from gmpq_tf.search.strategies.random_draws import RandomConfig
from gmpq_tf.train.search import EdMIPSSearchConfig, SearchConfig, search
from gmpq_tf.train.strategies import ChoicesConfig, named_strategy, search_by

ROOT_COMMAND = [sys.executable, "-m", "train.search"]


def choices(float_file, **changes):
    options = {"calibration_images": 32, "budget": "W3A3", "model": str(float_file)}
    return ChoicesConfig(**{**options, **changes})


def table(float_file, digits, quiet, images=64, **changes):
    return search_by(
        "loss_delta",
        choices(float_file, **changes),
        LossDeltaConfig(images=images),
        FinalistsConfig(),
        digits,
        quiet,
    )


def test_a_table_leaves_policy_values_and_journal(float_file, digits, quiet, capsys):
    stage = table(float_file, digits, quiet)
    said = capsys.readouterr().out
    assert "float-step equivalents" in said and "standard errors" in said
    policy = BitwidthPolicy.load(stage.folder / "policy.json")
    assert policy.made_by["strategy"] == "loss_delta" and policy.made_by["versions"]
    values = json.loads((stage.folder / "values.json").read_text())
    assert set(values["values"]["middle"]["weights"]) == {"2", "3", "4"}
    assert stage.results()["search_cost"]["float_steps"] > 0
    assert table(float_file, digits, quiet).finished
    with pytest.raises(StageError, match="images: 64 -> 32"):
        table(float_file, digits, quiet, images=32)


def test_an_interrupted_table_goes_on(float_file, digits, quiet, tmp_path, monkeypatch):
    whole = table(float_file, digits, quiet)
    other = dataclasses.replace(quiet, workdir=str(tmp_path / "other"))
    measured = []
    measure = evaluator.Evaluator._measure

    def interrupted(self, *args):
        measured.append(args)
        if len(measured) == 4:
            raise KeyboardInterrupt
        return measure(self, *args)

    monkeypatch.setattr(evaluator.Evaluator, "_measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        table(float_file, digits, other)
    # Another configuration would spoil what was measured.
    with pytest.raises(StageError, match="budget"):
        table(float_file, digits, other, budget="W2A2")
    stage = table(float_file, digits, other)
    names = ("policy.json", "values.json")
    for name in names:
        assert (stage.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    journal = (whole.folder / "journal.jsonl").read_text().splitlines()
    # Once each, but the one that was interrupted; the first line is the problem.
    assert len(measured) == len(journal)


def test_random_policies_and_finalists(float_file, digits, quiet):
    finalists = FinalistsConfig(finalists=2, finalist_steps=0, finalist_images=32)
    stage = search_by(
        "random",
        choices(float_file),
        RandomConfig(policies=3, images=32),
        finalists,
        digits,
        quiet,
    )
    values = json.loads((stage.folder / "values.json").read_text())
    assert values["strategy"] == "random" and len(values["finalists"]) == 2


def test_an_impossible_budget_leaves_nothing_behind(
    float_file, digits, quiet, tmp_path
):
    with pytest.raises(BudgetError, match="reaches"):
        table(float_file, digits, quiet, budget="1e-7")
    assert not list(tmp_path.rglob("*.json"))


def test_trained_importances_are_values_too(float_file, digits, quiet, capsys):
    config = EdMIPSSearchConfig(
        epochs=0, model=str(float_file), calibration_images=32
    ).with_risk()
    assert type(config) is SearchConfig and config.risk == RiskConfig(eta=0.0)
    stage = search(config, digits, quiet)
    values = json.loads((stage.folder / "values.json").read_text())
    assert values["strategy"] == "edmips"
    assert not values["margin"]["decided"]
    assert "as probable as the chosen one" in capsys.readouterr().out


def test_the_command_line_names_a_strategy(tmp_path):
    assert named_strategy(["search"]) == "gmpq"
    assert named_strategy(["search", "--strategy=random"]) == "random"
    assert named_strategy(["search", "--strategy", "edmips", "--debug"]) == "edmips"
    file = tmp_path / "flags.txt"
    file.write_text("--strategy=loss_delta\n")
    assert named_strategy(["search", f"--flagfile={file}"]) == "loss_delta"
    with pytest.raises(ValueError, match="Did you mean 'loss_delta'"):
        named_strategy(["search", "--strategy=lossdelta"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--strategy=loss_delta", "--epochs=3"], "It is one of 'gmpq', 'edmips'"),
        (["--strategy=edmips", "--eta=3"], "It is one of 'gmpq', 'loss_delta'"),
        (["--strategy=random", "--policies=0"], "Received: policies=0"),
    ],
)
def test_flags_of_other_strategies_are_refused(words, said, repo_root, tmp_path):
    command = [*ROOT_COMMAND, f"--workdir={tmp_path}", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=repo_root)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr

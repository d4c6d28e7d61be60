"""The search command with strategies that measure: files, resume, flags."""

import dataclasses
import json
import subprocess
import sys
import typing

import pytest

from gmpq_tf.data import DataError
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.report.layout import POLICY
from gmpq_tf.run import loop
from gmpq_tf.run.errors import StageError
from gmpq_tf.search import (
    STRATEGIES,
    BudgetError,
    RiskConfig,
    StrategyError,
    evaluator,
)
from gmpq_tf.search.finalists import FinalistsConfig
from gmpq_tf.search.purposes import PURPOSES
from gmpq_tf.search.readouts import ReadoutConfig
from gmpq_tf.search.strategies.hmq import HMQConfig, TemperatureCycles
from gmpq_tf.search.strategies.loss_delta import LossDeltaConfig
from gmpq_tf.search.strategies.random_draws import RandomConfig
from gmpq_tf.space import SearchSpace
from gmpq_tf.train.search import (
    EdMIPSSearchConfig,
    SearchConfig,
    configs_of,
    search,
)
from gmpq_tf.train.strategies import ChoicesConfig, named_search, search_by


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


@pytest.mark.slow
def test_an_interrupted_search_with_gradients_goes_on(
    float_file, digits, quiet, tmp_path, monkeypatch
):
    """In its second epoch; draws, temperature and stages go on where they were."""

    def searched(run):
        options = HMQConfig(epochs=3, learning_rate=1e-3, stages=2, rule="asga")
        config = choices(float_file)
        return search_by("hmq", config, options, FinalistsConfig(), digits, run)

    whole = searched(quiet)
    other = dataclasses.replace(quiet, workdir=str(tmp_path / "other"))
    begin = TemperatureCycles.on_epoch_begin

    def interrupted(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt
        begin(self, epoch, logs)

    with monkeypatch.context() as patch:
        patch.setattr(TemperatureCycles, "on_epoch_begin", interrupted)
        with pytest.raises(KeyboardInterrupt):
            searched(other)
    stage = searched(other)
    one, two = (
        json.loads((each.folder / "values.json").read_text())["values"]
        for each in (whole, stage)
    )
    assert list(one) == list(two)
    for name, sides in one.items():
        for side, values in sides.items():
            assert two[name][side] == pytest.approx(values, rel=1e-3, abs=1e-3)


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


def flag_names(cls):
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from flag_names(hints[field.name])
        else:
            yield field.name


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_flag_is_defined_twice(strategy):
    names = [name for cls in configs_of(strategy) for name in flag_names(cls)]
    assert sorted(set(names)) == sorted(names)


def test_the_command_line_names_a_strategy(tmp_path):
    assert named_search(["search"]) == ("gmpq", {})
    assert named_search(["search", "--strategy=random"])[0] == "random"
    assert named_search(["search", "--strategy", "edmips", "--debug"])[0] == "edmips"
    file = tmp_path / "flags.txt"
    file.write_text("--strategy=loss_delta\n")
    assert named_search(["search", f"--flagfile={file}"])[0] == "loss_delta"
    with pytest.raises(ValueError, match="Did you mean 'loss_delta'"):
        named_search(["search", "--strategy=lossdelta"])


def test_the_command_line_names_a_purpose():
    name, defaults = named_search(["search", "--purpose=fine_tuning"])
    assert (name, defaults) == ("edmips", PURPOSES["fine_tuning"].options)
    assert named_search(["search", "--purpose", "post_training"]) == ("loss_delta", {})
    words = ["search", "--purpose=fine_tuning", "--strategy=random"]
    assert named_search(words) == ("random", {})
    assert named_search(["search", "--purpose=none"]) == ("gmpq", {})
    with pytest.raises(ValueError, match="Did you mean 'fine_tuning'"):
        named_search(["search", "--purpose=finetuning"])


def trained(float_file, **changes):
    options = {"epochs": 2, "learning_rate": 0.01, "calibration_images": 32}
    own = {"relaxation": "sampled", "risk": RiskConfig(eta=0.0, budget="W3A3")}
    readout = ReadoutConfig("perturbation", "task", 48, 32)
    return SearchConfig(
        **{**options, **own, "readout": readout, "model": str(float_file), **changes}
    )


FINALISTS = FinalistsConfig(
    finalists=2, finalist_steps=1, finalist_batch_size=16, finalist_images=32
)


@pytest.mark.slow
def test_a_trained_search_is_measured_and_compared(
    float_file, digits, quiet, tmp_path, monkeypatch, capsys
):
    """Interrupted in training and while measuring, it ends with the same files."""
    config = trained(float_file)
    whole = search(config, digits, quiet, FINALISTS)
    said = capsys.readouterr().out
    assert "float-step equivalents" in said and "standard errors" in said
    assert whole.results()["search_cost"]["float_steps"] > 2 * 4 * 1.08
    policy = BitwidthPolicy.load(whole.folder / "policy.json")
    assert policy.made_by["config"]["relaxation"] == "sampled"
    assert policy.made_by["config"]["readout"] == "perturbation"
    values = json.loads((whole.folder / "values.json").read_text())
    assert set(values["columns"]) == {"probability", "task"}
    assert len(values["finalists"]) == 2 and values["decisions"]["layers"]["middle"]
    other = dataclasses.replace(quiet, workdir=str(tmp_path / "other"))
    save, measure = loop.EpochBackup.on_epoch_end, evaluator.Evaluator._measure

    def cut(self, epoch, logs=None):
        save(self, epoch, logs)
        raise KeyboardInterrupt

    measured = []

    def interrupted(self, *args):
        measured.append(args)
        if len(measured) == 3:
            raise KeyboardInterrupt
        return measure(self, *args)

    monkeypatch.setattr(loop.EpochBackup, "on_epoch_end", cut)
    with pytest.raises(KeyboardInterrupt):
        search(config, digits, other, FINALISTS)
    monkeypatch.setattr(loop.EpochBackup, "on_epoch_end", save)
    monkeypatch.setattr(evaluator.Evaluator, "_measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        search(config, digits, other, FINALISTS)
    stage = search(config, digits, other, FINALISTS)
    for name in ("policy.json", "values.json", "importances.json"):
        assert (stage.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    journal = (whole.folder / "journal.jsonl").read_text().splitlines()
    assert len(measured) == len(journal)
    with pytest.raises(StageError, match="relaxation: sampled -> None"):
        search(trained(float_file, relaxation="mixture"), digits, other, FINALISTS)


def test_what_cannot_be_measured_is_refused_before(float_file, digits, quiet, tmp_path):
    run = dataclasses.replace(quiet, distribution="mirrored")
    with pytest.raises(ValueError, match="Policies are measured on one device"):
        search(trained(float_file), digits, run)
    with pytest.raises(ValueError, match="'apot'"):
        options = {"relaxation": "expected_grid", "kernel_quantizer": "apot"}
        space = SearchSpace((2, 4), (2, 4), {"first": (6, 8), "last": (6, 8)})
        search(trained(float_file, space=space, **options), digits, quiet)
    with pytest.raises(ValueError, match="Did you mean 'expected_grid'"):
        trained(float_file, relaxation="expectedgrid")
    assert not list(tmp_path.rglob("*.json"))


REFUSED = {
    "--strategy=loss_delta --epochs=3": "It is one of 'gmpq', 'edmips'",
    "--strategy=edmips --eta=3": "It is one of 'gmpq', 'bp_nas'",
    "--strategy=random --policies=0": "Received: policies=0",
    "--readout=perturb": "Did you mean 'perturbation'",
    "--purpose=posttraining": "Did you mean 'post_training'",
}
# The command once for each line of words, in processes that share what is imported.
EACH = """
import json, os, sys, tempfile
from gmpq_tf.train import search
for words in sys.argv[2:]:
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if not child:
            os.dup2(said.fileno(), 2)
            sys.argv = ["train.search", "--workdir=" + sys.argv[1], *words.split()]
            search.run()
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        print(json.dumps([words, code, said.read().decode()]))
"""


@pytest.fixture(scope="module")
def refused(repo_root, tmp_path_factory):
    """Words -> exit code and what was said."""
    workdir = tmp_path_factory.mktemp("refused")
    command = [sys.executable, "-c", EACH, str(workdir), *REFUSED]
    done = subprocess.run(command, capture_output=True, text=True, cwd=repo_root)
    lines = [json.loads(li) for li in done.stdout.splitlines() if li.startswith("[")]
    return {words: (code, said) for words, code, said in lines}


@pytest.mark.parametrize("words", REFUSED)
def test_flags_of_other_strategies_are_refused(words, refused):
    code, said = refused[words]
    assert code == 1
    assert REFUSED[words] in said
    assert "Traceback" not in said


def test_without_labels(float_file, digits, quiet, tmp_path):
    plain = table(float_file, digits, dataclasses.replace(quiet, workdir=str(tmp_path)))
    bare = dataclasses.replace(digits, labels="none")
    stage = table(float_file, bare, quiet)
    first, second = (BitwidthPolicy.load(s.folder / POLICY) for s in (plain, stage))
    assert dict(first.items()) == dict(second.items())
    other = dataclasses.replace(quiet, workdir=str(tmp_path / "task"))
    with pytest.raises(StrategyError, match="needs labels"):
        search_by(
            "loss_delta",
            choices(float_file),
            LossDeltaConfig(measure="task", images=32),
            FinalistsConfig(),
            bare,
            other,
        )
    with pytest.raises(DataError, match="class of each image"):
        search(SearchConfig(model=str(float_file)), bare, other)

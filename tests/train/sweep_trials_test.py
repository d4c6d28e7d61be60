"""Trials of a sweep: drawn as Optuna draws, from what the workdir keeps."""

import csv
import importlib.util
import json
import math
from pathlib import Path

import pytest

from gmpq_tf.files import read_jsonl, write_json
from gmpq_tf.run.errors import StageError
from gmpq_tf.run.run_config import WorkdirConfig
from gmpq_tf.train import sweep_runners
from gmpq_tf.train.sweep import SweepConfig, sweep
from gmpq_tf.train.sweep_children import Outcome
from gmpq_tf.train.sweep_ranges import read_ranges
from gmpq_tf.train.sweep_study import trial_seed
from tests.train.sweep_test import TINY, written

HELD_OUT = TINY | {"evaluate": {"dataset": "digits"}}
RANGES = {
    "search.zeta": {"low": 0.1, "high": 10, "log": True},
    "search.eta": {"low": 0, "high": 100},
    "finetune.epochs": {"low": 2, "high": 9},
}


@pytest.fixture
def optuna():
    found = pytest.importorskip("optuna", reason="draws the trials")
    found.logging.set_verbosity(found.logging.WARNING)
    return found


def toy(zeta, eta, epochs):
    """Accuracy and bit operations, as of a training."""
    fit = math.exp(-(math.log(zeta) ** 2) - (eta / 100 - 0.3) ** 2)
    return 0.8 * fit + 0.1 - 0.1 / epochs, 1000.0 / zeta


class ToyRunner:
    """Computes at once what trainings would have left in a workdir."""

    stops_after = None
    ran: list = []

    def __init__(self, options):
        self.jobs = options.jobs or 1

    def run(self, folder, commands):
        if len(ToyRunner.ran) == ToyRunner.stops_after:
            raise KeyboardInterrupt
        ToyRunner.ran.append(folder.name)
        words = [word[2:].split("=", 1) for _, given in commands for word in given]
        flags = dict(words)  # of the last stage that has them
        epochs = dict(word[2:].split("=", 1) for word in commands[1][1]).get(
            "epochs", 1
        )
        zeta, eta = float(flags["zeta"]), float(flags.get("eta", 0))
        if eta > 90:
            return Outcome("failed", f"{folder.name}, search: Error: too much")
        accuracy, bit_ops = toy(zeta, eta, int(epochs))
        done = {"bit_ops": bit_ops, "weight_bytes": 10.0, "last_epoch": None}
        write_json(folder / "finetune" / "done.json", done)
        measured = {"accuracy": accuracy, "images": 9, "split": "validation"}
        write_json(folder / "finetune" / "evaluation.json", measured)
        return Outcome("finished")

    def stop(self):
        pass

    def close(self):
        pass


@pytest.fixture(autouse=True)
def toy_runner(monkeypatch):
    monkeypatch.setitem(sweep_runners.RUNNERS, "local", ToyRunner)
    monkeypatch.setattr(ToyRunner, "stops_after", None)
    monkeypatch.setattr(ToyRunner, "ran", [])
    return ToyRunner


@pytest.fixture
def start(tmp_path, float_file):
    """A sweep of the ranges, of so many trials, into a folder."""

    def run(folder, trials, content=None, overwrite=False, **options):
        spec = written(tmp_path, **(content or {**HELD_OUT, "ranges": RANGES}))
        config = SweepConfig(str(spec), str(float_file), trials=trials, **options)
        return sweep(config, WorkdirConfig(str(tmp_path / folder), overwrite))

    return run


def drawn(tmp_path, folder):
    return [
        record["drawn"] for record in read_jsonl(tmp_path / folder / "trials.jsonl")
    ]


def by_optuna(optuna, trials, kind, jobs=1, directions=("maximize",)):
    """The same by Optuna alone: values of each trial, and the best ones."""
    kinds = optuna.distributions
    space = {
        "search.zeta": kinds.FloatDistribution(0.1, 10, log=True),
        "search.eta": kinds.FloatDistribution(0, 100),
        "finetune.epochs": kinds.IntDistribution(2, 9),
    }
    study, asked = optuna.create_study(directions=directions), []

    def tell(number):
        values = asked[number].params
        if values["search.eta"] > 90:
            study.tell(number, state=optuna.trial.TrialState.FAIL)
        else:
            figures = toy(*(values[key] for key in space))
            study.tell(number, figures[: len(directions)])

    for number in range(trials):
        if number >= jobs:
            tell(number - jobs)
        study.sampler = kind(seed=trial_seed(7, number))
        asked.append(study.ask(space))
    for number in range(max(0, trials - jobs), trials):
        tell(number)
    return [trial.params for trial in asked], study.best_trials


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("jobs", [1, 3])
def test_draws_are_those_of_optuna(tmp_path, start, optuna, sampler, jobs):
    kind = {"tpe": "TPESampler", "random": "RandomSampler"}[sampler]
    kind = getattr(optuna.samplers, kind)
    with pytest.raises(StageError) as error:  # some fail, and the others go on
        start("a", 18, sampler=sampler, seed=7, jobs=jobs)
    expected, best = by_optuna(optuna, 18, kind, jobs)
    assert drawn(tmp_path, "a") == expected
    failed = [v for v in expected if v["search.eta"] > 90]
    assert f"{len(failed)} that failed" in str(error.value) and failed
    found = json.loads((tmp_path / "a" / "best.json").read_text())["trials"]
    assert [one["trial"] for one in found] == [trial.number for trial in best]
    assert found[0]["accuracy"] == best[0].value
    rows = list(csv.DictReader((tmp_path / "a" / "sweep.csv").open()))
    assert len(rows) == 18 - len(failed)


def test_several_objectives_keep_what_no_other_beats(tmp_path, start, optuna):
    content = {**HELD_OUT, "ranges": RANGES}
    content["ranges"] = {**RANGES, "search.eta": {"low": 0, "high": 80}}
    start("a", 20, content, objective=("accuracy", "bit_ops"))
    rows = list(csv.DictReader((tmp_path / "a" / "sweep.csv").open()))
    points = {
        row["point"]: (float(row["accuracy"]), float(row["bit_ops"])) for row in rows
    }
    front = {
        name
        for name, (a, b) in points.items()
        if not any(
            (a2 >= a and b2 <= b) and (a2, b2) != (a, b) for a2, b2 in points.values()
        )
    }
    best = json.loads((tmp_path / "a" / "best.json").read_text())
    assert best["objective"] == ["accuracy", "bit_ops"]
    assert {trial["point"] for trial in best["trials"]} == front
    assert 1 < len(front) < 20


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_an_interrupted_sweep_draws_as_one_that_was_not(
    tmp_path, start, optuna, toy_runner, monkeypatch, jobs
):
    content = {**HELD_OUT, "ranges": {**RANGES, "search.eta": {"low": 0, "high": 80}}}
    start("whole", 16, content, jobs=jobs)
    monkeypatch.setattr(toy_runner, "ran", [])
    monkeypatch.setattr(toy_runner, "stops_after", 12)
    with pytest.raises(KeyboardInterrupt):
        start("cut", 16, content, jobs=jobs)
    monkeypatch.setattr(toy_runner, "stops_after", None)
    start("cut", 14, content, jobs=jobs)
    start("cut", 16, content, jobs=jobs)  # and two more
    assert drawn(tmp_path, "cut") == drawn(tmp_path, "whole")
    assert len(set(toy_runner.ran)) == len(toy_runner.ran) == 16  # each trained once
    for name in ("sweep.csv", "best.json"):
        one, other = (tmp_path / folder / name for folder in ("cut", "whole"))
        assert one.read_bytes() == other.read_bytes()


def test_other_ranges_or_options_are_another_sweep(tmp_path, start, optuna):
    start("a", 2)
    for options in ({"seed": 1}, {"sampler": "random"}, {"objective": ("bit_ops",)}):
        with pytest.raises(StageError, match=f"says: {next(iter(options))}"):
            start("a", 2, **options)
    other = {**HELD_OUT, "ranges": {"search.zeta": {"low": 1, "high": 2}}}
    with pytest.raises(StageError, match=r"says: ranges\. Use another --workdir"):
        start("a", 2, other)
    start("a", 2, other, overwrite=True)
    assert [set(values) for values in drawn(tmp_path, "a")] == [{"search.zeta"}] * 2


def test_a_record_that_was_changed_is_refused(tmp_path, start, optuna):
    start("a", 2)
    path = tmp_path / "a" / "trials.jsonl"
    for old, new in (('"0001_', '"../x_'), ('"search.zeta": ', '"search.zeta": 7')):
        text = path.read_text()
        path.write_text(text.replace(old, new))
        with pytest.raises(StageError, match=r"trials\.jsonl, line"):
            start("a", 2)
        path.write_text(text)
    start("a", 2)


def test_budgets_are_drawn_with_their_unit(tmp_path):
    budget = {"search.budget": {"low": 20, "high": 60.5, "unit": "kB"}}
    ranges = read_ranges(written(tmp_path, **HELD_OUT, ranges=budget))
    choice = ranges.choice({"search.budget": 41.25})
    assert choice == {"search.budget": "41.25kB"}
    assert ranges.point(choice)["search"]["budget"] == "41.25kB"
    assert ranges.name(3, choice) == "0003_budget=41.25kB"


def ranged(**changed):
    return {"ranges": {"search.zeta": {"low": 1, "high": 2, **changed}}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ranged(low=2), "low below high"),
        (ranged(low=3), "low below high"),
        (ranged(low=0, log=True), "low above 0"),
        (ranged(log=1), "log true or false"),
        (ranged(low="1"), "a number as low"),
        (ranged(high=True), "a number as high"),
        (ranged(high=10**400), "a number as high"),
        (ranged(step=0), "step above 0"),
        (ranged(log=True, step=1), "either log or a step"),
        (ranged(unit="kB"), "a unit for a budget only"),
        (ranged(logs=True), "Did you mean 'log'"),
        ({"ranges": {"search.zeta": [1, 2]}}, "an object with low and high"),
        ({"ranges": {"search.zeta": {"low": 1}}}, "an object with low and high"),
        ({"ranges": {}}, "an object from flags to objects"),
        ({"ranges": {"search.zetta": {"low": 1, "high": 2}}}, "Did you mean 'zeta'"),
        ({"ranges": {"search.optimizer": {"low": 1, "high": 2}}}, "takes numbers"),
        ({"ranges": {"search.cache": {"low": 0, "high": 1}}}, "takes numbers"),
        ({"ranges": {"search.epochs": {"low": 0.5, "high": 2}}}, "a whole number"),
        ({"ranges": {"search.budget": {"low": 1, "high": 2, "unit": "kg"}}}, "kg"),
        ({**ranged(), "grid": {"seed": [0]}}, "either a grid or points"),
        ({**ranged(), "evaluate": {"split": "test"}}, "test images never choose"),
        ({**ranged(), "evaluate": {"split_seed": 3}}, "held out of every training"),
        ({**ranged(), "finetune": {"validation_size": 9}}, "held out of every"),
    ],
)
def test_ranges_that_cannot_be_drawn_from_are_refused(content, message, tmp_path):
    with pytest.raises(ValueError) as error:
        read_ranges(written(tmp_path, **content))
    assert message in str(error.value)
    assert "Received" in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 0}, "trials=0"),
        ({"trials": 10_001}, "at most 10000"),
        ({"trials": 3, "shard": "0/2"}, "shard='0/2' with trials"),
        ({"trials": 3, "sampler": "tp"}, "Did you mean 'tpe'"),
        ({"trials": 3, "objective": ("acuracy",)}, "Did you mean 'accuracy'"),
        ({"trials": 3, "objective": ()}, "name each figure once"),
        ({"trials": 3, "objective": ("bit_ops", "bit_ops")}, "name each figure once"),
        ({"trials": 3, "seed": -1}, "seed=-1"),
        ({"seed": 1}, "seed=1 with no trials"),
        ({"sampler": "random"}, "--trials=N"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(ValueError) as error:
        SweepConfig("spec.json", "m.keras", **options)
    assert message in str(error.value)


def test_optuna_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install gmpq-tf\[optuna\]"):
        SweepConfig("spec.json", "m.keras", trials=2)


def test_trials_and_ranges_need_each_other(tmp_path, start, optuna, float_file, quiet):
    with pytest.raises(StageError, match=r"trials=2.*has none"):
        start("a", 2, {"grid": {"seed": [0]}})
    with pytest.raises(StageError, match=r"Give --trials=N"):
        start("a", None, {**HELD_OUT, "ranges": RANGES})
    assert not (tmp_path / "a" / "sweep.json").exists()


def test_what_has_no_held_out_accuracy_is_a_failure(
    tmp_path, start, optuna, toy_runner, monkeypatch
):
    def run(self, folder, commands):
        write_json(folder / "finetune" / "done.json", {"bit_ops": 1, "weight_bytes": 1})
        measured = {"accuracy": None, "images": 0, "split": "validation"}
        write_json(folder / "finetune" / "evaluation.json", measured)
        return Outcome("finished")

    monkeypatch.setattr(toy_runner, "run", run)
    with pytest.raises(StageError, match="no accuracy on held-out images"):
        start("a", 2)
    with pytest.raises(StageError, match="have the figure accuracy"):
        start("b", 2, objective=("map_07",))


@pytest.mark.slow
@pytest.mark.parametrize("first", ["local", "ray"])
def test_real_trials_on_both_runners(tmp_path, float_file, optuna, first, monkeypatch):
    pytest.importorskip("ray", reason="one half runs on it")
    monkeypatch.setitem(sweep_runners.RUNNERS, "local", sweep_runners.LocalRunner)
    ranges = {"search.zeta": {"low": 0.1, "high": 10, "log": True}}
    spec = written(tmp_path, **HELD_OUT, ranges=ranges)
    then = {"local": "ray", "ray": "local"}[first]
    run = WorkdirConfig(str(tmp_path / "run"), progress="none")
    for trials, runner in ((1, first), (2, then)):
        path = sweep(
            SweepConfig(str(spec), str(float_file), trials=trials, runner=runner), run
        )
    rows = list(csv.DictReader(Path(path).read_text().splitlines()))
    assert [row["split"] for row in rows] == ["validation"] * 2
    for row, values in zip(rows, drawn(tmp_path, "run"), strict=True):
        record = path.parent / "points" / row["point"] / "config" / "search.json"
        config = json.loads(record.read_text())["config"]
        assert config["risk"]["zeta"] == values["search.zeta"]

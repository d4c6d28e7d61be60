import csv
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import pytest

from gmpq_tf.cost import count_cost
from gmpq_tf.data import DataConfig
from gmpq_tf.files import write_json
from gmpq_tf.policy import BitwidthPolicy
from gmpq_tf.report.plots import front
from gmpq_tf.report.schema import ResultRow
from gmpq_tf.run.app import StopRequested, stopped_by_signals
from gmpq_tf.run.errors import StageError
from gmpq_tf.run.flags import field_types
from gmpq_tf.run.records import read_json
from gmpq_tf.run.run_config import WorkdirConfig
from gmpq_tf.train.report import ReportConfig, report
from gmpq_tf.train.search import configs_of
from gmpq_tf.train.sweep import SweepConfig, check_same_sweep, sweep
from gmpq_tf.train.sweep_children import Children, run_stages
from gmpq_tf.train.sweep_events import write_hparams
from gmpq_tf.train.sweep_points import commands_of
from gmpq_tf.train.sweep_results import write_results
from gmpq_tf.train.sweep_spec import STAGES, flag_names, read_points

DIGITS = DataConfig("digits", batch_size=256)
TINY = {
    "search": {"epochs": 1, "dataset": "digits", "batch_size": 256},
    "finetune": {
        "epochs": 1,
        "dataset": "digits",
        "batch_size": 256,
        "snap_tolerance": 1,  # of weights that are all but random
    },
    "evaluate": {"dataset": "digits", "split": "test"},
}


def written(tmp_path, **content):
    path = tmp_path / "spec.json"
    path.write_text(json.dumps(content))
    return path


def test_every_combination_is_a_point(tmp_path):
    grid = {"search.eta": [0, 100], "seed": [0, 1, 2]}
    points = read_points(written(tmp_path, **TINY, grid=grid))
    assert list(points) == [
        f"{i}_eta={eta}_seed={seed}"
        for i, (eta, seed) in enumerate((e, s) for e in (0, 100) for s in (0, 1, 2))
    ]
    last = points["5_eta=100_seed=2"]
    assert last["search"] == TINY["search"] | {"eta": 100, "seed": 2}
    assert last["finetune"] == TINY["finetune"] | {"seed": 2}
    assert last["evaluate"] == TINY["evaluate"]


def test_points_may_be_listed(tmp_path):
    listed = [{"search.zeta": 1.5}, {"finetune.epochs": 3}]
    first, second = read_points(written(tmp_path, points=listed)).values()
    assert first == {"search": {"zeta": 1.5}, "finetune": {}, "evaluate": {}}
    assert second == {"search": {}, "finetune": {"epochs": 3}, "evaluate": {}}


def test_flags_are_those_of_the_commands_but_what_the_sweep_decides():
    assert {"eta", "bit_ops_budget", "seed", "epochs"} <= set(flag_names("search"))
    assert {"distillation", "seed"} <= set(flag_names("finetune"))
    for stage in ("search", "finetune", "evaluate"):
        assert not {"workdir", "model", "name", "policy"} & set(flag_names(stage))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"grid": {"search.etta": [0]}}, "search.etta. Did you mean 'eta'"),
        ({"grid": {"sed": [0]}}, "Did you mean 'seed'"),
        ({"grid": {"serch.eta": [0]}}, "serch"),
        ({"grid": {"search.workdir": ["x"]}}, "search.workdir"),
        ({"grid": {"seed": 0}}, "list of values"),
        ({"grid": {}}, "list of values"),
        ({"search": {}}, "either a grid or points"),
        ({"grid": {"seed": [0]}, "points": []}, "either a grid or points"),
        ({"gird": {"seed": [0]}}, "Did you mean 'grid'"),
        ({"points": []}, "list of objects"),
        ({"points": True}, "list of objects"),
        ({"points": [5]}, "an object from names to"),
        ({"points": [{"seed": {"a": 1}}]}, "an object from names to"),
        ({"points": [{"search.augment": "a\0b"}]}, "an object from names to"),
        ({"search": 5, "grid": {"seed": [0]}}, "an object from names to"),
        ({"grid": dict.fromkeys(["seed", "epochs"], [0] * 3000)}, "at most 10000"),
    ],
)
def test_a_wrong_specification_is_refused(content, message, tmp_path):
    with pytest.raises(StageError) as error:
        read_points(written(tmp_path, **content))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"search.strategy": "hak"}, "Did you mean 'haq'"),
        ({"search.strategy": "haq", "search.zeta": 2}, "Received: zeta=2"),
        ({"search.strategy": "hawq", "search.trials": 2}, "'haq', 'evolution'"),
        ({"search.trials": 2}, "strategy 'gmpq'"),
        ({"search.purpose": "post_training", "search.zeta": 2}, "'loss_delta'"),
        ({"search.strategy": 3}, "strategy"),
        ({"finetune.model": None}, "finetune.model=None"),
        ({"search.model": "a.keras"}, "search.model"),
        ({"model": "a.keras"}, "model"),
    ],
)
def test_what_a_strategy_or_a_deployment_cannot_have(flags, message, tmp_path):
    with pytest.raises(StageError, match=re.escape(message)):
        read_points(written(tmp_path, points=[flags]))


def test_policies_may_be_deployed_elsewhere(tmp_path, float_file, quiet):
    content = {**TINY, "search": {"dataset": "digits", "budget": "W3A3"}}
    content["finetune"] = {**TINY["finetune"], "model": "b/other.keras"}
    spec = written(tmp_path, **content, points=[{"search.strategy": "fisher"}])
    (point,) = read_points(spec).values()
    assert point["finetune"]["model"] == str(Path.cwd() / "b" / "other.keras")
    assert "model" not in point["search"]
    with pytest.raises(ValueError, match=r"other\.keras"):  # before anything is run
        sweep(SweepConfig(str(spec), str(float_file)), quiet)
    assert not Path(quiet.workdir, "points").exists()


def test_the_rows_searched_on_cifar10_can_be_run(repo_root):
    """Every flag of results/strategies has a value that its stage accepts."""
    points = read_points(repo_root / "results/strategies/cifar10_to_flowers17.json")
    found = set()
    for point in points.values():
        name = point["search"]["strategy"]
        found.add((name, point["search"]["seed"]))
        for stage, flags in point.items():
            classes = configs_of(name) if stage == "search" else STAGES[stage]
            for cls in classes:
                types = field_types(cls)
                cls(**{f.name: flags[f.name] for f in dataclasses.fields(cls)
                       if f.name in flags and f.name in types})  # fmt: skip
    assert found == {(n, s) for n in ("haq", "edmips", "gmpq") for s in range(3)}


@pytest.mark.slow
def test_policies_are_deployed_elsewhere(tmp_path, float_file, quiet):
    """By whole commands: searched on one network, fine-tuned as another."""
    other = keras.models.load_model(float_file)
    other.get_layer("last").bias.assign_add([1.0] * 10)
    other.save(tmp_path / "other.keras")
    content = {**TINY, "search": {"dataset": "digits", "budget": "W3A3"}}
    content["finetune"] = {**TINY["finetune"], "model": str(tmp_path / "other.keras")}
    haq = {"search.strategy": "haq", "search.trials": 2, "search.warmup": 1}
    spec = written(tmp_path, **content, points=[haq])
    path = sweep(SweepConfig(str(spec), str(float_file)), quiet)
    (row,) = csv.DictReader(path.open())
    folder = path.parent / "points" / row["point"]
    policy = BitwidthPolicy.load(folder / "finetune" / "policy.json")
    assert policy.made_by["strategy"] == "haq"
    used = [
        read_json(folder / "config" / f"{stage}.json")["config"]["model"]["path"]
        for stage in ("search", "finetune")
    ]
    assert used == [str(float_file.resolve()), str(tmp_path / "other.keras")]


def test_a_specification_that_is_no_json_is_refused(tmp_path):
    path = tmp_path / "spec.json"
    with pytest.raises(StageError, match=r"must be a JSON file.*spec\.json.*--help"):
        read_points(path)
    path.write_text("{grid")
    with pytest.raises(StageError, match=r"must be a JSON file.*spec\.json.*--help"):
        read_points(path)


@pytest.mark.parametrize("shard", ["4/4", "1", "a/b", "0/0"])
def test_a_wrong_shard_is_refused(shard):
    with pytest.raises(ValueError, match="INDEX/COUNT"):
        SweepConfig("spec.json", "m.keras", shard=shard)


def test_a_sweep_is_continued_with_its_own_points_only(tmp_path, float_file):
    points = read_points(written(tmp_path, grid={"seed": [0, 1]}))
    check_same_sweep(tmp_path, points, float_file)
    check_same_sweep(tmp_path, points, float_file)
    others = read_points(written(tmp_path, grid={"seed": [0, 2]}))
    with pytest.raises(StageError, match="another --workdir"):
        check_same_sweep(tmp_path, others, float_file)


def test_the_front_holds_what_no_other_beats():
    points = [(5, 0.7), (1, 0.5), (2, 0.4), (2, 0.6), (9, 0.7), (3, 0.6)]
    rows = [ResultRow("a", share, cost, 1) for cost, share in points]
    beaten = {
        (c, a)
        for c, a in points
        for c2, a2 in points
        if (c2 <= c and a2 > a) or (c2 < c and a2 >= a)
    }
    found = [(row.bit_ops, row.accuracy) for row in front(rows)]
    assert found == sorted(set(points) - beaten)
    rows = [ResultRow("a", -share, cost, 1, share=False) for cost, share in points]
    found = [(row.bit_ops, -row.accuracy) for row in front(rows)]
    assert found == sorted(set(points) - beaten)


@pytest.mark.parametrize(
    ("figure", "evaluation"),
    [
        ("accuracy", {"accuracy": 0.5}),
        ("map_07", {"accuracy": None, "map_07": 0.5, "map_area": 0.4}),
        ("loss", {"accuracy": None, "loss": 3.5, "metric": "loss"}),
    ],
)
def test_a_sweep_shows_the_figure_of_its_task(tmp_path, figure, evaluation):
    for name in "ab":
        folder = tmp_path / "points" / name / "finetune"
        cost = {"bit_ops": 10.0, "weight_bytes": 9.0, "last_epoch": None}
        write_json(folder / "done.json", cost)
        measured = {**evaluation, "images": 9, "split": "validation"}
        write_json(folder / "evaluation.json", measured)
    path = write_results(tmp_path, ["a", "b", "not finished"])
    rows = list(csv.DictReader(path.open()))
    assert [float(row[figure]) for row in rows] == [evaluation[figure]] * 2
    assert list(rows[0]) == [
        *("point", figure, "bit_ops", "weight_bytes", "images", "split")
    ]
    assert [p.name for p in tmp_path.glob("*.png")] == [f"{figure}_bops.png"]
    points = {name: {"search": {"seed": name}} for name in "ab"}
    folder = write_hparams(tmp_path, points)
    events = [p.read_bytes() for p in folder.glob("a/*")]
    assert any(figure.encode() in each for each in events)


OBEDIENT = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *args: sys.exit("stopped"))
os.close(os.open(sys.argv[1], os.O_CREAT))  # a file's finalizer would swallow the exit
time.sleep(60)
"""


def test_a_stop_reaches_every_child_and_no_more_start(tmp_path):
    children, ready = Children(), [tmp_path / name for name in "ab"]
    commands = [[sys.executable, "-c", OBEDIENT, str(path)] for path in ready]
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(children.run, command) for command in commands]
        while not all(path.exists() for path in ready):
            time.sleep(0.01)
        children.stop()
        assert [future.result().stderr for future in running] == ["stopped\n"] * 2
    assert children.run([sys.executable, "-c", "print(1)"]) is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_sweep_that_is_asked_to_stop_passes_it_on(
    tmp_path, float_file, quiet, monkeypatch, number
):
    config = SweepConfig(
        str(written(tmp_path, **TINY, grid={"seed": [0, 1]})), str(float_file)
    )
    ready, run, results = tmp_path / "ready", Children.run, []

    def run_obedient(self, words):
        results.append(run(self, [sys.executable, "-c", OBEDIENT, str(ready)]))
        return results[-1]

    def ask_to_stop():
        while not ready.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(Children, "run", run_obedient)
    kept = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=ask_to_stop).start()
    with pytest.raises(StopRequested), stopped_by_signals():
        sweep(config, quiet)
    signal.signal(signal.SIGINT, kept)
    assert results.pop(0).stderr == "stopped\n"
    assert all(result is None for result in results)  # nothing more was started


@pytest.mark.slow
def test_two_starters_share_the_points_and_a_third_finds_them_done(
    tmp_path, float_file, quiet
):
    grid = {"search.eta": [0, 100]}
    config = SweepConfig(
        str(written(tmp_path, **TINY, grid=grid)), str(float_file), jobs=2
    )
    errors = []

    def start():
        try:
            sweep(config, quiet)
        except Exception as error:  # shown below
            errors.append(error)

    starters = [threading.Thread(target=start) for _ in range(2)]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join()
    assert not errors
    path = sweep(config, quiet)
    rows = list(csv.DictReader(path.open()))
    assert [row["point"] for row in rows] == ["0_eta=0", "1_eta=100"]
    assert all(0 <= float(row["accuracy"]) <= 1 for row in rows)
    assert (path.parent / "accuracy_bops.png").stat().st_size > 1000
    # One policy, one figure: of the float model, as the fine-tuning and reports count.
    folder = path.parent / "points" / rows[0]["point"]
    model = keras.models.load_model(float_file)
    cost = count_cost(model, BitwidthPolicy.load(folder / "finetune" / "policy.json"))
    report(ReportConfig(attribution_images=0), DIGITS, WorkdirConfig(str(folder)))
    (reported,) = json.loads((folder / "summary.json").read_text())["rows"]
    for name in ("bit_ops", "weight_bytes"):
        assert float(rows[0][name]) == reported[name] == getattr(cost, name)
    log = (path.parent / "points/0_eta=0/search.log").read_text()
    assert "is finished already" in log


@pytest.mark.slow
def test_help_names_every_flag():
    command = [sys.executable, "-m", "train.sweep", "--help"]
    text = subprocess.run(command, capture_output=True, text=True).stdout
    for flag in ("--spec", "--model", "--jobs", "--shard", "--workdir"):
        assert flag in text


@pytest.mark.parametrize("text", ["5", "null", "[1]", "[" * 100_000])
def test_a_specification_that_is_no_object_is_refused(text, tmp_path):
    path = tmp_path / "spec.json"
    path.write_text(text)
    with pytest.raises(StageError, match="A specification must"):
        read_points(path)


def test_none_and_null_of_a_specification_are_told_apart(tmp_path, monkeypatch):
    listed = [{"search.augment": value} for value in ("none", None, "shift")]
    listed.append({"search.validation_size": None})
    points = read_points(written(tmp_path, points=listed))
    assert list(points)[:2] == ["0_augment=none", "1_augment=default"]
    found = []

    class Recorded:
        stopped = False

        def run(self, command):
            found.extend(w for w in command if w[2:].startswith(("augment", "valid")))
            return subprocess.CompletedProcess(command, 0, "", "")

    for name, point in points.items():
        folder = tmp_path / name
        run_stages(folder, commands_of(folder, point, {}, {}), Recorded())
    assert found == [
        "--augment=none",
        "--augment=default",
        "--augment=shift",
        "--validation_size=none",
    ]

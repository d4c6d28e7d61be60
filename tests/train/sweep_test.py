import csv
import json
import subprocess
import sys
import threading

import pytest
from gmpq_tf.export.stage import StageError
from gmpq_tf.train.sweep import (
    SweepConfig,
    check_same_sweep,
    flag_names,
    front,
    read_points,
    sweep,
)

TINY = {
    "search": {"epochs": 1, "dataset": "digits", "batch_size": 256},
    "finetune": {"epochs": 1, "dataset": "digits", "batch_size": 256},
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
    ],
)
def test_a_wrong_specification_is_refused(content, message, tmp_path):
    with pytest.raises(StageError) as error:
        read_points(written(tmp_path, **content))
    assert message in str(error.value)


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
    rows = [{"bit_ops": cost, "accuracy": share} for cost, share in points]
    beaten = {
        (c, a)
        for c, a in points
        for c2, a2 in points
        if (c2 <= c and a2 > a) or (c2 < c and a2 >= a)
    }
    found = [(row["bit_ops"], row["accuracy"]) for row in front(rows)]
    assert found == sorted(set(points) - beaten)


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
    log = (path.parent / "points/0_eta=0/search.log").read_text()
    assert "is finished already" in log


@pytest.mark.slow
def test_help_names_every_flag():
    command = [sys.executable, "-m", "train.sweep", "--help"]
    text = subprocess.run(command, capture_output=True, text=True).stdout
    for flag in ("--spec", "--model", "--jobs", "--shard", "--workdir"):
        assert flag in text

import hashlib
import json
import subprocess
import sys

import pytest
from gmpq_tf.export.stage import (
    RunConfig,
    StageError,
    WorkdirConfig,
    fingerprint,
    open_stage,
    read_json,
    recorded_data,
    versions,
)

SCALING = {"kind": "0..1", "mean": None, "std": None}


def config(**changes):
    data = {"batch_size": 8, "seed": 5, "data_dir": "/a", "mean": [0.5], "std": None}
    return {"epochs": 3, "rates": (1, 2), "data": data | changes}


@pytest.fixture
def run(tmp_path):
    return WorkdirConfig(workdir=str(tmp_path / "run"))


def test_the_record_says_what_is_done(run):
    stage = open_stage(run, "search", config(), SCALING)
    record = json.loads(stage.record.read_text())
    assert record["config"]["rates"] == [1, 2]
    assert record["scaling"] == SCALING and record["seed"] == 5
    assert record["versions"]["python"] == versions()["python"]
    assert record["command"]
    assert recorded_data(run.workdir, "search")["mean"] == (0.5,)


def test_a_stage_is_finished_only_after_its_marker(run):
    stage = open_stage(run, "search", config(), SCALING)
    assert not stage.finished
    stage.finish({"accuracy": 0.5})
    again = open_stage(run, "search", config(), SCALING)
    assert again.finished and again.results() == {"accuracy": 0.5}


def test_a_stage_without_work_takes_another_configuration(run):
    open_stage(run, "search", config(), SCALING)
    stage = open_stage(run, "search", config(batch_size=9), SCALING)
    assert recorded_data(run.workdir, stage.name)["batch_size"] == 9


def test_another_configuration_is_refused_with_the_keys_that_differ(run):
    open_stage(run, "search", config(), SCALING).finish({})
    with pytest.raises(StageError) as error:
        open_stage(run, "search", {**config(batch_size=9), "epochs": 4}, SCALING)
    text = str(error.value)
    assert "epochs: 3 -> 4" in text and "data.batch_size: 8 -> 9" in text
    assert "seed" not in text and "--overwrite" in text and "--workdir" in text


def test_a_key_that_came_or_went_is_a_difference(run):
    open_stage(run, "search", config(), SCALING).finish({})
    with pytest.raises(StageError, match=r"data.new: \(absent\) -> 1"):
        open_stage(run, "search", config(new=1), SCALING)


def test_where_the_data_lie_may_change(run):
    open_stage(run, "search", config(), SCALING).finish({})
    open_stage(run, "search", config(data_dir="/b"), SCALING)


def test_overwrite_starts_again_and_leaves_other_stages(run, tmp_path):
    for name in ("search", "finetune"):
        stage = open_stage(run, name, config(), SCALING)
        stage.finish({})
    again = WorkdirConfig(workdir=run.workdir, overwrite=True)
    stage = open_stage(again, "search", config(batch_size=9), SCALING)
    assert not stage.finished
    assert open_stage(run, "finetune", config(), SCALING).finished


def test_overwrite_leaves_a_folder_that_is_no_stage(run, tmp_path):
    notes = tmp_path / "run" / "search" / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine")
    again = WorkdirConfig(workdir=run.workdir, overwrite=True)
    open_stage(again, "search", config(), SCALING)
    assert notes.read_text() == "mine"


@pytest.mark.parametrize("name", ["config", "report", "a/b", "..", "", ".hidden"])
def test_a_name_that_is_no_folder_name_is_refused(run, name):
    with pytest.raises(StageError, match="name="):
        open_stage(run, name, config(), SCALING)


@pytest.mark.parametrize("text", ["{", "[]", '{"config": 3}'])
def test_a_damaged_record_is_refused(run, text):
    stage = open_stage(run, "search", config(), SCALING)
    stage.finish({})
    stage.record.write_text(text)
    with pytest.raises(StageError, match=r"search\.json"):
        open_stage(run, "search", config(), SCALING)


def test_a_missing_record_gives_no_data_flags(tmp_path):
    assert recorded_data(tmp_path) == {}


def test_fingerprint_is_the_start_of_sha256(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert fingerprint(path) == hashlib.sha256(b"abc").hexdigest()[:16]


def test_unreadable_json_counts_as_none(tmp_path):
    path = tmp_path / "x.json"
    assert read_json(path) == {}
    path.write_text("{")
    assert read_json(path) == {}
    path.write_text('{"a": 1}')
    assert read_json(path) == {"a": 1}


def test_wrong_run_options_are_refused():
    with pytest.raises(ValueError, match="threads=-1"):
        WorkdirConfig(threads=-1)
    with pytest.raises(ValueError, match="steps_per_execution=0"):
        RunConfig(steps_per_execution=0)
    assert RunConfig(progress="bar").verbose == 1
    assert RunConfig(progress="none").verbose == 0


HOLD = """
import fcntl, sys
file = open(sys.argv[1], "a")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_two_processes_do_not_run_one_stage(tmp_path):
    run = WorkdirConfig(workdir=str(tmp_path))
    open_stage(run, "search", {"epochs": 1}, {})
    open_stage(run, "search", {"epochs": 1}, {})  # one process may
    lock = tmp_path / "config" / "other.lock"
    command = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(StageError, match="Another process is at work there"):
            open_stage(run, "other", {"epochs": 1}, {})
        assert not (tmp_path / "config" / "other.json").exists()
        other.kill()
    open_stage(run, "other", {"epochs": 1}, {})  # a lock dies with its process

import errno
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gmpq_tf.files import write_arrays, write_json
from gmpq_tf.run import workdir
from gmpq_tf.run.errors import StageError
from gmpq_tf.run.records import (
    fingerprint,
    read_json,
    read_record,
    recorded_data,
    versions,
)
from gmpq_tf.run.run_config import RunConfig, WorkdirConfig
from gmpq_tf.run.stage import interrupted_at, open_stage
from gmpq_tf.run.workdir import LOCKED, check_writable, claim

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


HOLD = """
import fcntl, sys
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
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


TRY = """
import fcntl, sys
try:
    fcntl.flock(open(sys.argv[1], "a"), fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    print("held")
"""


FORK = """
import os, sys, time
from pathlib import Path
from gmpq_tf.run.workdir import claim
claim(Path(sys.argv[1]), Path(sys.argv[1]).parent)
ready, started = os.pipe()
child = os.fork()
if child:
    os.read(ready, 1)  # the child lets the lock go where its own life begins
    print(child, flush=True)
else:
    os.write(started, b"1")
time.sleep(60)
"""


def test_another_process_finds_the_lock_of_this_one(tmp_path):
    open_stage(WorkdirConfig(workdir=str(tmp_path)), "search", {}, {})
    command = [sys.executable, "-c", TRY, str(tmp_path / "config" / "search.lock")]
    assert subprocess.run(command, stdout=subprocess.PIPE).stdout == b"held\n"


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_disk_without_locks_is_named_as_such(run, monkeypatch, code):
    """Network folders may have none: a file that stands for one would outlive us."""

    def flock(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    words = rf"can lock files.*{os.strerror(code)}"
    with pytest.raises(StageError, match=words):
        open_stage(run, "search", config(), SCALING)


def test_threads_of_a_process_and_other_spellings_share_a_lock(tmp_path):
    claim(tmp_path / "config" / "search.lock", tmp_path)
    failed = []

    def again(path):
        try:
            claim(path, tmp_path)
        except StageError as error:
            failed.append(error)

    for path in ("config/search.lock", "config/../config/search.lock"):
        thread = threading.Thread(target=again, args=[tmp_path / path])
        thread.start()
        thread.join()
    assert not failed


def test_a_child_that_outlives_its_parent_does_not_keep_the_lock(tmp_path):
    """Of a process that forked workers and was killed."""
    parent = tmp_path / "parent.py"
    parent.write_text(FORK)
    command = [sys.executable, str(parent), str(tmp_path / "search.lock")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment
    ) as other:
        child = int(other.stdout.readline())
        try:
            with pytest.raises(StageError, match=LOCKED):
                claim(tmp_path / "search.lock", tmp_path)
            other.kill()
            other.wait()
            os.kill(child, 0)  # still there
            claim(tmp_path / "search.lock", tmp_path)
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_workdir_that_is_a_file_is_refused(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    for folder in (path, path / "run"):
        with pytest.raises(StageError, match=r"must be a folder.*is a file.*--workdir"):
            open_stage(WorkdirConfig(workdir=str(folder)), "search", config(), SCALING)
    assert path.read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_workdir_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StageError, match="cannot be written to"):
            check_writable(tmp_path / "run")
    finally:
        tmp_path.chmod(0o700)


def test_a_workdir_said_to_be_read_only_is_refused(run, tmp_path, monkeypatch):
    open_stage(run, "search", config(), SCALING)
    monkeypatch.setattr(workdir.os, "access", lambda _, mode: mode == os.F_OK)
    with pytest.raises(StageError, match=r"can be written to.*permissions.*--workdir"):
        open_stage(run, "search", config(), SCALING)


def test_a_lock_file_of_somebody_else_is_no_other_process(run, monkeypatch):
    lock = Path(run.workdir) / "config" / "search.lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    opened = os.open

    def refuse(path, *args, **kwargs):
        if Path(path) == lock:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StageError, match="Permission denied") as error:
        open_stage(run, "search", config(), SCALING)
    assert workdir.LOCKED not in str(error.value)


def test_the_backup_goes_only_once_the_marker_is_there(run, monkeypatch):
    stage = open_stage(run, "search", config(), SCALING)
    write_arrays(stage.backup, {"epoch": 3})

    def full(*args):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="full"):
        stage.finish({})
    assert stage.backup.exists() and not stage.finished
    monkeypatch.undo()
    stage.finish({})
    assert stage.finished and not stage.backup.parent.exists()


def finished_stage(run):
    stage = open_stage(run, "search", config(), SCALING)
    write_json(stage.folder / "policy.json", {"layers": {}})
    (stage.folder / "metrics.jsonl").write_text('{"epoch": 0}\n{"epoch": 1}\n')
    (stage.folder / "model.keras").write_bytes(bytes(range(99)))
    stage.finish({"accuracy": 0.5})
    assert open_stage(run, "search", config(), SCALING).finished
    return stage


@pytest.mark.parametrize("size", [0, 0.3, 0.7, None])
@pytest.mark.parametrize(
    "name", ["done.json", "policy.json", "model.keras", "metrics.jsonl"]
)
def test_a_finished_stage_with_a_damaged_file_is_refused(run, name, size):
    path = finished_stage(run).folder / name
    content = path.read_bytes()
    if size is None and name != "done.json":
        path.unlink()
    else:
        path.write_bytes(content[: int((size or 0.9) * len(content))])
    with pytest.raises(StageError, match=rf"{name}, which is .*--overwrite"):
        open_stage(run, "search", config(), SCALING)
    again = WorkdirConfig(workdir=run.workdir, overwrite=True)
    assert not open_stage(again, "search", config(), SCALING).finished


def test_what_other_commands_write_beside_the_results_may_change(run):
    stage = finished_stage(run)
    (stage.folder / "model.tflite").write_bytes(b"new")
    open_stage(run, "search", config(), SCALING)


def test_a_marker_from_before_there_were_checksums_is_taken(run):
    stage = open_stage(run, "search", config(), SCALING)
    stage.marker.write_text("{}\n")
    assert open_stage(run, "search", config(), SCALING).finished


def test_what_a_killed_process_left_goes_with_the_next(run):
    stage = open_stage(run, "search", config(), SCALING)
    left = [
        stage.folder / f".policy.{'0' * 32}.tmp.json",
        stage.backup.with_name(f".next.{'0' * 32}.tmp.npz"),
        stage.record.with_name(f".search.{'0' * 32}.tmp.json"),
    ]
    other = stage.record.with_name(f".finetune.{'0' * 32}.tmp.json")
    for path in (*left, other):
        write_json(path, {})
    open_stage(run, "search", config(), SCALING)
    assert not any(path.exists() for path in left) and other.exists()


def test_a_stopped_command_says_where_it_goes_on(run):
    stage = open_stage(run, "search", config(), SCALING)
    assert "goes on with epoch 1" in interrupted_at()
    write_arrays(stage.backup, {"epoch": 3})
    assert f"{stage.folder} keeps" in interrupted_at()
    assert "without --overwrite, goes on with epoch 4." in interrupted_at()
    stage.finish({})
    assert "epoch" not in interrupted_at()


def test_a_command_stopped_as_its_record_appears_says_so_too(run, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("gmpq_tf.run.stage.write_json", stop)
    with pytest.raises(KeyboardInterrupt):
        open_stage(run, "search", config(), SCALING)
    assert f"{Path(run.workdir, 'search')} keeps" in interrupted_at()


@pytest.mark.parametrize(
    "data", [3, "ab", [["mean", 1]], {"mean": 3}, {"std": [[1]]}, {"seed": {"a": 1}}]
)
def test_recorded_data_that_are_no_flags_are_refused(run, data):
    open_stage(run, "search", {"data": {}}, SCALING)
    record = Path(run.workdir, "config", "search.json")
    record.write_text(json.dumps({"config": {"data": data}}))
    with pytest.raises(StageError, match=r"search\.json"):
        recorded_data(run.workdir, "search")


def test_json_nested_too_deep_counts_as_damaged(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("[" * 100_000)
    assert read_json(path) == {}
    with pytest.raises(StageError, match=r"x\.json"):
        read_record(path)


def test_a_folder_name_with_a_space_is_no_way_out(tmp_path):
    assert recorded_data(tmp_path, "uniform w2") == {}


def test_versions_name_this_package_and_what_it_needs(repo_root):
    found = versions()
    command = [sys.executable, "setup.py", "--version"]
    stated = subprocess.check_output(command, cwd=repo_root, text=True).split()[-1]
    assert found["gmpq-tf"] == stated
    assert {"python", "keras", "tensorflow", "numpy"} <= found.keys()

"""Sweeps on this machine and on a Ray cluster: one record, the same results."""

import dataclasses
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from gmpq_tf.files import read_jsonl
from gmpq_tf.run.errors import StageError
from gmpq_tf.train.sweep import SweepConfig, sweep
from gmpq_tf.train.sweep_children import RunnerOptions
from gmpq_tf.train.sweep_ray import room_for, run_in_worker
from gmpq_tf.train.sweep_runners import LocalRunner, started
from tests.train.sweep_test import TINY, written

ROOT = Path(__file__).resolve().parents[2]
# Modules stand for stages: one that ends at once, one that is not there, and a search.
ENDS, FAILS = ("sweep_children", []), ("no_such_stage", [])
NEEDS_RAY = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="the extra ray is not installed"
)


def options(tmp_path, **changed):
    record = tmp_path / "sweep.json"
    record.write_text("{}")
    return dataclasses.replace(RunnerOptions(2, None, 1.0, 0.0, record), **changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"runner": "rya"}, "Did you mean 'ray'"),
        ({"ray_address": "auto"}, "ray_address='auto' with runner='local'"),
        ({"ray_gpus": 1.0}, "ray_gpus=1.0 with runner='local'"),
        ({"runner": "ray", "ray_cpus": -1.0}, "ray_cpus=-1.0"),
        ({"runner": "ray", "ray_cpus": 0.0}, "must take something"),
        ({"jobs": 0}, "jobs=0"),
    ],
)
def test_options_that_do_not_fit_are_refused(changed, message, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(ValueError) as error:
        SweepConfig("spec.json", "m.keras", **changed)
    assert message in str(error.value)


def test_ray_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install gmpq-tf\[ray\]"):
        SweepConfig("spec.json", "m.keras", runner="ray")
    assert SweepConfig("spec.json", "m.keras").runner == "local"


def test_neither_starter_nor_worker_imports_ray_or_tensorflow_unasked():
    program = (
        "import sys, gmpq_tf.train.sweep_ray, gmpq_tf.train.sweep_runners\n"
        "assert not {'ray', 'optuna', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_a_failure_names_the_stage_and_its_log(tmp_path):
    local = LocalRunner(options(tmp_path))
    assert local.run(tmp_path / "a", [ENDS]).state == "finished"
    failed = local.run(tmp_path / "b", [ENDS, FAILS, ENDS])
    assert failed.state == "failed"
    assert failed.message.startswith("b, no_such_stage: ")
    log = tmp_path / "b" / "no_such_stage.log"
    assert str(log) in failed.message
    assert "no_such_stage" in log.read_text()


def test_a_machine_that_does_not_see_the_workdir_says_so(tmp_path):
    ran = run_in_worker(str(tmp_path / "a"), str(tmp_path / "s.json"), [ENDS], {})
    assert ran[0] == "failed"
    assert "all machines see" in ran[1] and str(tmp_path / "s.json") in ran[1]
    (tmp_path / "s.json").write_text("{}")
    ran = run_in_worker(str(tmp_path / "a"), str(tmp_path / "s.json"), [ENDS], {})
    assert ran == ("finished", "")


SLEEPS = """
import os, sys, time
if "gmpq_tf.train.sleeps" in sys.orig_argv:
    os.close(os.open(os.environ["READY"], os.O_CREAT))
    time.sleep(60)
"""


@pytest.mark.slow
@NEEDS_RAY
def test_a_ray_cluster_says_what_the_local_runner_says(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(SLEEPS)
    ready = tmp_path / "ready"
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("READY", str(ready))
    work = [(tmp_path / "a", [ENDS]), (tmp_path / "b", [ENDS, FAILS])]
    local = LocalRunner(options(tmp_path))
    expected = [local.run(*item) for item in work]
    handler = signal.getsignal(signal.SIGTERM)
    # As in the background of a script; workers of Ray inherit it.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with started("ray", options(tmp_path)) as (runner, pool):
            assert signal.getsignal(signal.SIGTERM) == handler
            assert list(pool.map(lambda item: runner.run(*item), work)) == expected
            asleep = pool.submit(runner.run, tmp_path / "c", [("sleeps", []), ENDS])
            while not ready.exists():
                time.sleep(0.01)
            runner.stop()
            assert asleep.result(timeout=20).state == "stopped"
            assert runner.run(*work[0]).state == "stopped"
    finally:
        signal.signal(signal.SIGINT, before)
    assert not (tmp_path / "c" / "sweep_children.log").exists()


def node(cpus, gpus=0.0, alive=True):
    resources = {"CPU": cpus, "memory": 1e9} | ({"GPU": gpus} if gpus else {})
    return {"Alive": alive, "Resources": resources}


@pytest.mark.parametrize(
    ("cpus", "gpus", "room"), [(1, 0, 12), (3, 0, 3), (0, 0.5, 4), (2, 1, 2)]
)
def test_points_are_as_many_as_whole_ones_fit_on_machines(tmp_path, cpus, gpus, room):
    nodes = [node(8.0, 2.0), node(4.0), node(64.0, 8.0, alive=False)]
    assert room_for(nodes, options(tmp_path, cpus=cpus, gpus=gpus)) == room


def test_a_point_that_fits_nowhere_is_refused(tmp_path):
    with pytest.raises(StageError, match="ray_gpus=3, where the largest have 8 CPUs"):
        room_for([node(8.0, 2.0), node(4.0, 2.0)], options(tmp_path, gpus=3.0))


@NEEDS_RAY
@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "here", ":x"])
def test_a_cluster_that_is_not_there_is_named(tmp_path, address):
    with pytest.raises(StageError) as error:
        started("ray", options(tmp_path, address=address)).__enter__()
    assert f"ray_address={address!r}" in str(error.value)
    assert "ray start --head" in str(error.value)


def command(tmp_path, float_file, workdir, runner):
    flags = [f"--spec={tmp_path / 'spec.json'}", f"--model={float_file}"]
    flags += [f"--workdir={workdir}", f"--runner={runner}", "--progress=none"]
    return [sys.executable, "-m", "train.sweep", *flags]


def results(workdir):
    """All that a sweep computed: metrics without seconds, policies, weights, table."""
    found = {"table": (workdir / "sweep.csv").read_text()}
    for path in sorted(workdir.glob("points/*/*/metrics.jsonl")):
        lines = read_jsonl(path)
        key = str(path.relative_to(workdir))
        found[key] = [{k: v for k, v in x.items() if k != "seconds"} for x in lines]
    for path in sorted(workdir.glob("points/*/*/policy.json")):
        found[str(path.relative_to(workdir))] = json.loads(path.read_text())["layers"]
    return found


def weights(workdir):
    from gmpq_tf.models import load_model

    (path,) = workdir.glob("points/*/finetune/model.keras")
    return [np.asarray(value) for value in load_model(path).get_weights()]


def stopped_after_search(words, workdir):
    """Starts a sweep, asks it to stop once its search is done."""
    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while not list(workdir.glob("points/*/search/done.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=100)[1]
    assert process.returncode == 128 + signal.SIGTERM, said
    (folder,) = (workdir / "points").iterdir()
    assert not (folder / "finetune" / "done.json").exists()


@NEEDS_RAY
@pytest.mark.slow
def test_each_runner_goes_on_with_what_the_other_began(tmp_path, float_file):
    written(tmp_path, **TINY, grid={"search.eta": [0]})
    subprocess.run(
        command(tmp_path, float_file, tmp_path / "whole", "local"), cwd=ROOT, check=True
    )
    for first, then in (("ray", "local"), ("local", "ray")):
        workdir = tmp_path / first
        stopped_after_search(command(tmp_path, float_file, workdir, first), workdir)
        (metrics,) = workdir.glob("points/*/search/metrics.jsonl")
        before = metrics.stat().st_mtime_ns
        rest = command(tmp_path, float_file, workdir, then)
        subprocess.run(rest, cwd=ROOT, check=True)
        assert metrics.stat().st_mtime_ns == before  # trained once
        assert results(workdir) == results(tmp_path / "whole")
        for one, other in zip(
            weights(workdir), weights(tmp_path / "whole"), strict=True
        ):
            np.testing.assert_array_equal(one, other)


@NEEDS_RAY
@pytest.mark.slow
def test_a_worker_that_dies_is_a_failure_with_its_folder(
    tmp_path, float_file, quiet, monkeypatch
):
    import psutil

    spec = written(tmp_path, **TINY, grid={"search.eta": [0]})

    def kill_worker():
        while True:
            for process in psutil.Process(os.getpid()).children(recursive=True):
                with_stage = "gmpq_tf.train.search" in " ".join(process.cmdline())
                if with_stage:
                    worker = process.parent()
                    process.kill()
                    worker.kill()
                    return
            time.sleep(0.05)

    killer = threading.Thread(target=kill_worker, daemon=True)
    killer.start()
    with pytest.raises(StageError) as error:
        sweep(SweepConfig(str(spec), str(float_file), runner="ray"), quiet)
    assert "its Ray task ended by WorkerCrashedError" in str(error.value)
    assert str(Path(quiet.workdir) / "points" / "0_eta=0") in str(error.value)

"""Training on replicas and workers is training on one device.

Every case runs the real commands, in processes of their own: devices are fixed when
TensorFlow starts.
"""

import json
import os
import socket
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

from gmpq_tf.files import read_jsonl
from gmpq_tf.policy import BitwidthPolicy

FLAGS = ["--dataset=digits", "--batch_size=256", "--epochs=2", "--progress=line"]
MIRRORED = ["--distribution=mirrored", "--replicas=2"]
TRAININGS = {
    "search": ["--bit_ops_budget=0.024", "--learning_rate=0.01"],
    "pretrain": ["--learning_rate=0.01", "--schedule=constant"],
    "finetune": ["--policy=uniform:3,3", "--distillation=0.5"],
}
SECONDS = 240


def start(stage, workdir, model, flags=(), task=None):
    """Starts a command; `task`: (index, addresses) of a worker."""
    environment = dict(os.environ, TF_NUM_INTRAOP_THREADS="1")
    if task is not None:
        index, workers = task
        environment["TF_CONFIG"] = json.dumps(
            {
                "cluster": {"worker": workers},
                "task": {"type": "worker", "index": index},
            }
        )
    command = [sys.executable, "-m", f"gmpq_tf.train.{stage}", *FLAGS]
    command += [f"--workdir={workdir}", f"--model={model}", *TRAININGS[stage], *flags]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def start_workers(stage, workdir, model, flags=()):
    """Starts two workers on free ports."""
    with socket.socket() as a, socket.socket() as b:
        for each in (a, b):
            each.bind(("127.0.0.1", 0))
        workers = [f"127.0.0.1:{each.getsockname()[1]}" for each in (a, b)]
    flags = ["--distribution=multi_worker", *flags]
    return [start(stage, workdir, model, flags, (i, workers)) for i in (0, 1)]


def finish(*processes):
    for process in processes:
        _, errors = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, errors.decode()[-2000:]


def epochs_of(workdir, stage):
    """Metrics of every epoch without the times, which are never the same."""
    lines = read_jsonl(workdir / stage / "metrics.jsonl")
    timed = ("seconds", "images_per_second")
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]


def check_equal(one, other, stage):
    first, second = epochs_of(one, stage), epochs_of(other, stage)
    assert len(first) == len(second) == 2
    for a, b in zip(first, second, strict=True):
        assert a == pytest.approx(b, rel=2e-3)
    if stage == "search":
        policies = [
            BitwidthPolicy.load(w / stage / "policy.json") for w in (one, other)
        ]
        assert dict(policies[0].items()) == dict(policies[1].items())
        return
    models = [keras.models.load_model(w / stage / "model.keras") for w in (one, other)]
    for a, b in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_allclose(a, b, rtol=0.02, atol=2e-3)
    assert not any(getattr(x, "synchronized", False) for x in models[1].layers)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, float_file):
    """Workdir of a stage that was trained on one device."""
    done = {}

    def train(stage):
        if stage not in done:
            done[stage] = tmp_path_factory.mktemp(f"alone_{stage}")
            finish(start(stage, done[stage], float_file))
        return done[stage]

    return train


STAGES = [
    "search",
    pytest.param("pretrain", marks=pytest.mark.slow),
    pytest.param("finetune", marks=pytest.mark.slow),
]


# In the quick suite replicas of a search are those of tests/search/replicas_test.py.
@pytest.mark.slow
@pytest.mark.parametrize("stage", [*TRAININGS])
def test_two_replicas_train_as_one_device(stage, alone, tmp_path, float_file):
    finish(start(stage, tmp_path, float_file, MIRRORED))
    check_equal(alone(stage), tmp_path, stage)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_two_workers_train_as_one_device(stage, alone, tmp_path, float_file):
    finish(*start_workers(stage, tmp_path, float_file))
    check_equal(alone(stage), tmp_path, stage)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_the_rest_end_when_a_worker_dies_and_the_next_start_resumes(
    killed, tmp_path, float_file
):
    flags = ["--epochs=60"]
    workers = start_workers("search", tmp_path, float_file, flags)
    log = tmp_path / "search" / "metrics.jsonl"
    until = time.monotonic() + SECONDS
    while len(read_jsonl(log)) < 3:
        assert time.monotonic() < until
        time.sleep(0.1)
    workers[killed].kill()
    _, errors = workers[1 - killed].communicate(timeout=60)
    assert workers[1 - killed].returncode == 1
    assert b"Error: Every worker must run to the end." in errors
    workers[killed].communicate()
    reached = len(read_jsonl(log))
    finish(*start_workers("search", tmp_path, float_file, flags))
    assert [line["epoch"] for line in read_jsonl(log)] == list(range(60))
    assert 3 <= reached < 60


@pytest.mark.slow
def test_deterministic_runs_have_the_same_bits(tmp_path, float_file):
    for name in ("one", "two"):
        finish(start("search", tmp_path / name, float_file, ["--deterministic"]))
    one, two = (
        (tmp_path / name / "search" / "importances.json").read_bytes()
        for name in ("one", "two")
    )
    assert one == two


@pytest.mark.slow
def test_the_batch_must_be_shared_evenly(tmp_path, float_file):
    flags = [*MIRRORED, "--batch_size=255"]
    _, errors = start("search", tmp_path, float_file, flags).communicate()
    assert b"Error: batch_size is that of all replicas together" in errors
    assert b"Use --batch_size=256." in errors
    assert not (tmp_path / "search").exists()

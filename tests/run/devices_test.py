"""What is refused about devices; what they compute: distribution_test.py."""

import json

import pytest

from gmpq_tf.data import DataConfig
from gmpq_tf.run import devices
from gmpq_tf.run.errors import StageError
from gmpq_tf.run.run_config import RunConfig

CLUSTER = {"worker": ["a:1", "b:1"]}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        json.dumps({"cluster": CLUSTER}),
        json.dumps({"cluster": CLUSTER, "task": {"type": "worker"}}),
        json.dumps({"cluster": CLUSTER, "task": {"type": "worker", "index": 2}}),
        json.dumps({"cluster": CLUSTER, "task": {"type": "worker", "index": "x"}}),
        json.dumps({"cluster": CLUSTER, "task": {"type": "chief", "index": 0}}),
        json.dumps({"cluster": 3, "task": {"type": "worker", "index": 0}}),
    ],
)
def test_a_cluster_that_is_none_is_refused(text, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(
        StageError, match=r"(?s)TF_CONFIG.*Received: TF_CONFIG=.*Set it"
    ):
        devices.check_cluster(devices.cluster())


@pytest.mark.parametrize("index", [0, 1, "1"])
def test_a_worker_of_a_cluster_is_accepted(index, monkeypatch):
    task = {"type": "worker", "index": index}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": CLUSTER, "task": task}))
    devices.check_cluster(devices.cluster())


def test_alone_a_process_writes_and_waits_for_nobody(monkeypatch):
    # A variable that some notebook service sets is none of our business.
    monkeypatch.setenv("TF_CONFIG", json.dumps({"task": {"type": "x"}}))
    assert devices.is_chief()
    devices.wait_for_workers()


@pytest.mark.parametrize(
    ("replicas", "batch_size", "nearest"), [(2, 63, 64), (4, 1, 4), (3, 100, 99)]
)
def test_a_batch_that_cannot_be_shared_is_refused(
    replicas, batch_size, nearest, monkeypatch
):
    monkeypatch.setattr(devices, "replica_count", lambda: replicas)
    with pytest.raises(StageError, match=f"--batch_size={nearest}"):
        devices.check_batch(DataConfig("digits", batch_size=batch_size))
    devices.check_batch(DataConfig("digits", batch_size=nearest))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"replicas": 2}, "replicas=2"),
        ({"replicas": -1, "distribution": "mirrored"}, "replicas=-1"),
        ({"jit_compile": True, "distribution": "mirrored"}, "jit_compile=True"),
    ],
)
def test_options_that_contradict_are_refused(options, message):
    with pytest.raises(ValueError, match=f"Received: {message}"):
        RunConfig(**options)


def test_more_replicas_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(
        devices.tf.config, "list_physical_devices", lambda kind: ["gpu0", "gpu1"]
    )
    with pytest.raises(StageError, match="replicas=3 with 2 GPUs"):
        devices._replica_devices(3)
    assert devices._replica_devices(1) == ["GPU:0"]
    assert devices._replica_devices(0) == ["GPU:0", "GPU:1"]

"""The devices a training runs on: threads, GPUs, replicas, workers."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tensorflow as tf

from gmpq_tf.data import DataConfig, Dataset, Share
from gmpq_tf.distribution import replica_count
from gmpq_tf.run.errors import StageError
from gmpq_tf.run.run_config import RunConfig, set_threads
from gmpq_tf.run.stage import Stage, open_stage


class WorkerError(StageError):
    """Another worker of the training ended, or the workers cannot be reached."""


@contextmanager
def devices(run: RunConfig) -> Iterator[None]:
    """Configures TensorFlow's devices; models built in the block train on them.

    Must be entered before TensorFlow computes anything.

    Args:
        run: threads, determinism, distribution and replicas.

    Raises:
        StageError: the requested devices do not exist.
        WorkerError: another worker ended.
    """
    set_threads(run.threads)
    if run.deterministic:
        tf.config.experimental.enable_op_determinism()
    for gpu in tf.config.list_physical_devices("GPU"):
        # By default TensorFlow reserves the whole memory of every GPU at once.
        tf.config.experimental.set_memory_growth(gpu, True)
    with strategy_of(run).scope():
        try:
            yield
        except (
            tf.errors.UnavailableError,
            tf.errors.AbortedError,
            tf.errors.CancelledError,
            tf.errors.DeadlineExceededError,
            tf.errors.InternalError,
        ) as error:
            if run.distribution != "multi_worker":
                raise
            raise WorkerError(_worker_ended(error)) from error


def strategy_of(run: RunConfig) -> tf.distribute.Strategy:
    """Returns the distribution strategy that the flags ask for.

    Args:
        run: distribution and replicas.

    Raises:
        StageError: the requested devices do not exist.
    """
    if run.distribution == "multi_worker":
        check_cluster(cluster())
        return tf.distribute.MultiWorkerMirroredStrategy()
    if run.distribution == "mirrored":
        return tf.distribute.MirroredStrategy(_replica_devices(run.replicas))
    return tf.distribute.get_strategy()


def _replica_devices(replicas: int) -> list[str]:
    """Names of `replicas` GPUs, or of logical CPU devices where there is no GPU."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus and replicas > len(gpus):
        raise StageError(
            "Each replica needs a GPU of its own. "
            f"Received: replicas={replicas} with {len(gpus)} GPUs. Lower --replicas."
        )
    if gpus:
        return [f"GPU:{i}" for i in range(replicas or len(gpus))]
    (cpu,) = tf.config.list_physical_devices("CPU")
    parts = [tf.config.LogicalDeviceConfiguration()] * (replicas or 1)
    tf.config.set_logical_device_configuration(cpu, parts)
    return [f"CPU:{i}" for i in range(len(parts))]


def cluster() -> dict[str, Any]:
    """Returns the JSON object in the environment variable TF_CONFIG; {} if not set.

    Raises:
        StageError: TF_CONFIG is not a JSON object.
    """
    text = os.environ.get("TF_CONFIG", "{}")
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise StageError(
            f"TF_CONFIG must be a JSON object. Received: TF_CONFIG={text[:200]!r}. "
            f"{_TF_CONFIG_EXAMPLE}"
        )
    return value


def check_cluster(config: Mapping[str, Any]) -> None:
    """Refuses a TF_CONFIG that does not say which worker of which cluster this is.

    Args:
        config: from `cluster`.

    Raises:
        StageError: cluster, type or index of the task is missing or out of range.
    """
    jobs, task = config.get("cluster"), config.get("task")
    try:
        kind, index = task["type"], int(task["index"])  # type: ignore[index]
        if kind in ("chief", "worker") and 0 <= index < len(jobs[kind]):  # type: ignore[index]
            return
    except (KeyError, TypeError, ValueError):
        pass
    raise StageError(
        "--distribution=multi_worker needs TF_CONFIG in the environment of every "
        f"worker. Received: TF_CONFIG={json.dumps(dict(config))[:200]}. "
        f"{_TF_CONFIG_EXAMPLE}"
    )


_TF_CONFIG_EXAMPLE = (
    'Set it to such as {"cluster": {"worker": ["host0:12345", "host1:12345"]}, '
    '"task": {"type": "worker", "index": 0}}; see docs/scaling.md.'
)


def is_chief() -> bool:
    """Whether this process writes the files: it is alone, the chief, or worker 0."""
    config = cluster()
    task, jobs = config.get("task", {}), config.get("cluster", {})
    if not isinstance(_strategy(), tf.distribute.MultiWorkerMirroredStrategy):
        return True
    first = "chief" if "chief" in jobs else "worker"
    return task["type"] == first and int(task["index"]) == 0


def wait_for_workers() -> None:
    """Barrier: returns when every worker has called it; at once for one process."""
    strategy = _strategy()
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        together = tf.function(lambda: strategy.run(_sum_of_ones))
        together()


def _sum_of_ones() -> tf.Tensor:
    context = tf.distribute.get_replica_context()
    return context.all_reduce("SUM", tf.ones([]))


def open_shared_stage(
    run: RunConfig, name: str, config: Mapping[str, Any], scaling: Mapping[str, Any]
) -> Stage:
    """`open_stage` for a stage run by several workers, of which only the chief writes.

    All workers must see the same workdir.
    """
    stage = Stage(Path(run.workdir), name)
    if is_chief():
        stage = open_stage(run, name, config, scaling)
    wait_for_workers()
    return stage


def training_batches(dataset: Dataset, start_epoch: int) -> Any:
    """Returns training batches for `fit`; each worker prepares only its own part.

    Args:
        dataset: the images.
        start_epoch: first epoch, counted from 0.

    Returns:
        The data set from `dataset.train`, or its distributed form.
    """
    strategy = _strategy()
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return dataset.train(start_epoch)
    part = dataset.config.batch_size // replica_count()

    def of_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
        share = Share(context.input_pipeline_id, context.num_input_pipelines)
        return dataset.train(start_epoch, share=share).rebatch(part)

    return strategy.distribute_datasets_from_function(of_worker)


def check_batch(data: DataConfig) -> None:
    """Refuses a batch size that is not a multiple of the number of replicas.

    Args:
        data: its `batch_size` is that of all replicas together.

    Raises:
        StageError: the replicas cannot share the batch evenly.
    """
    replicas = replica_count()
    if data.batch_size % replicas:
        nearest = max(1, round(data.batch_size / replicas)) * replicas
        raise StageError(
            "batch_size is that of all replicas together, which share it evenly. "
            f"Received: batch_size={data.batch_size} for {replicas} replicas. "
            f"Use --batch_size={nearest}."
        )


def _strategy() -> tf.distribute.Strategy:
    return tf.distribute.get_strategy()


def _worker_ended(error: Exception) -> str:
    known = re.search(r"(recvmsg|Failed to connect|health check)[^\n\"]*", str(error))
    cause = known[0] if known else f"{type(error).__name__}: {str(error)[:300]}"
    return (
        "Every worker must run to the end. Received: another worker stopped, or could "
        f"not be reached ({cause}). Look at its messages, then start all workers again "
        "with the same command: training goes on from the last whole epoch."
    )

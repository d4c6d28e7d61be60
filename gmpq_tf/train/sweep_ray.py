"""Runs the points of a sweep as tasks of a Ray cluster."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from pathlib import Path
from typing import Any

from gmpq_tf.run.errors import StageError
from gmpq_tf.train.sweep_children import (
    Children,
    Commands,
    Outcome,
    RunnerOptions,
    run_stages,
)

# Prefixes of environment variables that may affect results: points get the values of
# the sweep's process. OMP_: Ray would limit OpenMP to the cores of a task, which the
# local runner does not.
SAME = ("TF_", "GMPQ_", "KERAS_", "OMP_")
STORE_BYTES = 100_000_000  # object store of our own cluster, which holds only texts
POLL_S = 0.2
REACH_S = 10.0
MAX_PORT = 65_535


class RayRunner:
    """Runs points as tasks of a Ray cluster; each task starts the stages' processes.

    Unlike Ray's default, a task whose worker died is not retried automatically.
    Starting the same command again does so, from the last finished epoch.

    Args:
        options: the cluster, and the resources of each point.

    Raises:
        StageError: the cluster cannot be reached, or none of its machines has the
            resources that a point needs.
    """

    def __init__(self, options: RunnerOptions) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        self._ray, self._record = ray, options.record.absolute()
        self.jobs, self._stopped = 0, False
        self._lock = threading.Lock()
        self._running: set[Any] = set()
        with _kept_signals():
            _connect(ray, options.address)
        try:
            room = room_for(ray.nodes(), options)
        except StageError:
            ray.shutdown()
            raise
        self.jobs = options.jobs or room
        needs = {"num_cpus": options.cpus, "num_gpus": options.gpus}
        self._task = ray.remote(**needs, max_retries=0)(run_in_worker)

    def run(self, folder: Path, commands: Commands) -> Outcome:
        """Runs one point, and waits for its end."""
        own = {k: v for k, v in os.environ.items() if k.startswith(SAME)}
        with self._lock:
            if self._stopped:
                return Outcome("stopped")
            place = str(folder.absolute()), str(self._record)
            task = self._task.remote(*place, commands, own)
            self._running.add(task)
        try:
            return Outcome(*self._ray.get(task))
        except self._ray.exceptions.TaskCancelledError:
            return Outcome("stopped")
        except self._ray.exceptions.RayError as error:
            if self._stopped:
                return Outcome("stopped")
            lines = str(error).strip().splitlines()
            cause = f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"
            said = f"{folder.name}: its Ray task ended by {cause[:500]}"
            return Outcome("failed", f"{said}\nLogs of its stages: {folder}")
        finally:
            with self._lock:
                self._running.remove(task)

    def stop(self) -> None:
        """Asks the processes of all tasks to stop; no further ones are started."""
        with self._lock:
            self._stopped = True
            for task in self._running:
                self._ray.cancel(task, force=False)

    def close(self) -> None:
        """Disconnects from the cluster, and ends it if it was started here."""
        self._ray.shutdown()


def _connect(ray: Any, address: str | None) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        options |= {"include_dashboard": False, "object_store_memory": STORE_BYTES}
    try:
        _check_reached(address)
        ray.init(address=address or "local", **options)
    except (OSError, RuntimeError, ValueError) as error:
        lines = str(error).strip().splitlines() or ["(no message)"]
        raise StageError(
            "ray_address must be that of a Ray cluster that is running, such as "
            f"host:6379 or auto. Received: ray_address={address!r}: {lines[0][:300]}. "
            "Start one with `ray start --head`, or leave --ray_address out: a cluster "
            "is started on this machine."
        ) from error


def _check_reached(address: str | None) -> None:
    """Raises OSError where no server listens; Ray itself would wait for minutes."""
    if address in (None, "auto"):
        return
    host, _, port = str(address).removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal() or int(port) > MAX_PORT:
        raise ValueError("no host:port")
    socket.create_connection((host, int(port)), timeout=REACH_S).close()


@contextlib.contextmanager
def _kept_signals() -> Iterator[None]:
    """Restores signal handlers after the block, in which Ray replaces SIGTERM's."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def room_for(nodes: list[Mapping[str, Any]], options: RunnerOptions) -> int:
    """Returns how many points can run in the cluster at the same time.

    Raises:
        StageError: not even one can.
    """
    found = [node["Resources"] for node in nodes if node["Alive"]]
    needs = [("CPU", options.cpus), ("GPU", options.gpus)]
    asked = [(kind, need) for kind, need in needs if need > 0]
    room = sum(
        int(min(have.get(kind, 0.0) / need for kind, need in asked)) for have in found
    )
    if room < 1:
        cpus, gpus = (max(h.get(kind, 0.0) for h in found) for kind, _ in needs)
        raise StageError(
            "Each point must fit on a machine of the Ray cluster. Received: "
            f"ray_cpus={options.cpus:g}, ray_gpus={options.gpus:g}, where the largest "
            f"have {cpus:g} CPUs and {gpus:g} GPUs. Lower them."
        )
    return room


def run_in_worker(
    folder: str, record: str, commands: Commands, own: Mapping[str, str]
) -> tuple[str, str]:
    """Runs the stages of a point; called in a worker of Ray.

    Args:
        folder: workdir of the point.
        record: file of the sweep; tells whether this machine sees the workdir.
        commands: the stages and their flags.
        own: environment variables from the sweep's process.

    Returns:
        The fields of `Outcome`.
    """
    if not Path(record).is_file():
        said = (
            "The workdir must be a folder that all machines see at the same path. "
            f"Received: {record}, which {socket.gethostname()} does not have. "
            "Use a --workdir on a shared disk."
        )
        return "failed", f"{Path(folder).name}: {said}"
    children = Children(_environment(own))
    with _interruptible(), ThreadPoolExecutor(1) as pool:
        running = pool.submit(run_stages, Path(folder), commands, children)
        while True:
            try:
                outcome = running.result(timeout=POLL_S)
            except NotYet:
                continue
            except KeyboardInterrupt:  # cancelled: end the stages as Ctrl-C does
                children.stop()
                continue
            return outcome.state, outcome.message


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Makes SIGINT, by which Ray cancels tasks, work even where it was ignored.

    A sweep that a script runs in the background ignores SIGINT, and so do the workers
    of a cluster that it starts.
    """
    with _kept_signals():
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.default_int_handler)
        yield


def _environment(own: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment of the stages, in which this package is importable."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(SAME)}
    paths = [str(Path(__file__).resolve().parents[2]), kept.get("PYTHONPATH", "")]
    return {**kept, **own, "PYTHONPATH": os.pathsep.join(filter(None, paths))}

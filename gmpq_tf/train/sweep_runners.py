"""What the points of a sweep run on: this machine, or a Ray cluster."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from gmpq_tf.train.sweep_children import Children, Commands, Outcome, run_stages


@dataclasses.dataclass(frozen=True)
class RunnerOptions:
    """What a runner is made from.

    Args:
        jobs: points at a time; None: 1 on this machine, else as many as there is room
            for.
        address: of the cluster; None: one is started here.
        cpus: of each point.
        gpus: of each point.
        record: file in the workdir that every machine must see.
    """

    jobs: int | None
    address: str | None
    cpus: float
    gpus: float
    record: Path


class Runner(Protocol):
    """Runs points; `run` is called from as many threads as there are jobs."""

    jobs: int

    def run(self, folder: Path, commands: Commands) -> Outcome:
        """Runs one point to its end."""

    def stop(self) -> None:
        """Asks all that is running to stop, and starts no more."""

    def close(self) -> None:
        """Gives back what the runner holds; nothing is running."""


class LocalRunner:
    """Runs points on this machine.

    Args:
        options: how many at a time.
    """

    def __init__(self, options: RunnerOptions) -> None:
        self.jobs = options.jobs or 1
        self._children = Children()

    def run(self, folder: Path, commands: Commands) -> Outcome:
        """Runs one point to its end."""
        return run_stages(folder, commands, self._children)

    def stop(self) -> None:
        """Asks all processes to stop, and starts no more."""
        self._children.stop()

    def close(self) -> None:
        """Nothing is held."""


def _ray_runner(options: RunnerOptions) -> Runner:
    from gmpq_tf.train.sweep_ray import RayRunner

    return RayRunner(options)


RUNNERS: dict[str, Callable[[RunnerOptions], Runner]] = {
    "local": LocalRunner,
    "ray": _ray_runner,
}


@contextlib.contextmanager
def started(
    name: str, options: RunnerOptions
) -> Iterator[tuple[Runner, ThreadPoolExecutor]]:
    """A runner, and threads that call it; all points have ended when the block has.

    Args:
        name: of the runner.
        options: what it is made from.
    """
    runner = RUNNERS[name](options)
    try:
        with ThreadPoolExecutor(runner.jobs) as pool:
            try:
                yield runner, pool
            except KeyboardInterrupt:
                runner.stop()
                raise  # after they have ended: the pool waits for them
    finally:
        runner.close()


def announced(runner: Runner, folder: Path, commands: Commands) -> Outcome:
    """Runs a point, and prints what became of it."""
    outcome = runner.run(folder, commands)
    if outcome.state in SAID:
        print(f"{folder.name}: {SAID[outcome.state]}", flush=True)
    return outcome


SAID = {"finished": "finished", "busy": "another process is working on it"}


def require_package(package: str, flag: str, instead: str) -> None:
    """Refuses an option whose package is not installed, before anything runs.

    Args:
        package: its name, which is that of the extra too.
        flag: the option, as in `runner='ray'`.
        instead: what to do without it.

    Raises:
        ValueError: the package is missing.
    """
    if importlib.util.find_spec(package) is None:
        raise ValueError(
            f"This needs the package {package}. Received: {flag}, without it. "
            f"`pip install gmpq-tf[{package}]`, or {instead}."
        )

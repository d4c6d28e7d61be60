"""Runners of a sweep's points: this machine, or a Ray cluster."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from gmpq_tf.train.sweep_children import (
    Children,
    Commands,
    Outcome,
    RunnerOptions,
    run_stages,
)


class Runner(Protocol):
    """Runs points; `run` is called from as many threads as there are jobs."""

    jobs: int

    def run(self, folder: Path, commands: Commands) -> Outcome:
        """Runs one point to its end."""

    def stop(self) -> None:
        """Asks all running points to stop; no further ones are started."""

    def close(self) -> None:
        """Releases the runner's resources; called when no point is running."""


class LocalRunner:
    """Runs points on this machine.

    Args:
        options: `jobs` is the number of points at a time.
    """

    def __init__(self, options: RunnerOptions) -> None:
        self.jobs = options.jobs or 1
        self._children = Children()

    def run(self, folder: Path, commands: Commands) -> Outcome:
        """Runs one point to its end."""
        return run_stages(folder, commands, self._children)

    def stop(self) -> None:
        """Asks all processes to stop; no further ones are started."""
        self._children.stop()

    def close(self) -> None:
        """Does nothing: there is nothing to release."""


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
    """Starts a runner, and threads that call it; waits for all points at the end.

    Args:
        name: a key of `RUNNERS`.
        options: options of the runner.
    """
    runner = RUNNERS[name](options)
    try:
        with ThreadPoolExecutor(runner.jobs) as pool:
            try:
                yield runner, pool
            except KeyboardInterrupt:
                runner.stop()
                raise  # once all points have ended: the pool waits for them
    finally:
        runner.close()


def announced(runner: Runner, folder: Path, commands: Commands) -> Outcome:
    """Runs a point, and prints its outcome if it is finished or busy."""
    outcome = runner.run(folder, commands)
    if outcome.state in SAID:
        print(f"{folder.name}: {SAID[outcome.state]}", flush=True)
    return outcome


SAID = {"finished": "finished", "busy": "another process is working on it"}


def require_package(package: str, flag: str, instead: str) -> None:
    """Refuses an option whose package is not installed, before anything runs.

    Args:
        package: name of the package, and of our extra that installs it.
        flag: the option, such as `runner='ray'`.
        instead: what to do without it, for the message.

    Raises:
        ValueError: the package is missing.
    """
    if importlib.util.find_spec(package) is None:
        raise ValueError(
            f"This needs the package {package}. Received: {flag}, without it. "
            f"`pip install gmpq-tf[{package}]`, or {instead}."
        )

"""Runs the stages of one point of a sweep, each in a process of its own.

This module does not import TensorFlow.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from gmpq_tf.files import write_atomic
from gmpq_tf.run.workdir import LOCKED

Commands = Sequence[tuple[str, Sequence[str]]]  # (stage, its flags), in order


@dataclasses.dataclass(frozen=True)
class RunnerOptions:
    """Options of a runner.

    Args:
        jobs: number of points at a time; None: 1 on this machine, in a cluster as many
            as fit.
        address: address of the cluster; None: one is started here.
        cpus: CPUs of each point.
        gpus: GPUs of each point.
        record: file in the workdir that every machine must see.
    """

    jobs: int | None
    address: str | None
    cpus: float
    gpus: float
    record: Path


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of running a point.

    Args:
        state: "finished"; "busy": another process is working on the point; "stopped":
            by a signal; or "failed".
        message: message of the stage that failed, with the path of its log.
    """

    state: Literal["finished", "busy", "stopped", "failed"]
    message: str = ""


class Children:
    """Runs stages as child processes, all of which `stop` ends.

    Args:
        environment: environment variables of the children; None: those of this process.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self.stopped = False
        self._environment = environment
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen] = set()

    def run(self, command: list[str]) -> subprocess.CompletedProcess | None:
        """Runs a command to its end.

        Args:
            command: the program and its arguments.

        Returns:
            Its output and exit code; None after `stop` was called.
        """
        with self._lock:
            if self.stopped:
                return None
            process = subprocess.Popen(  # noqa: S603  our own commands, checked flags
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=self._environment,
            )
            self._running.add(process)
        output = process.communicate()
        with self._lock:
            self._running.remove(process)
        return subprocess.CompletedProcess(command, process.returncode, *output)

    def stop(self) -> None:
        """Asks every process to stop, and starts no more."""
        with self._lock:
            self.stopped = True
            for process in self._running:
                process.terminate()


def run_stages(folder: Path, commands: Commands, children: Any) -> Outcome:
    """Runs the stages of one point one after the other.

    Args:
        folder: workdir of the point, which gets a log of each stage.
        commands: the stages and their flags.
        children: starts the processes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for stage, flags in commands:
        module = f"{__package__}.{stage}"
        done = children.run([sys.executable, "-m", module, *flags])
        if done is None:
            return Outcome("stopped")
        log = write_atomic(folder / f"{stage}.log", done.stdout + done.stderr)
        if children.stopped:
            return Outcome("stopped")
        if LOCKED in done.stderr:
            return Outcome("busy")
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["(no message)"]
            errors = [line for line in lines if line.startswith("Error")] or lines[-1:]
            said = f"{folder.name}, {stage}: {errors[-1]}\nIts log: {log}"
            return Outcome("failed", said)
    return Outcome("finished")

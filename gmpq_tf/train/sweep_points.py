"""Runs the stages of one point of a sweep, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from gmpq_tf.files import write_atomic
from gmpq_tf.run.workdir import LOCKED
from gmpq_tf.train.sweep_spec import STAGES, TRAININGS, Flags, Point, as_flag


class Children:
    """The processes that run the stages; a stop reaches all that there are."""

    def __init__(self) -> None:
        self.stopped = False
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen] = set()

    def run(self, command: list[str]) -> subprocess.CompletedProcess | None:
        """Runs a command to its end.

        Args:
            command: the program and its arguments.

        Returns:
            What it wrote and its exit code; None once the children are stopped.
        """
        with self._lock:
            if self.stopped:
                return None
            process = subprocess.Popen(  # noqa: S603  our own, its flags checked
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
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


def run_point(
    folder: Path, point: Point, training: Flags, common: Flags, children: Children
) -> str | None:
    """Runs the stages of one point, each in a process of its own.

    Args:
        folder: workdir of the point.
        point: its flags.
        training: flags of every training.
        common: flags of every stage.
        children: runs the processes.

    Returns:
        None, or what the stage that failed said; a point that another process is
        working on, or whose processes were stopped, is no failure.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for stage in STAGES:
        given = training if stage in TRAININGS else {"names": "finetune"}
        flags = common | given | {"workdir": folder} | point[stage]
        command = [f"--{flag}={as_flag(flag, value)}" for flag, value in flags.items()]
        done = _run_stage(stage, command, folder / f"{stage}.log", children)
        if done is None or children.stopped:
            return None
        if LOCKED in done.stderr:
            print(f"{folder.name}: another process is working on it", flush=True)
            return None
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["(no message)"]
            errors = [line for line in lines if line.startswith("Error")] or lines[-1:]
            return f"{folder.name}, {stage}: {errors[-1]}"
    print(f"{folder.name}: finished", flush=True)
    return None


def _run_stage(stage: str, flags: list[str], log: Path, children: Children) -> Any:
    module = f"{__package__}.{stage}"
    done = children.run([sys.executable, "-m", module, *flags])
    if done is not None:
        write_atomic(log, done.stdout + done.stderr)
    return done

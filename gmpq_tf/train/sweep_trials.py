"""The trials of a sweep: drawn one after the other, run several at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gmpq_tf.files import append_jsonl, read_jsonl, write_json
from gmpq_tf.run.errors import StageError
from gmpq_tf.run.workdir import claim
from gmpq_tf.train.sweep_children import Outcome
from gmpq_tf.train.sweep_points import commands_of
from gmpq_tf.train.sweep_ranges import Ranges, is_number
from gmpq_tf.train.sweep_results import point_row
from gmpq_tf.train.sweep_runners import Runner, announced
from gmpq_tf.train.sweep_spec import Flags, Point
from gmpq_tf.train.sweep_study import Study

TRIALS = "trials.jsonl"  # number, name and drawn values, written before a trial runs
BEST = "best.json"


class Trials:
    """The trials of one sweep.

    Args:
        workdir: folder of the sweep.
        ranges: the ranges that flags are drawn from.
        study: draws the values.
        objective: names of the figures that are optimized.
        training: flags of every training.
        common: flags of every stage.

    Raises:
        StageError: another process draws trials in this workdir.
    """

    def __init__(
        self,
        workdir: Path,
        ranges: Ranges,
        study: Study,
        objective: Sequence[str],
        training: Flags,
        common: Flags,
    ) -> None:
        self._workdir, self._ranges, self._study = workdir, ranges, study
        self._objective, self._training, self._common = objective, training, common
        claim(workdir / "trials.lock", workdir)
        self._known = read_jsonl(workdir / TRIALS)
        check_trials(workdir / TRIALS, self._known, ranges)
        self.errors: list[str] = []

    def run(
        self, count: int, runner: Runner, pool: ThreadPoolExecutor
    ) -> dict[str, Point]:
        """Runs trials until there are `count`.

        Trial n is drawn from the results of exactly the trials up to n minus the number
        of jobs, so that no draw depends on which trial ends first.

        Args:
            count: number of trials, including those run before.
            runner: runs their stages.
            pool: threads that call it.

        Returns:
            All trials, by name.
        """
        running: deque[tuple[int, Path, Future[Outcome]]] = deque()
        for number in range(count):
            while len(running) >= runner.jobs:
                self._end(*running.popleft())
            folder = self._workdir / "points" / self._next(number)["point"]
            running.append((number, folder, self._start(number, folder, runner, pool)))
        while running:
            self._end(*running.popleft())
        self._write_best()
        return {
            record["point"]: self._ranges.point(self._ranges.choice(record["drawn"]))
            for record in self._known
        }

    def _next(self, number: int) -> dict[str, Any]:
        """Returns the record of a trial, which is drawn if there is none yet."""
        if number < len(self._known):
            self._study.add(self._known[number]["drawn"])
            return self._known[number]
        drawn = self._study.draw(number)
        name = self._ranges.name(number, self._ranges.choice(drawn))
        record = {"trial": number, "point": name, "drawn": drawn}
        append_jsonl(self._workdir / TRIALS, record)
        self._known.append(record)
        return record

    def _start(
        self, number: int, folder: Path, runner: Runner, pool: ThreadPoolExecutor
    ) -> Future[Outcome]:
        if not self._common.get("overwrite") and self._figures(folder) is not None:
            done: Future[Outcome] = Future()
            done.set_result(Outcome("finished"))
            return done
        choice = self._ranges.choice(self._known[number]["drawn"])
        point = self._ranges.point(choice)
        commands = commands_of(folder, point, self._training, self._common)
        return pool.submit(announced, runner, folder, commands)

    def _end(self, number: int, folder: Path, running: Future[Outcome]) -> None:
        outcome = running.result()
        figures = self._figures(folder) if outcome.state == "finished" else None
        self._study.tell(number, figures)
        if figures is None:
            why = WHY[outcome.state].format(objective=", ".join(self._objective))
            self.errors.append(outcome.message or f"{folder.name}: {why}")

    def _figures(self, folder: Path) -> list[float] | None:
        """Returns the figures of a trial for the objective; None: not finished."""
        row = point_row(folder)
        if row is None or row["split"] != "validation":
            return None
        figures: list[Any] = [row.get(name) for name in self._objective]
        return figures if all(map(is_number, figures)) else None

    def _write_best(self) -> None:
        best = []
        for number in self._study.best():
            record = self._known[number]
            row = point_row(self._workdir / "points" / record["point"]) or {}
            choice = self._ranges.choice(record["drawn"])
            best.append({**record, "flags": choice, **row})
        write_json(
            self._workdir / BEST, {"objective": list(self._objective), "trials": best}
        )


WHY = {
    "finished": "it has no {objective} on held-out images. Give a --validation_size",
    "busy": "another process is working on it; let it finish",
    "stopped": "it was stopped",
    "failed": "it failed",
}


def check_trials(path: Path, known: Sequence[Mapping], ranges: Ranges) -> None:
    """Refuses a record of trials that a sweep of these ranges cannot have written.

    Raises:
        StageError: it is damaged.
    """
    for number, record in enumerate(known):
        drawn, name = record.get("drawn") or {}, record.get("point")
        whole = isinstance(drawn, dict) and drawn.keys() == ranges.ranges.keys()
        whole = whole and all(map(is_number, drawn.values()))
        # The name is used as a folder, so it must be the one that this module makes.
        if not whole or name != ranges.name(number, ranges.choice(drawn)):
            raise StageError(
                "The record of a sweep must have one line a trial, in order, as it was "
                f"left. Received: {path}, line {number + 1}: {record!r:.120}. Put the "
                "file back, or use another --workdir."
            )

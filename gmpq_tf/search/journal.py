"""Measurements of a search, kept as they are made: what is interrupted is replayed.

A strategy is a function of its problem, its options and the answers of `once`. Run
again, it asks the same in the same order, and is answered from the file as far as it
had come.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gmpq_tf.files import read_arrays, write_arrays
from gmpq_tf.search.meter import Meter


class JournalError(ValueError):
    """A journal that cannot be gone on with."""


class Journal:
    """A JSON-lines file of answers; the first line says to what problem.

    Args:
        path: the file to make, or to go on with; None keeps the answers in memory.
        problem: everything that they depend on, plain JSON values.
        meter: what answers cost is counted there.

    Raises:
        JournalError: the file is of another problem, or damaged before its end.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        problem: Mapping[str, Any],
        meter: Meter,
    ) -> None:
        self.path = None if path is None else Path(path)
        self.meter = meter
        self._answers: dict[str, dict[str, Any]] = {}
        self.problem = json.loads(json.dumps(problem))
        if self.path is not None:
            self._open(self.path)

    @property
    def replayable(self) -> int:
        """Answers that are known."""
        return len(self._answers)

    def once(self, key: Any, compute: Callable[[], Any]) -> Any:
        """The answer to a key: from the file, or computed and added to it.

        Args:
            key: what is asked, plain JSON values.
            compute: returns the answer, plain JSON values.

        Returns:
            The answer as JSON keeps it.
        """
        name = json.dumps(key, sort_keys=True)
        if name in self._answers:
            known = self._answers[name]
            self.meter.replayed(known["float_steps"], known["seconds"])
            known["float_steps"] = known["seconds"] = 0.0  # counted once
            return known["value"]
        steps, seconds = self.meter.float_steps, self.meter.seconds
        record = {
            "key": key,
            "value": compute(),
            "float_steps": self.meter.float_steps - steps,
            "seconds": round(self.meter.seconds - seconds, 3),
        }
        line = json.dumps(record, allow_nan=False)
        if self.path is not None:
            _append(self.path, line)
        record = json.loads(line)
        record["float_steps"] = record["seconds"] = 0.0
        self._answers[name] = record
        return record["value"]

    def keep(self, name: str, variables: Sequence[Any]) -> None:
        """Keeps variables for `give_back`, in a file beside the journal.

        Args:
            name: what they are.
            variables: Keras variables of any shape.
        """
        if self.path is not None:
            arrays = {str(i): np.asarray(v) for i, v in enumerate(variables)}
            write_arrays(self._beside(name), arrays)

    def give_back(self, name: str, variables: Sequence[Any]) -> None:
        """Sets variables to what `keep` was given.

        Raises:
            JournalError: the file is not there, damaged, or of other variables.
        """
        path = self._beside(name)
        try:
            arrays = read_arrays(path)
            for index, variable in enumerate(variables):
                variable.assign(arrays[str(index)])
        except (OSError, KeyError, ValueError) as error:
            raise JournalError(
                "A journal of a trained search goes with the weights that it trained. "
                f"Received: {path}, which cannot be used: {error}. Put the file back, "
                f"or delete {self.path} to start again."
            ) from error

    def _beside(self, name: str) -> Path:
        assert self.path is not None
        return self.path.with_suffix(f".{name}.npz")

    def _open(self, path: Path) -> None:
        lines = _whole_lines(path)
        if not lines:
            path.parent.mkdir(parents=True, exist_ok=True)
            _append(path, json.dumps({"problem": self.problem}, allow_nan=False))
            return
        records = [_record(path, number, line) for number, line in enumerate(lines, 1)]
        self._check(path, records[0].get("problem"))
        for number, record in enumerate(records[1:], 2):
            if not {"key", "value", "float_steps", "seconds"} <= record.keys():
                raise _damaged(path, number)
            self._answers[json.dumps(record["key"], sort_keys=True)] = record

    def _check(self, path: Path, before: Any) -> None:
        if not isinstance(before, dict):
            raise _damaged(path, 1)
        keys = [k for k in {**before, **self.problem}
                if before.get(k) != self.problem.get(k)]  # fmt: skip
        if keys:
            listed = ", ".join(
                f"{k}: {before.get(k)!r:.80} -> {self.problem.get(k)!r:.80}"
                for k in keys
            )
            raise JournalError(
                "A journal must be of the search that goes on with it. "
                f"Received: {path}, which differs in {listed}. Name another file, or "
                "delete it to start again. Data must come in the same order each time."
            )


def _append(path: Path, line: str) -> None:
    with path.open("ab") as file:
        file.write(f"{line}\n".encode())
        file.flush()
        os.fsync(file.fileno())


def _whole_lines(path: Path) -> list[str]:
    """The lines of a file; one whose writing was interrupted is removed from it."""
    if not path.exists():
        return []
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        with path.open("r+b") as file:
            file.truncate(end)
    try:
        return data[:end].decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise JournalError(
            f"A journal must be UTF-8 text. Received: {path} ({error}). Delete it to "
            "start again."
        ) from error


def _record(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise _damaged(path, number)
    return record


def _damaged(path: Path, number: int) -> JournalError:
    return JournalError(
        "Each line of a journal must be a JSON object of a measurement. "
        f"Received: {path}, whose line {number} is none. Delete the file to start "
        "again, or that line and what follows it."
    )

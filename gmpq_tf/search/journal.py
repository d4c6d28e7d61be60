"""A file of the measurements of a search, from which an interrupted one is replayed.

A strategy is a deterministic function of its problem, its options and the answers of
`once`. When it is run again it asks for the same measurements in the same order. Those
that the file has are answered from there; at the first that is missing it goes on
measuring. No other state of the strategy has to be saved, except variables that it
trains (`keep` and `give_back`).

The first line of the file holds the problem; a search of another one is refused. Each
further line is one answer, written and synced before it is used, so that at most the
line being written is lost; an incomplete last line is removed.
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
    """A journal cannot be continued: it is damaged, or of another problem."""


class Journal:
    """A JSON-lines file of answers, with the problem in its first line.

    Args:
        path: the file to create or to continue; None keeps the answers in memory.
        problem: everything that the answers depend on, as plain JSON values.
        meter: counts the cost of answers, also of replayed ones.

    Raises:
        JournalError: the file is of another problem, or damaged before its last line.
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

    def once(self, key: Any, compute: Callable[[], Any]) -> Any:
        """The answer to a key, from the file, or else computed and added to the file.

        Args:
            key: describes what is measured, plain JSON values.
            compute: returns the answer, plain JSON values.

        Returns:
            The answer after a round trip through JSON, so that a replayed search gets
            the same value as the first one.
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
        """Saves variables for `give_back`, in a file beside the journal.

        Args:
            name: part of the file's name.
            variables: Keras variables of any shape.
        """
        if self.path is not None:
            arrays = {str(i): np.asarray(v) for i, v in enumerate(variables)}
            write_arrays(self._beside(name), arrays)

    def give_back(self, name: str, variables: Sequence[Any]) -> None:
        """Sets variables to the values that `keep` has saved.

        Raises:
            JournalError: the file is missing, damaged, or of other variables.
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
    """The lines of a file; a last line without an end is cut off the file."""
    if not path.exists():
        return []
    if path.is_dir():
        raise JournalError(
            f"A journal must be a file. Received: {path}, a folder. Name a file in it, "
            f"such as {path / 'journal.jsonl'}."
        )
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

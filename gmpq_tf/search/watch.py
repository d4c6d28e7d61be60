"""Shows the progress of measuring policies: how many are done, and the time left."""

from __future__ import annotations

import sys
from time import perf_counter
from typing import TextIO

from gmpq_tf.progress import KINDS, Screen, duration
from gmpq_tf.search.errors import StrategyError
from gmpq_tf.spelling import suggest

INTERVALS = {"bar": 0.2, "line": 15.0}  # seconds between updates


class Watch:
    """Counts planned and done measurements, and shows them with the time left.

    Args:
        kind: "bar", "line", "none", or "auto": bar on a terminal, lines elsewhere.
        file: where to write; None: standard output.

    Raises:
        StrategyError: the kind is unknown.
    """

    def __init__(self, kind: str = "auto", file: TextIO | None = None) -> None:
        if kind not in KINDS:
            raise StrategyError(
                f"progress must be one of {', '.join(KINDS)}. "
                f"Received: progress={kind!r}. {suggest(str(kind), KINDS)}"
            )
        self.asked, self.file = kind, file
        self.planned = self.done = 0
        self._work_planned = self._work = self._seconds = 0.0
        self._due: float | None = None
        self._screen: Screen | None = None

    def expect(self, count: int, work: float = 1.0) -> None:
        """Adds `count` planned measurements, each of so much work, e.g. in images."""
        self.planned += count
        self._work_planned += count * work

    def step(self, work: float, seconds: float) -> None:
        """Counts a finished measurement.

        Args:
            work: its work, as it was planned.
            seconds: time that it took; 0 if the journal answered.
        """
        self.done += 1
        if seconds:
            self._work += work
            self._seconds += seconds
        self._work_planned -= work
        out = self.file or sys.stdout
        kind = (
            ("bar" if out.isatty() else "line") if self.asked == "auto" else self.asked
        )
        if kind == "none":
            return
        now = perf_counter()
        if self._due is None:  # a short search needs no lines
            self._due = now + INTERVALS[kind]
        elif now >= self._due:
            self._due = now + INTERVALS[kind]
            self._show(out, kind)

    @property
    def left(self) -> float | None:
        """Estimated seconds left for what is planned; None before a measurement."""
        if not self._work:
            return None
        return max(self._work_planned, 0.0) * self._seconds / self._work

    def close(self) -> None:
        """Removes the progress bar from the screen."""
        if self._screen:
            self._screen.close()
        self._screen = None

    def _show(self, out: TextIO, kind: str) -> None:
        left = "" if self.left is None else f"left: {duration(self.left)}"
        text = f"Measured {self.done} of {self.planned}"
        if kind == "line":
            print(f"{text}  {left}", file=out, flush=True)
            return
        self._screen = self._screen or Screen(out)
        self._screen.draw(text, self.done / max(self.planned, 1), left)

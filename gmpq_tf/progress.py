"""Progress of a long training: a display on a terminal, lines in a file.

`TrainingProgress` is a Keras callback for any model; it also shows the metrics that
only a `PolicySearch` logs.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any, TextIO

import keras
import numpy as np
from tqdm import tqdm

from gmpq_tf.limits import Limit, scale_of
from gmpq_tf.metric_names import (
    EXPECTED_BIT_OPS,
    expected,
    with_resources,
)
from gmpq_tf.spelling import suggest

KINDS = ("auto", "bar", "line", "none")
INTERVALS = {"bar": 0.2, "line": 60.0}  # seconds between updates within an epoch
HEADER_EVERY = 20  # epochs
# These metrics come first, in this order; others follow in the order of the logs.
FIRST = ("loss", "accuracy", "val_loss", "val_accuracy")


class TrainingProgress(keras.callbacks.Callback):
    """Shows the state and speed of a training, and the time left.

    On a terminal it shows a bar with the epoch, the step, the time left for the epoch
    and for the whole run, images/s and the metrics; for a search also expected costs
    against their budgets, the risks and zeta. In a file it writes a line a minute. In
    both it writes a row with all metrics after each epoch. Use it instead of Keras's
    own display:

        search.fit(data, epochs=25, verbose=0, callbacks=[gmpq.TrainingProgress()])

    Args:
        kind: "bar", "line" or "none"; "auto": bar on a terminal, lines elsewhere.
        batch_size: images in a step; None: speeds are shown in steps.
        file: where to write; None: standard output.

    Raises:
        ValueError: the kind is unknown.
    """

    def __init__(
        self,
        kind: str = "auto",
        batch_size: int | None = None,
        file: TextIO | None = None,
    ) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(
                f"kind must be one of {', '.join(KINDS)}. Received: kind={kind!r}. "
                f"{suggest(kind, KINDS)}"
            )
        self.asked, self.batch_size, self.file = kind, batch_size, file
        self.pace = Pace()
        self._screen: Screen | None = None

    def on_train_begin(self, logs: Any = None) -> None:
        """Chooses the kind of display, and starts measuring."""
        self._out = self.file or sys.stdout
        found = "bar" if self._out.isatty() else "line"
        self.kind = found if self.asked == "auto" else self.asked
        self.pace, self._header, self._rows, self._due = Pace(), "", 0, 0.0
        self._screen = Screen(self._out) if self.kind == "bar" else None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Starts timing the epoch, and shows it."""
        now = perf_counter()
        self.pace.begin(now)
        self.epoch, self.epochs = epoch, self.params["epochs"]
        if self.kind == "line":  # a short epoch gets only its row
            self._due = now + INTERVALS["line"]
        elif self._screen and not self._rows:
            self._show({})

    def on_train_batch_end(self, batch: int, logs: Mapping | None = None) -> None:
        """Updates the display if the last update is long enough ago."""
        now = perf_counter()
        self.pace.step(now, batch + 1)
        if self.kind != "none" and now >= self._due:
            self._due = now + INTERVALS[self.kind]
            self._show(logs or {})

    def on_test_begin(self, logs: Any = None) -> None:
        """Shows that validation is running."""
        if self._screen:
            self._screen.draw(f"{self._where()}  validation", 1.0, "")

    def on_epoch_end(self, epoch: int, logs: Mapping | None = None) -> None:
        self.pace.end(perf_counter())
        if self.kind == "none":
            return
        columns = self._columns(logs or {})
        widths = [max(len(name), len(text), 8) for name, text in columns.items()]
        header = aligned(columns, widths)
        if header != self._header or self._rows % HEADER_EVERY == 0:
            self._print(header)
        self._header, self._rows = header, self._rows + 1
        self._print(aligned(columns.values(), widths))

    def on_train_end(self, logs: Any = None) -> None:
        self.close()

    def close(self) -> None:
        """Removes the bar; call this if `fit` may end with an error."""
        if self._screen:
            self._screen.close()
        self._screen = None

    def _columns(self, logs: Mapping) -> dict[str, str]:
        """Heading -> text for an epoch's row."""
        budget = getattr(self.model, "budget", None)
        name, speed = self._speed()
        return {
            "epoch": f"{self.epoch + 1}/{self.epochs}",
            "seconds": f"{self.pace.seconds:.1f}",
            name: speed,
            "learning_rate": number(self.model.optimizer.learning_rate),
            **metric_columns(logs, budget, self._limits()),
            "left": duration(self.pace.left_after_epoch(self._epochs_to_come())),
        }

    def _show(self, logs: Mapping) -> None:
        total = self._total()
        where = f"{self._where()}  {self.pace.steps}/{total or '?'}"
        lines = status(logs, getattr(self.model, "budget", None), self._limits())
        if self._screen:
            share = self.pace.steps / total if total else 0.0
            self._screen.draw(where, share, self._speed_and_time(total), lines)
        else:
            self._print("  ".join([where, self._speed_and_time(total), *lines]))

    def _limits(self) -> Sequence[Limit]:
        return getattr(self.model, "limits", ())

    def _speed_and_time(self, total: int) -> str:
        if not self.pace.seconds_per_step:
            return "starting"
        name, speed = self._speed()
        if not total:
            return f"{speed} {name}"
        epoch = duration(self.pace.left_in_epoch(total))
        run = duration(self.pace.left_in_run(total, self._epochs_to_come()))
        return f"left: epoch {epoch}, run {run}; {speed} {name}"

    def _where(self) -> str:
        return f"Epoch {self.epoch + 1}/{self.epochs}"

    def _epochs_to_come(self) -> int:
        return self.epochs - self.epoch - 1

    def _total(self) -> int:
        """Number of steps of an epoch; 0: not known yet."""
        return self.params.get("steps") or self.pace.steps_before

    def _speed(self) -> tuple[str, str]:
        rate = self.pace.steps_per_second
        if self.batch_size is None:
            return "steps/s", f"{rate:.2f}"
        return "images/s", f"{rate * self.batch_size:.0f}"

    def _print(self, text: str) -> None:
        if self._screen:
            self._screen.print(text)
        else:
            print(text, file=self._out, flush=True)


class Pace:
    """Measures the speed of a training and estimates the time left.

    The first step of a run builds and compiles the graph, so it is not timed, unless
    the first epoch has no other step.
    """

    def __init__(self) -> None:
        self.seconds_per_step = 0.0
        self.between_epochs = 0.0  # seconds for validation and backup
        self.seconds = 0.0  # duration of the last epoch
        self.steps = self.steps_before = 0  # in this epoch, in the one before
        self._warm = False

    def begin(self, now: float) -> None:
        """Starts an epoch; `now` is the time in seconds."""
        self.steps_before, self.steps = self.steps, 0
        self._began = self._last = now
        self._since = (now, 0)

    def step(self, now: float, steps: int) -> None:
        """Notes that `steps` steps of the epoch are done."""
        since, before = self._since
        if self._warm:
            self.seconds_per_step = (now - since) / (steps - before)
        else:
            self._warm, self._since = True, (now, steps)
        self.steps, self._last = steps, now

    def end(self, now: float) -> None:
        """Ends the epoch, after validation; `now` is the time in seconds."""
        self.seconds, self.between_epochs = now - self._began, now - self._last
        if self.steps and not self.seconds_per_step:
            self.seconds_per_step = (self._last - self._began) / self.steps

    @property
    def steps_per_second(self) -> float:
        """Speed in this epoch; 0: not known yet."""
        return 1 / self.seconds_per_step if self.seconds_per_step else 0.0

    def left_in_epoch(self, total: int) -> float:
        """Seconds left for the training steps of this epoch of `total` steps."""
        return self.seconds_per_step * max(total - self.steps, 0)

    def left_in_run(self, total: int, epochs: int) -> float:
        """Seconds left for this epoch and `epochs` epochs after it."""
        later = epochs * (self.seconds_per_step * total + self.between_epochs)
        return self.left_in_epoch(total) + self.between_epochs + later

    def left_after_epoch(self, epochs: int) -> float:
        """Seconds for `epochs` more epochs like the one that has just ended."""
        return epochs * (self.seconds_per_step * self.steps + self.between_epochs)


class Screen:
    """The last lines of a terminal: one with a bar, and plain ones below it.

    Args:
        file: the terminal.
    """

    def __init__(self, file: TextIO) -> None:
        self._file, self._lines = file, list[tqdm]()

    def draw(
        self, left: str, share: float, right: str, below: Sequence[str] = ()
    ) -> None:
        """Draws `left |bar| right`, and the lines below if there are any.

        Args:
            left: text before the bar.
            share: filled share of the bar, 0 to 1.
            right: text after the bar.
            below: further lines; (): they stay unchanged.
        """
        formats = [f"{left} |{{bar}}| {right}", *below]
        # Unlike tqdm's own width this is right on terminals that report a width of 0.
        width = shutil.get_terminal_size().columns
        for line, text in zip(self._at_least(len(formats)), formats, strict=False):
            line.n, line.bar_format, line.ncols = share, text, width
            line.refresh()

    def print(self, text: str) -> None:
        """Writes a permanent line above the bar."""
        tqdm.write(text, file=self._file)
        self._file.flush()

    def close(self) -> None:
        """Removes the bar and the lines below it from the terminal."""
        for line in reversed(self._lines):
            line.close()
        self._lines = []

    def _at_least(self, count: int) -> list[tqdm]:
        for position in range(len(self._lines), count):
            line = tqdm(
                total=1,
                file=self._file,
                position=position,
                leave=False,
                bar_format=" ",
            )
            self._lines.append(line)
        return self._lines


def status(
    logs: Mapping, budget: float | None = None, limits: Sequence[Limit] = ()
) -> list[str]:
    """Returns the metrics in one line, and those of a search in a second one.

    Args:
        logs: name -> value, as Keras gives them to callbacks.
        budget: bit operations.
        limits: all budgets of the search.

    Returns:
        No line, one or two.
    """
    names, search = ordered(logs, limits), with_resources(_resources(limits))
    first = [f"{name} {number(logs[name])}" for name in names if name not in search]
    if EXPECTED_BIT_OPS in logs:
        first.append(f"{gbops(logs[EXPECTED_BIT_OPS], budget)} GBOPs")
    costs = {EXPECTED_BIT_OPS}
    for limit in _others(limits, logs):
        name, size, unit = _scaled(limit)
        spent, most = number(logs[name] / size), number(limit.budget / size)
        first.append(f"{_kind(limit)} {spent} of {most} {unit}")
        costs.add(name)
    risks = [
        f"{label(name)} {number(logs[name])}"
        for name in names
        if name in search and name not in costs
    ]
    lines = ["  ".join(first), "risks: " + "  ".join(risks) if risks else ""]
    return [line for line in lines if line]


def metric_columns(
    logs: Mapping, budget: float | None = None, limits: Sequence[Limit] = ()
) -> dict[str, str]:
    """Returns what is logged as columns: heading -> text.

    Args:
        logs: name -> value.
        budget: bit operations, for the heading of the expected ones.
        limits: all budgets of the search, for the headings of the others.
    """
    columns = {}
    others = {_scaled(each)[0]: each for each in _others(limits, logs)}
    for name in ordered(logs, limits):
        if name == EXPECTED_BIT_OPS:
            heading = f"GBOPs of {number(budget / 1e9)}" if budget else "GBOPs"
            columns[heading] = number(logs[name] / 1e9)
        elif name in others:
            limit = others[name]
            _, size, unit = _scaled(limit)
            most = number(limit.budget / size)
            columns[f"{_kind(limit)} {unit} of {most}"] = number(logs[name] / size)
        else:
            columns[label(name)] = number(logs[name])
    return columns


def ordered(names: Mapping, limits: Sequence[Limit] = ()) -> list[str]:
    """Returns names of metrics: the usual first, those of a search last.

    Args:
        names: the names, in any order.
        limits: all budgets of the search.
    """
    last = with_resources(_resources(limits))
    usual = [name for name in FIRST if name in names]
    search = [name for name in last if name in names]
    return usual + [n for n in names if n not in FIRST + last] + search


def _resources(limits: Sequence[Limit]) -> list[str]:
    return [each.resource for each in limits]


def _others(limits: Sequence[Limit], logs: Mapping) -> list[Limit]:
    """Budgets of other resources than bit operations whose expected cost is logged."""
    names = {each: expected(each.resource) for each in limits}
    return [e for e, n in names.items() if n != EXPECTED_BIT_OPS and n in logs]


def _scaled(limit: Limit) -> tuple[str, float, str]:
    """Metric of a budget's expected cost, divisor and name of its shown unit."""
    return expected(limit.resource), *scale_of(limit.table.unit, limit.budget)


def _kind(limit: Limit) -> str:
    """First word of a resource's name: "file" for "file_bytes"."""
    return limit.resource.partition("_")[0]


def label(name: str) -> str:
    """Returns a metric's name without "_risk" or "_distance", for short lines."""
    return name.removesuffix("_risk").removesuffix("_distance")


def gbops(bit_ops: float, budget: float | None = None) -> str:
    """Returns bit operations in 10^9, such as "0.1380 of 0.1369" with a budget."""
    spent = number(bit_ops / 1e9)
    return f"{spent} of {number(budget / 1e9)}" if budget else spent


def aligned(texts: Any, widths: Sequence[int]) -> str:
    """Returns texts in right-aligned columns of the given widths."""
    return "  ".join(t.rjust(w) for t, w in zip(texts, widths, strict=True))


def number(value: Any) -> str:
    """Returns a value with four digits; far from 1 with three and a power of ten.

    The text has at most eight characters, nine if the value is negative.
    """
    value = float(np.asarray(value))  # float() does not accept replicated variables
    if value == 0 or 1e-3 <= abs(value) < 1e3:
        return f"{value:#.4g}".rstrip(".")
    return f"{value:.0f}" if 1e3 <= abs(value) < 1e5 else f"{value:.2e}"


def duration(seconds: float) -> str:
    """Returns `MM:SS`, or `H:MM:SS` from an hour on."""
    return tqdm.format_interval(round(seconds))

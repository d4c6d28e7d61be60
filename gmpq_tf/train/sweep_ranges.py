"""Ranges of a sweep, from which a sampler draws the values of flags."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gmpq_tf.budget import parse_budget
from gmpq_tf.run.errors import StageError
from gmpq_tf.run.flags import field_types
from gmpq_tf.spelling import suggest
from gmpq_tf.train.sweep_spec import (
    STAGES,
    Flags,
    Point,
    common_flags,
    label_of,
    point_of,
    read_spec,
    stages_of,
)

EXAMPLE = "{'search.zeta': {'low': 0.1, 'high': 10, 'log': true}}"
BUDGET = "budget"  # the only flag that is a text of number and unit
LARGEST = 1e300
SPLIT = ("validation_size", "split_seed")


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and abs(value) <= LARGEST  # whole numbers in JSON may be larger


@dataclasses.dataclass(frozen=True)
class Range:
    """The range of numbers that a flag is drawn from.

    Args:
        key: the flag, such as `search.zeta`.
        low: smallest value.
        high: largest value, above `low`.
        log: whether the logarithm is drawn uniformly; then `low` is above 0.
        step: distance of possible values, counted from `low`; None: any number, or 1
            for whole numbers.
        unit: unit of a budget, which is written after the number, such as kB.
        whole: whether the flag takes whole numbers.

    Raises:
        StageError: a value does not fit.
    """

    key: str
    low: float
    high: float
    log: bool = False
    step: float | None = None
    unit: str = ""
    whole: bool = False

    def __post_init__(self) -> None:
        numbers = {"low": self.low, "high": self.high, "step": self.step}
        for name, value in numbers.items():
            self._check_number(name, value)
        self._check(self.low < self.high, "low below high")
        self._check(isinstance(self.log, bool), "log true or false")
        self._check(not self.log or self.low > 0, "low above 0, where log is true")
        self._check(self.step is None or self.step > 0, "step above 0")
        self._check(not self.log or self.step is None, "either log or a step")
        is_budget = self.key.rpartition(".")[2] == BUDGET
        self._check(isinstance(self.unit, str), "a text as unit")
        self._check(not self.unit or is_budget, "a unit for a budget only")

    def _check_number(self, name: str, value: Any) -> None:
        if name == "step" and value is None:
            return
        self._check(is_number(value), f"a number as {name}")
        whole = not self.whole or float(value).is_integer()
        self._check(whole, f"a whole number as {name}, as the flag takes them only")

    def _check(self, holds: bool, what: str) -> None:
        if not holds:
            given = dataclasses.asdict(self)
            said = {k: given[k] for k in ("low", "high", "log", "step", "unit")}
            raise StageError(
                f"A range must have {what}. Received: {self.key} with {said!r:.200}. "
                f"Write such as {EXAMPLE}."
            )

    def as_value(self, drawn: float) -> Any:
        """Returns the value of the flag for a drawn number: a budget with its unit."""
        if self.key.rpartition(".")[2] == BUDGET:
            return f"{drawn!r}{self.unit}"
        return drawn


@dataclasses.dataclass(frozen=True)
class Ranges:
    """The content of a specification with ranges.

    Args:
        content: the specification.
        common: flags of every point, by stage.
        ranges: key -> its range.
    """

    content: Mapping[str, Any]
    common: Point
    ranges: Mapping[str, Range]

    def choice(self, drawn: Mapping[str, float]) -> Flags:
        """Returns key -> value of the flag, for drawn numbers."""
        return {key: self.ranges[key].as_value(value) for key, value in drawn.items()}

    def point(self, choice: Flags) -> Point:
        """Returns the flags of all stages of a point."""
        return point_of(self.common, choice)

    def first(self) -> Point:
        """Returns the flags of the point with all values smallest."""
        return self.point(self.choice({k: r.low for k, r in self.ranges.items()}))

    def name(self, number: int, choice: Flags) -> str:
        """Returns the name of a point: number and flags."""
        return f"{number:04d}_{label_of(choice)}"


def read_ranges(spec: Path) -> Ranges:
    """Reads a specification with ranges.

    Args:
        spec: the JSON file.

    Raises:
        StageError: it has no ranges, or one that cannot be drawn from, or points would
            be compared on images that were trained on.
    """
    content = read_spec(spec)
    given = content["ranges"]
    if not isinstance(given, dict) or not given:
        raise StageError(
            "Ranges must be an object from flags to objects. "
            f"Received: ranges={given!r:.80}. Write such as {EXAMPLE}."
        )
    ranges = {key: _range(key, value) for key, value in given.items()}
    found = Ranges(content, common_flags(content), ranges)
    _check_held_out(found.first())
    return found


def _range(key: str, given: Any) -> Range:
    names = [field.name for field in dataclasses.fields(Range)]
    known = [name for name in names if name not in ("key", "whole")]
    if not isinstance(given, dict) or not {"low", "high"} <= given.keys():
        raise StageError(
            "A range must be an object with low and high. "
            f"Received: {f'{key}: {given!r}':.120}. Write such as {EXAMPLE}."
        )
    for name in given:
        if name not in known:
            raise StageError(
                f"A range has {', '.join(known)}. Received: {key} with {name!r:.80}. "
                f"{suggest(name[:80], known)}"
            )
    kinds = [_kind(stage, flag) for stage, flag in stages_of(key)]
    found = Range(key, **given, whole=int in kinds)
    if key.rpartition(".")[2] == BUDGET:
        for drawn in (found.low, found.high):
            parse_budget(found.as_value(drawn))
    return found


def _kind(stage: str, flag: str) -> type:
    """Returns the type of a flag's numbers: int or float.

    Raises:
        StageError: the flag does not take numbers.
    """
    hints: dict[str, Any] = {}
    for cls in STAGES[stage]:
        hints |= field_types(cls)
    kinds = {hints[flag], *getattr(hints[flag], "__args__", ())} - {type(None)}
    if float in kinds or flag == BUDGET:
        return float
    if int in kinds:
        return int
    raise StageError(
        "A range is of a flag that takes numbers. "
        f"Received: {stage}.{flag}. Give it a grid of values instead."
    )


def _check_held_out(point: Point) -> None:
    """Refuses to compare points on training images or on test images."""
    evaluate, trained = point["evaluate"], point["finetune"]
    if evaluate.get("split", "validation") != "validation":
        raise StageError(
            "Trials are chosen by held-out images; test images never choose. Received: "
            f"evaluate.split={evaluate['split']!r}. Leave it out, and measure the "
            "chosen point by `python -m train.evaluate --split=test`."
        )
    pairs = [("evaluate", evaluate)]
    if point["search"].get("dataset") == trained.get("dataset"):
        pairs.append(("search", point["search"]))
    for stage, flags in pairs:
        for flag in SPLIT:
            asked = flag in flags or stage == "search"
            if asked and flags.get(flag) != trained.get(flag):
                raise StageError(
                    "The images that choose must be held out of every training. "
                    f"Received: {stage}.{flag}={flags.get(flag)!r} where "
                    f"finetune.{flag}={trained.get(flag)!r}. Give both the same."
                )

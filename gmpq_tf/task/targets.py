"""What a data set asks for that has neither classes nor boxes: arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

ALONE = ""  # the name of targets that are for the one output of a model


@dataclasses.dataclass(frozen=True)
class Target:
    """The arrays that one output of a model is to give.

    Args:
        shape: of one example.
        whole: whether they are whole numbers, such as classes.
        low: the least of them all; None: not known.
        high: the largest; None: not known.
    """

    shape: tuple[int, ...]
    whole: bool = False
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class Targets:
    """What a data set of tensors asks for.

    Args:
        arrays: by the name of the output; `ALONE` where a model has one.
        loss: as the user gives it: a name in `LOSSES`, or such as `a=mse,b=mae` by the
            names of the outputs; None: the one that is the only sensible.
    """

    arrays: Mapping[str, Target]
    loss: str | None = None

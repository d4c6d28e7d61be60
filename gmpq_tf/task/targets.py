"""Descriptions of target arrays, for data sets with neither classes nor boxes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

ALONE = ""  # name of the targets of a model with a single output


@dataclasses.dataclass(frozen=True)
class Target:
    """Describes the target arrays of one output.

    Args:
        shape: shape for one example.
        whole: whether they hold whole numbers, such as classes.
        low: smallest number in the data set; None: not known.
        high: largest number in the data set; None: not known.
    """

    shape: tuple[int, ...]
    whole: bool = False
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class Targets:
    """Describes the targets of a data set of tensors, and the loss.

    Args:
        arrays: name of the output -> its targets; `ALONE` for a single output.
        loss: as the user gives it: a name in `LOSSES`, or for several outputs by name
            such as `a=mse,b=mae`; None: the only sensible loss.
    """

    arrays: Mapping[str, Target]
    loss: str | None = None

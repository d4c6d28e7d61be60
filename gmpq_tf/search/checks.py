"""Checks of the options of strategies."""

from __future__ import annotations

import math
from typing import Any

import keras

from gmpq_tf.attribution import split_head
from gmpq_tf.search.errors import StrategyError
from gmpq_tf.spelling import suggest

MEASURES = ("divergence", "task")


def check_whole(name: str, value: Any, least: int) -> None:
    """Requires a whole number of at least `least`.

    Raises:
        StrategyError: the value is something else.
    """
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < least:
        raise StrategyError(
            f"{name} must be a whole number of at least {least}. "
            f"Received: {name}={value!r}."
        )


def check_number(name: str, value: Any, least: float, exclusive: bool = False) -> None:
    """Requires a finite number of at least `least` (`exclusive`: above it).

    Raises:
        StrategyError: the value is something else.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    low = number and (value <= least if exclusive else value < least)
    if not number or not math.isfinite(value) or low:
        sign = ">" if exclusive else ">="
        raise StrategyError(
            f"{name} must be a finite number {sign} {least}. "
            f"Received: {name}={value!r}."
        )


def check_measure(measure: str, name: str = "measure") -> None:
    """Requires the name of a risk that strategies can measure.

    Raises:
        StrategyError: the value is not in `MEASURES`.
    """
    if measure not in MEASURES:
        raise StrategyError(
            f"{name} must be one of {', '.join(MEASURES)}. "
            f"Received: {name}={measure!r}. {suggest(str(measure), MEASURES)}"
        )


def check_attributable(model: keras.Model) -> None:
    """Refuses a model that has no feature map to attribute.

    Raises:
        GraphError: the model has none.
    """
    split_head(model)

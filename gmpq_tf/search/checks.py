"""What options of strategies must be."""

from __future__ import annotations

import math
from typing import Any

import keras

from gmpq_tf.attribution import split_head
from gmpq_tf.search.errors import StrategyError
from gmpq_tf.spelling import suggest

MEASURES = ("divergence", "task")


def check_whole(name: str, value: Any, least: int) -> None:
    """Refuse what is no whole number of at least `least`.

    Raises:
        StrategyError: it is none.
    """
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < least:
        raise StrategyError(
            f"{name} must be a whole number of at least {least}. "
            f"Received: {name}={value!r}."
        )


def check_number(name: str, value: Any, least: float, exclusive: bool = False) -> None:
    """Refuse what is no finite number of at least (or above) `least`.

    Raises:
        StrategyError: it is none.
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
    """Refuse what is no column that strategies compare.

    Raises:
        StrategyError: it is none of `MEASURES`.
    """
    if measure not in MEASURES:
        raise StrategyError(
            f"{name} must be one of {', '.join(MEASURES)}. "
            f"Received: {name}={measure!r}. {suggest(str(measure), MEASURES)}"
        )


def check_attributable(model: keras.Model) -> None:
    """Refuse a model that has no feature map to attribute.

    Raises:
        GraphError: it has none.
    """
    split_head(model)

"""The registry of generalization risks; each has a file of its own."""

from __future__ import annotations

from collections.abc import Callable

from gmpq_tf.search.attribution_risk import Generalization
from gmpq_tf.search.margin_risk import Margin
from gmpq_tf.search.partitioned_risk import Partitioned
from gmpq_tf.spelling import lookup

NONE = "none"  # eta is 0
GENERALIZATIONS: dict[str, Callable[..., Generalization]] = {
    "attribution": Generalization,
    "partitioned": Partitioned,
    "margin": Margin,
}


def generalization_of(name: str) -> Callable[..., Generalization]:
    """The row of `GENERALIZATIONS` with this name; "none" (eta is 0) gets the first.

    Raises:
        ValueError: there is none; the nearest name is given.
    """
    rows: dict[str, Callable[..., Generalization]] = {
        NONE: Generalization,
        **GENERALIZATIONS,
    }
    return lookup(rows, name, "generalization")

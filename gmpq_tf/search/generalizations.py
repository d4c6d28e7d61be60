"""The generalization risks: one file each, one line in `GENERALIZATIONS`."""

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
    """The row of `GENERALIZATIONS` with this name; of "none", whose eta is 0, any.

    Raises:
        ValueError: there is none; the nearest name is given.
    """
    rows: dict[str, Callable[..., Generalization]] = {
        NONE: Generalization,
        **GENERALIZATIONS,
    }
    return lookup(rows, name, "generalization")

"""What every choice of a policy is worth, as a strategy found it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Pair = tuple[int, int]
Bits = Mapping[str, Pair]
# Layer -> (weight bits -> value, activation bits -> value); a policy's value is the sum
# of those of its choices, and more is better.
Values = Mapping[str, tuple[Mapping[int, float], Mapping[int, float]]]
# Likewise, of each image that the values were measured on: arrays [images].
Samples = Mapping[str, tuple[Mapping[int, np.ndarray], Mapping[int, np.ndarray]]]


@dataclass(frozen=True, eq=False)
class Valued:
    """What a strategy returns.

    Args:
        values: of the choices; a choice that is missing is not to be taken.
        samples: what the values are means of; None where they are no measurements.
        columns: name -> further values that were measured on the way.
        ranked: policies with their risk on each image [images], the best first, where
            the strategy compared whole policies; values then name the best.
        history: what was done, as plain JSON values.
        odds: whether the values are logarithms of probabilities.
    """

    values: Values
    samples: Samples | None = None
    columns: Mapping[str, Values] = field(default_factory=dict)
    ranked: tuple[tuple[Bits, np.ndarray], ...] = ()
    history: Any = ()
    odds: bool = False


def only(bits: Bits) -> Values:
    """Values that leave one policy to be chosen."""
    return {name: ({w: 0.0}, {a: 0.0}) for name, (w, a) in bits.items()}


def total(values: Any, bits: Bits) -> Any:
    """The sum over the choices of a policy, of values or of samples."""
    return sum(values[n][0][w] + values[n][1][a] for n, (w, a) in bits.items())


def plain(values: Values) -> dict[str, Any]:
    """Values as plain JSON."""
    return {
        name: {
            "weights": {str(bits): float(v) for bits, v in weights.items()},
            "activations": {str(bits): float(v) for bits, v in inputs.items()},
        }
        for name, (weights, inputs) in values.items()
    }

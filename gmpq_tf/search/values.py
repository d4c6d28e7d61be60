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
# Layer, 0 for its weights or 1 for its activations, bits.
Choice = tuple[str, int, int]


@dataclass(frozen=True, eq=False)
class Bonds:
    """What holds between choices, beside the value of each.

    Args:
        allowed: layer -> pairs of bits that it may take; a layer that is missing may
            take any.
        pairs: two choices of different tensors -> value that is added where both are
            taken; in either order, each two once.
    """

    allowed: Mapping[str, tuple[Pair, ...]] = field(default_factory=dict)
    pairs: Mapping[tuple[Choice, Choice], float] = field(default_factory=dict)

    def permits(self, name: str, pair: Pair) -> bool:
        """Whether a layer may take a pair of bits."""
        return name not in self.allowed or pair in self.allowed[name]

    def between(self, one: Choice, other: Choice) -> float:
        """What two choices add where both are taken."""
        found = self.pairs.get((one, other))
        return self.pairs.get((other, one), 0.0) if found is None else found

    def worth(self, bits: Bits) -> float:
        """What the pairs of a policy's choices add."""
        return sum(
            value
            for pair, value in self.pairs.items()
            if all(bits[name][side] == width for name, side, width in pair)
        )


FREE = Bonds()


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
        bonds: what holds between choices.
    """

    values: Values
    samples: Samples | None = None
    columns: Mapping[str, Values] = field(default_factory=dict)
    ranked: tuple[tuple[Bits, np.ndarray], ...] = ()
    history: Any = ()
    odds: bool = False
    bonds: Bonds = FREE

    def total(self, bits: Bits) -> float:
        """The value of a policy: of its choices, and of what holds between them."""
        return total(self.values, bits) + self.bonds.worth(bits)


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

"""The values that a strategy gives to every choice of a policy."""

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
# The same with an array [images] instead of a value: one number for each image.
Samples = Mapping[str, tuple[Mapping[int, np.ndarray], Mapping[int, np.ndarray]]]
# (layer, 0 for its weights or 1 for its activations, bits).
Choice = tuple[str, int, int]


@dataclass(frozen=True, eq=False)
class Bonds:
    """Constraints and added values between choices, beside the value of each.

    Args:
        allowed: layer -> pairs of bits that it may take; a layer that is missing may
            take any.
        pairs: two choices of different tensors -> value that is added if both are
            taken; each pair is listed once, in any order.
    """

    allowed: Mapping[str, tuple[Pair, ...]] = field(default_factory=dict)
    pairs: Mapping[tuple[Choice, Choice], float] = field(default_factory=dict)

    def permits(self, name: str, pair: Pair) -> bool:
        """Whether a layer may take a pair of bits."""
        return name not in self.allowed or pair in self.allowed[name]

    def between(self, one: Choice, other: Choice) -> float:
        """The value that two choices add if both are taken, else 0."""
        found = self.pairs.get((one, other))
        return self.pairs.get((other, one), 0.0) if found is None else found

    def worth(self, bits: Bits) -> float:
        """The sum of what pairs of a policy's choices add."""
        return sum(
            value
            for pair, value in self.pairs.items()
            if all(bits[name][side] == width for name, side, width in pair)
        )


FREE = Bonds()


@dataclass(frozen=True, eq=False)
class Valued:
    """The result of a strategy.

    Args:
        values: value of each choice; a missing choice must not be taken.
        samples: samples whose means are the values; None if they are not measured.
        columns: name -> further values that were measured on the way.
        ranked: if the strategy compared whole policies: these with their risk on each
            image [images], the best first; `values` then only allow the best.
        history: what was done, as plain JSON values.
        odds: whether the values are logarithms of probabilities.
        bonds: constraints and added values between choices.
        kept: layer -> a boolean for each channel, of layers that lose some, for
            `prune_channels`; budgets are kept by what is left.
        trained: the float model with the weights they are removed from; None: as it is.
        spends: whether a policy must spend the first budget, because its values do not
            say what bits are worth: importances of layers that the complexity risk
            hardly feels. Else the highest total within the budgets is taken.
    """

    values: Values
    samples: Samples | None = None
    columns: Mapping[str, Values] = field(default_factory=dict)
    ranked: tuple[tuple[Bits, np.ndarray], ...] = ()
    history: Any = ()
    odds: bool = False
    bonds: Bonds = FREE
    kept: Mapping[str, tuple[bool, ...]] = field(default_factory=dict)
    trained: Any = None
    spends: bool = False

    def total(self, bits: Bits) -> float:
        """The value of a policy: of its choices, and of pairs of them."""
        return total(self.values, bits) + self.bonds.worth(bits)


def only(bits: Bits) -> Values:
    """Values that only allow one policy, all 0."""
    return {name: ({w: 0.0}, {a: 0.0}) for name, (w, a) in bits.items()}


def total(values: Any, bits: Bits) -> Any:
    """The sum of values (or samples) over the choices of a policy."""
    return sum(values[n][0][w] + values[n][1][a] for n, (w, a) in bits.items())


def plain(values: Values) -> dict[str, Any]:
    """Values as plain JSON: layer -> "weights" and "activations" -> bits -> value."""
    return {
        name: {
            "weights": {str(bits): float(v) for bits, v in weights.items()},
            "activations": {str(bits): float(v) for bits, v in inputs.items()},
        }
        for name, (weights, inputs) in values.items()
    }

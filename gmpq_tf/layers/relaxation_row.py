"""The interface of a row of `RELAXATIONS`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

CHOSEN, LEFT_OUT = 0.0, -1e4  # logits whose softmax is exactly 1 and 0
SMALLEST = 1e-30  # least value of uniform draws, so that their logarithm is finite


@dataclass(frozen=True)
class Grids:
    """The candidate grids of one tensor.

    Args:
        bits: bit-width of each branch, ascending.
        codes: largest code of each branch.
    """

    bits: tuple[int, ...]
    codes: tuple[int, ...]


def probabilities(logits: tf.Tensor, grids: Grids) -> tf.Tensor:
    """`pi = softmax(logits)`, [branches] (eq. 5), or [rows, branches] row by row."""
    return tf.nn.softmax(logits)


def one_each(branches: int) -> tuple[int, ...]:
    """The shape of importances with one number per branch."""
    return (branches,)


def left_alone(values: np.ndarray, grids: Grids, index: int) -> np.ndarray:
    """Logits, [branches], whose softmax is exactly 1 at `index`."""
    return np.where(np.arange(len(grids.bits)) == index, CHOSEN, LEFT_OUT)


def tilted(grids: Grids, mean: float) -> np.ndarray:
    """Logits `beta b`, [branches], whose softmax has the mean bit-width `mean`."""
    bits = np.array(grids.bits, "float64")

    def mean_at(slope: float) -> float:
        logits = slope * (bits - bits.mean())
        weights = np.exp(logits - logits.max())
        return float(weights @ bits / weights.sum())

    return bisected(mean_at, mean, 30.0) * (bits - bits.mean())


def bisected(function: Callable[[float], float], wanted: float, most: float) -> float:
    """Solves `function(x) = wanted` for a rising function by bisection, |x| <= most."""
    low, high = -most, most
    for _ in range(60):
        middle = (low + high) / 2
        if function(middle) < wanted:
            low = middle
        else:
            high = middle
    return (low + high) / 2


@dataclass(frozen=True)
class Relaxation:
    """A row of `RELAXATIONS`.

    Args:
        weigh: `(importances / temperature, grids, noise or None)` -> weights of the
            branches [branches], whose gradient trains the importances; with
            `one_rounding` [2, branches] is allowed: one row for the steps, one for the
            ranges.
        distribute: `(importances / temperature, grids)` -> probabilities of the
            branches [branches], for the expected cost and for reading a policy.
        noise: `(seed [2], shape)` -> noise that `weigh` gets in training, drawn anew in
            each pass; None: no noise.
        tempered: whether noise is divided by the temperature, as logits are.
        one_rounding: round once on the weighted mean of the grids, instead of adding
            weighted roundings.
        shape: number of branches -> shape of the importances, and of the noise.
        alone: `(importances, grids, index)` -> importances that leave one branch.
        at: `(grids, mean bits)` -> importances whose branches have that mean.
        start: mean bit-width at the start, as a share of the way from the fewest to the
            most bits; None: importances start at 0.
    """

    weigh: Callable[[tf.Tensor, Grids, tf.Tensor | None], tf.Tensor]
    distribute: Callable[[tf.Tensor, Grids], tf.Tensor] = probabilities
    noise: Callable[[tf.Tensor, Sequence[int]], tf.Tensor] | None = None
    tempered: bool = False
    one_rounding: bool = False
    shape: Callable[[int], tuple[int, ...]] = one_each
    alone: Callable[[np.ndarray, Grids, int], np.ndarray] = left_alone
    at: Callable[[Grids, float], np.ndarray] = tilted
    start: float | None = None

    def started(self, grids: Grids) -> np.ndarray:
        """Importances before training, of the shape that the row defines."""
        if self.start is None:
            return np.zeros(self.shape(len(grids.bits)))
        low, high = grids.bits[0], grids.bits[-1]
        return self.at(grids, low + self.start * (high - low))


def gumbel(seed: tf.Tensor, shape: Sequence[int]) -> tf.Tensor:
    """Draws from the standard Gumbel distribution, fixed by the seed [2].

    For one seed XLA draws other numbers than TensorFlow's own kernels, but each always
    draws the same.
    """
    uniform = tf.random.stateless_uniform(shape, seed, minval=SMALLEST, maxval=1.0)
    return -tf.math.log(-tf.math.log(uniform))


def logistic(seed: tf.Tensor, shape: Sequence[int]) -> tf.Tensor:
    """Draws from the standard logistic distribution, fixed by the seed [2]."""
    uniform = tf.random.stateless_uniform(shape, seed, minval=1e-7, maxval=1 - 1e-7)
    return tf.math.log(uniform) - tf.math.log1p(-uniform)

"""What a row of `RELAXATIONS` says of one tensor's bit-widths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

CHOSEN, LEFT_OUT = 0.0, -1e4  # logits whose softmax is exactly 1 and 0
SMALLEST = 1e-30  # of the uniform draws, so that their logarithm is finite


@dataclass(frozen=True)
class Grids:
    """What one tensor may be rounded to.

    Args:
        bits: bit-width of each branch, ascending.
        codes: largest code of each.
    """

    bits: tuple[int, ...]
    codes: tuple[int, ...]


def probabilities(logits: tf.Tensor, grids: Grids) -> tf.Tensor:
    """`pi = softmax(logits)`, [branches] (eq. 5), or [rows, branches] row by row."""
    return tf.nn.softmax(logits)


def one_each(branches: int) -> tuple[int, ...]:
    """The shape of importances that are one a branch."""
    return (branches,)


def left_alone(values: np.ndarray, grids: Grids, index: int) -> np.ndarray:
    """Logits, [branches], whose softmax is 1 at one place."""
    return np.where(np.arange(len(grids.bits)) == index, CHOSEN, LEFT_OUT)


def tilted(grids: Grids, mean: float) -> np.ndarray:
    """Logits `beta b`, [branches], whose softmax has a mean of so many bits."""
    bits = np.array(grids.bits, "float64")

    def mean_at(slope: float) -> float:
        logits = slope * (bits - bits.mean())
        weights = np.exp(logits - logits.max())
        return float(weights @ bits / weights.sum())

    return bisected(mean_at, mean, 30.0) * (bits - bits.mean())


def bisected(function: Callable[[float], float], wanted: float, most: float) -> float:
    """Where a rising function of a number within `-most .. most` has a value."""
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
        weigh: importances over the temperature, the grids, noise [branches] or None ->
            weights of the branches [branches], whose gradient trains the importances;
            or [2, branches], of steps and of ranges, where there is one rounding.
        distribute: the first two -> probabilities of the branches [branches], by which
            costs are expected and policies read.
        noise: seed [2], shape -> what `weigh` is given in training, drawn anew each
            time; None: nothing.
        tempered: whether noise is divided by the temperature, as logits are.
        one_rounding: round once on the weighted mean of the grids, instead of adding
            weighted roundings.
        shape: branches -> shape of the importances, and of the noise.
        alone: importances, grids, place -> importances that leave one branch.
        at: grids, mean bits -> importances whose branches have that mean.
        start: mean bits that importances start with, as a share of the way from the
            fewest to the most bits; None: they start at 0.
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
        """Importances before training, of the row's shape."""
        if self.start is None:
            return np.zeros(self.shape(len(grids.bits)))
        low, high = grids.bits[0], grids.bits[-1]
        return self.at(grids, low + self.start * (high - low))


def gumbel(seed: tf.Tensor, shape: Sequence[int]) -> tf.Tensor:
    """Draws of the standard Gumbel distribution, the same for one seed [2].

    XLA draws others than TensorFlow's own kernels do, each always the same.
    """
    uniform = tf.random.stateless_uniform(shape, seed, minval=SMALLEST, maxval=1.0)
    return -tf.math.log(-tf.math.log(uniform))


def logistic(seed: tf.Tensor, shape: Sequence[int]) -> tf.Tensor:
    """Draws of the standard logistic distribution, the same for one seed [2]."""
    uniform = tf.random.stateless_uniform(shape, seed, minval=1e-7, maxval=1 - 1e-7)
    return tf.math.log(uniform) - tf.math.log1p(-uniform)

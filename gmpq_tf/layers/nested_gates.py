"""Gates that open one bit-width after the other (Bayesian Bits)."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from gmpq_tf.layers.relaxation_row import Grids, Relaxation, bisected, logistic

# The hard concrete distribution: its temperature, and the interval it is stretched to.
BETA, ZETA, GAMMA = 2 / 3, 1.1, -0.1
OFFSET = BETA * math.log(-GAMMA / ZETA)
THRESHOLD = 0.34  # a gate is closed where the probability of exactly 0 is above this
OPEN = 1e4  # a logit whose gate is surely open


def _weigh(gates: tf.Tensor, grids: Grids, noise: tf.Tensor | None = None) -> tf.Tensor:
    """`1 - z_1, z_1 (1 - z_2), ..., z_1 ... z_(n-1)`, [branches].

    In the paper `x_q = q_1 + z_1 (q_2 - q_1 + z_2 (q_3 - q_2 + ...))`: each open gate
    adds the residual between one bit-width and the next. Sorted by branches that is
    `sum_i w_i q_i` with these weights.
    """
    if noise is None:  # outside of training gates are open or closed
        closed = tf.sigmoid(OFFSET - gates)
        return _chain(tf.cast(closed < THRESHOLD, gates.dtype))
    stretched = tf.sigmoid((noise + gates) / BETA) * (ZETA - GAMMA) + GAMMA
    return _chain(tf.clip_by_value(stretched, 0.0, 1.0))


def open_probabilities(gates: tf.Tensor) -> tf.Tensor:
    """`P(z > 0) = sigmoid(phi - beta log(-gamma / zeta))` of logits of any shape."""
    return tf.sigmoid(gates - OFFSET)


def _distribute(gates: tf.Tensor, grids: Grids) -> tf.Tensor:
    return _chain(open_probabilities(gates))


def _chain(opened: tf.Tensor) -> tf.Tensor:
    before = tf.concat([[1.0], tf.math.cumprod(opened)], 0)
    return before * tf.concat([1 - opened, [1.0]], 0)


def _alone(values: np.ndarray, grids: Grids, index: int) -> np.ndarray:
    return np.where(np.arange(len(grids.bits) - 1) < index, OPEN, -OPEN)


def _at(grids: Grids, mean: float) -> np.ndarray:
    """Importances [branches - 1]: the same logit for all gates, for a mean of bits."""
    bits, gates = np.array(grids.bits), len(grids.bits) - 1

    def mean_at(logit: float) -> float:
        opened = 1 / (1 + np.exp(OFFSET - logit))
        before = opened ** np.arange(gates + 1)
        closed: np.ndarray = np.append(np.full(gates, 1 - opened), 1.0)
        return float(bits @ (before * closed))

    return np.full(gates, bisected(mean_at, mean, 30.0))


# The importances are the logits of the gates, [branches - 1]. Source: van Baalen et
# al., "Bayesian Bits", NeurIPS 2020, and its code for the threshold. Unlike the paper
# each branch has its own step, which need not divide that of the branch before.
NESTED = Relaxation(
    _weigh,
    _distribute,
    noise=logistic,
    shape=lambda branches: (branches - 1,),
    alone=_alone,
    at=_at,
    start=0.95,
)

"""Gates that open one bit-width after the other (Bayesian Bits)."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from gmpq_tf.layers.relaxation_row import Grids, Relaxation, bisected, logistic

# Of the hard concrete distribution: its temperature, and how far it is stretched.
BETA, ZETA, GAMMA = 2 / 3, 1.1, -0.1
OFFSET = BETA * math.log(-GAMMA / ZETA)
THRESHOLD = 0.34  # of the probability of an exact 0, above which a gate is closed
OPEN = 1e4


def _weigh(gates: tf.Tensor, grids: Grids, noise: tf.Tensor | None = None) -> tf.Tensor:
    """`1 - z_1, z_1 (1 - z_2), ..., z_1 ... z_(n-1)`, [branches].

    `x_q = q_1 + z_1 (q_2 - q_1 + z_2 (q_3 - q_2 + ...))`: what every further gate adds
    to the values of few bits is the residual that more bits leave, so that the sum of
    branches is that of nested residuals wherever the grids nest.
    """
    if noise is None:  # outside of training gates are open or closed
        closed = tf.sigmoid(OFFSET - gates)
        return _chain(tf.cast(closed < THRESHOLD, gates.dtype))
    stretched = tf.sigmoid((noise + gates) / BETA) * (ZETA - GAMMA) + GAMMA
    return _chain(tf.clip_by_value(stretched, 0.0, 1.0))


def open_probabilities(gates: tf.Tensor) -> tf.Tensor:
    """`P(z > 0) = sigmoid(phi - beta log(-gamma / zeta))`, any shape."""
    return tf.sigmoid(gates - OFFSET)


def _distribute(gates: tf.Tensor, grids: Grids) -> tf.Tensor:
    return _chain(open_probabilities(gates))


def _chain(opened: tf.Tensor) -> tf.Tensor:
    before = tf.concat([[1.0], tf.math.cumprod(opened)], 0)
    return before * tf.concat([1 - opened, [1.0]], 0)


def _alone(values: np.ndarray, grids: Grids, index: int) -> np.ndarray:
    return np.where(np.arange(len(grids.bits) - 1) < index, OPEN, -OPEN)


def _at(grids: Grids, mean: float) -> np.ndarray:
    """One logit of all gates."""
    bits, gates = np.array(grids.bits), len(grids.bits) - 1

    def mean_at(logit: float) -> float:
        opened = 1 / (1 + np.exp(OFFSET - logit))
        before = opened ** np.arange(gates + 1)
        closed: np.ndarray = np.append(np.full(gates, 1 - opened), 1.0)
        return float(bits @ (before * closed))

    return np.full(gates, bisected(mean_at, mean, 30.0))


# The importances are the logits of the gates, [branches - 1]. Source: van Baalen et
# al., "Bayesian Bits", NeurIPS 2020, and its code for the threshold. Unlike there each
# branch has a step of its own, which need not divide that of the branch before.
NESTED = Relaxation(
    _weigh,
    _distribute,
    noise=logistic,
    shape=lambda branches: (branches - 1,),
    alone=_alone,
    at=_at,
    start=0.95,
)

"""Bits and thresholds of one grid, drawn together (HMQ)."""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from gmpq_tf.layers.relaxation_row import (
    CHOSEN,
    LEFT_OUT,
    Grids,
    Relaxation,
    gumbel,
    tilted,
)

THRESHOLDS = 8  # each half of the one before
OWN = 1  # index of the threshold that is the quantizer's own range
FIRST = 0.95  # probability of that threshold at the start


def _weigh(
    logits: tf.Tensor, grids: Grids, noise: tf.Tensor | None = None
) -> tf.Tensor:
    """`m_b = sum_j rho_bj 2^(OWN-j)`, [branches], with `rho = softmax(logits + noise)`.

    With the step `s_b` of each branch, `sum_b m_b s_b` is the expected step and
    `sum_b m_b s_b hi_b` the expected threshold.
    """
    shares = _joint(logits if noise is None else logits + noise)
    scales = 2.0 ** (OWN - np.arange(THRESHOLDS, dtype="float32"))
    return tf.linalg.matvec(shares, scales)


def _distribute(logits: tf.Tensor, grids: Grids) -> tf.Tensor:
    return tf.reduce_sum(_joint(logits), 1)


def _joint(logits: tf.Tensor) -> tf.Tensor:
    return tf.reshape(tf.nn.softmax(tf.reshape(logits, [-1])), logits.shape)


def _alone(values: np.ndarray, grids: Grids, index: int) -> np.ndarray:
    """Importances [branches, thresholds] that choose one bit-width and its threshold.

    The threshold is that of the largest importance. The other bit-widths get the
    probability 0, but keep the order of their thresholds.
    """
    best = values == values.max(axis=1, keepdims=True)
    rows = np.arange(len(grids.bits)) == index
    return np.where(best, CHOSEN, LEFT_OUT) + np.where(rows, CHOSEN, LEFT_OUT)[:, None]


def _at(grids: Grids, mean: float) -> np.ndarray:
    odds = math.log(FIRST / (1 - FIRST) * (THRESHOLDS - 1))
    return tilted(grids, mean)[:, None] + odds * (np.arange(THRESHOLDS) == OWN)


# Source: Habi, Jennings and Netzer, "HMQ", ECCV 2020, section 3.2. Unlike the paper a
# tensor draws once a pass, not anew for each image or channel, and thresholds are the
# quantizer's fitted and learned range times powers of two; the search starts there.
THRESHOLD_GRIDS = Relaxation(
    _weigh,
    _distribute,
    noise=gumbel,
    tempered=True,
    one_rounding=True,
    shape=lambda branches: (branches, THRESHOLDS),
    alone=_alone,
    at=_at,
    start=0.95,
)

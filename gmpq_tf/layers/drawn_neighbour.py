"""Relaxation of SDQ: a fractional bit-width, of which one neighbour is drawn."""

from __future__ import annotations

import tensorflow as tf

from gmpq_tf.layers.fractional import ADJACENT, between, neighbours
from gmpq_tf.layers.relaxation_row import Grids, Relaxation, logistic
from gmpq_tf.quantizers.straight_through import straight_through

SHARPNESS = 0.25  # temperature of the sigmoid that gives draws their gradient
LEAST = 0.02  # probabilities are clipped to LEAST .. 1 - LEAST for that gradient


def _weigh(
    importance: tf.Tensor, grids: Grids, noise: tf.Tensor | None = None
) -> tf.Tensor:
    """Draws one of the two neighbours, whose expectation is the fractional bit-width.

    Returns a one-hot vector [branches] with the gradient of
    `sigmoid((logit p + noise) / 0.25)`, p the probability of the upper neighbour.
    Without noise the nearer neighbour is taken.
    """
    place, share = neighbours(_within(importance, grids), grids)
    if noise is None:
        upper = straight_through(tf.cast(share > 0.5, "float32"), share)
    else:
        drawn = tf.cast(share > tf.sigmoid(-noise[0]), "float32")
        clipped = tf.clip_by_value(share, LEAST, 1 - LEAST)
        p = straight_through(clipped, share)
        logit = tf.math.log(p) - tf.math.log1p(-p)
        upper = straight_through(drawn, tf.sigmoid((logit + noise[0]) / SHARPNESS))
    count = len(grids.bits)
    lower = tf.one_hot(place, count) * (1 - upper)
    return lower + tf.one_hot(place + 1, count) * upper


def _within(importance: tf.Tensor, grids: Grids) -> tf.Tensor:
    """Clips the bit-width to the candidates, with the gradient of the identity."""
    ends = float(grids.bits[0]), float(grids.bits[-1])
    return straight_through(tf.clip_by_value(importance[0], *ends), importance[0])


def _distribute(importance: tf.Tensor, grids: Grids) -> tf.Tensor:
    return between(_within(importance, grids), grids)


# The importance is the bit-width itself, [1]. Source: Huang et al., "SDQ: Stochastic
# Differentiable Quantization with Mixed Precision", ICML 2022, by its abstract. Unlike
# there the probability is that of a fractional bit-width, which may rise again.
DRAWN_NEIGHBOUR = Relaxation(
    _weigh,
    _distribute,
    noise=logistic,
    shape=ADJACENT.shape,
    alone=ADJACENT.alone,
    at=ADJACENT.at,
    start=0.95,
)

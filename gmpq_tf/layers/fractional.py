"""A fractional bit-width, between its two neighbours (FracBits)."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from gmpq_tf.layers.relaxation_row import Grids, Relaxation


def between(bits: tf.Tensor, grids: Grids) -> tf.Tensor:
    """Weights of the two branches around a bit-width, which is their weighted mean.

    `w_i = (b_(i+1) - b) / (b_(i+1) - b_i)` and `w_(i+1) = 1 - w_i` for
    `b_i <= b <= b_(i+1)`; below the first or above the last bit-width that branch
    alone.

    Args:
        bits: fractional bit-width `b`, a scalar.
        grids: bit-widths of the branches.

    Returns:
        [branches], with the sum 1.
    """
    place, share = neighbours(bits, grids)
    upper = tf.clip_by_value(share, 0.0, 1.0)
    count = len(grids.bits)
    return tf.one_hot(place, count) * (1 - upper) + tf.one_hot(place + 1, count) * upper


def neighbours(bits: tf.Tensor, grids: Grids) -> tuple[tf.Tensor, tf.Tensor]:
    """Where a bit-width lies among the candidates.

    Args:
        bits: fractional bit-width `b`, a scalar.
        grids: bit-widths of the branches.

    Returns:
        Index `i` of its lower neighbour, the last but one at most, and the share
        `(b - b_i) / (b_(i+1) - b_i)` of the way to the upper one; scalars.
    """
    known: np.ndarray = np.array(grids.bits, "float32")
    place = tf.reduce_sum(tf.cast(bits >= known[1:-1], "int32"))
    low, high = tf.gather(known, place), tf.gather(known, place + 1)
    return place, (bits - low) / (high - low)


def _weigh(
    importance: tf.Tensor, grids: Grids, noise: tf.Tensor | None = None
) -> tf.Tensor:
    return between(_within(importance, grids), grids)


def _within(importance: tf.Tensor, grids: Grids) -> tf.Tensor:
    """Clips the bit-width to the candidates.

    Beyond the candidates the gradient is passed on only if it leads back: a gradient of
    0 would keep the bit-width there for ever, and the full one would let it move away.
    """
    low, high = float(grids.bits[0]), float(grids.bits[-1])

    @tf.custom_gradient
    def clipped(bits: tf.Tensor) -> tuple[tf.Tensor, Any]:
        def slope(upstream: tf.Tensor) -> tf.Tensor:
            away = ((bits < low) & (upstream > 0)) | ((bits > high) & (upstream < 0))
            return tf.where(away, tf.zeros_like(upstream), upstream)

        return tf.clip_by_value(bits, low, high), slope

    return clipped(importance[0])


def _alone(values: np.ndarray, grids: Grids, index: int) -> np.ndarray:
    return np.array([float(grids.bits[index])])


def _at(grids: Grids, mean: float) -> np.ndarray:
    return np.array([float(mean)])


# The importance is the bit-width itself, [1]. Source: Yang and Jin, "FracBits", AAAI
# 2021. Unlike the paper the neighbours are candidates, which need not differ by one
# bit.
ADJACENT = Relaxation(
    _weigh, _weigh, shape=lambda _: (1,), alone=_alone, at=_at, start=0.5
)
